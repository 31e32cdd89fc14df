"""Commands of `dopd` without a script of their own at the top."""
