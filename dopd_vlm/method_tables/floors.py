"""Off-policy floors and GKD, which is between them and on-policy distillation."""

from dataclasses import replace

from dopd_vlm.method_tables.paper import VANILLA
from dopd_vlm.method_tables.table import uniform
from dopd_vlm.types import TOKENS, Route

LIKELIHOOD = Route(target=TOKENS, divergence="forward_kl", support="sampled")
"""-log p of the token; with a router's weight w a policy gradient of advantage w."""

METHODS = (
    # Cross-entropy on the row's answer; `rollout.sources={teacher: 1}` makes it sequence-level KD
    # (Kim and Rush 2016, 1606.07947). One completion a row is enough: rollout.num_generations=1.
    uniform("sft", LIKELIHOOD, completions={"answer": 1.0}),
    # Word-level KD of the same paper: forward KL to the teacher along the row's answer.
    uniform("kd", replace(VANILLA, divergence="forward_kl"), completions={"answer": 1.0}),
    # Agarwal et al. 2024 (2306.13649): (1 - lambda) E_data D + lambda E_student D, here with the defaults of its
    # best-known implementation: lambda 0.5 and D = JSD(0.5), full vocabulary. The paper sweeps both.
    uniform(
        "gkd",
        replace(VANILLA, divergence="jsd", top_k=None),
        completions={"student": 0.5, "answer": 0.5},
    ),
)
