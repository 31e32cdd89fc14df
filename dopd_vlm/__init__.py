"""Dual on-policy distillation of vision-language and language models with privileged information."""
