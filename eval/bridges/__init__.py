"""The field's own harnesses: theirs on our models, ours in their files."""
