"""The field's programs on our answers, in environments of their own."""
