"""Student, teacher and their inputs: loading, encoding, image features, hidden states."""

from dopd_vlm.models.policy import Policy, add_lora, check_vocabularies, load_policy, output_head

__all__ = [
    "Policy",
    "add_lora",
    "check_vocabularies",
    "load_policy",
    "output_head",
]
