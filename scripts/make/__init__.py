"""What ships and was made by a program: embedded sets and models, photographs, SmolLM2."""
