"""Methods with an external teacher. Primary sources were not read: formulas are those of audits and repositories."""

from dataclasses import replace

from dopd_vlm.method_tables.floors import LIKELIHOOD
from dopd_vlm.method_tables.paper import PRIVILEGED_TEACHER, VANILLA
from dopd_vlm.method_tables.table import Method, uniform
from dopd_vlm.types import Regime, Route, Term

EXTRAPOLATION = 1.25
"""lambda of ExOPD's example; 1 is vanilla OPD."""
VETO_SHARE = 0.5
"""beta of Veto's bridge, held; its paper lets beta decay, by a schedule that was not readable."""

_TEACHER = Term(policy="teacher", view="plain")

METHODS = (
    # MiniLLM (2306.08543): sequence-level reverse KL by policy gradient; see routers/adaptive.py. Its sampling from a
    # mixture with the teacher (0.2) and its pre-training loss are left out, and the single-step term is sampled.
    Method(name="minillm", router="reward_to_go", routes=dict.fromkeys(Regime, LIKELIHOOD)),
    # G-OPD / ExOPD (2602.12125): -(log s - log ref) + lambda (log T - log ref) is the negative log-ratio of the student
    # to q = T^lambda ref^(1 - lambda) / Z; ref = the initial student. Its PPO clipping does nothing at one
    # update per rollout, which is what runs here.
    uniform(
        "exopd",
        Route(target="extrapolated", divergence="reverse_kl", support="sampled"),
        targets={
            "extrapolated": (
                replace(_TEACHER, coefficient=EXTRAPOLATION),
                Term(policy="base", view="plain", coefficient=1.0 - EXTRAPOLATION),
            )
        },
    ),
    # OPCD (2602.12275): reverse KL, top-K, of the student without context to the teacher with it.
    uniform("opcd", PRIVILEGED_TEACHER),
    # Veto (2601.07155): KL to the bridge q ~ T s^beta, s the live student without gradient; the forward KL of the two
    # that the paper offers.
    uniform(
        "veto",
        Route(target="bridge", divergence="forward_kl", top_k=VANILLA.top_k),
        targets={
            "bridge": (_TEACHER, Term(policy="student", view="plain", coefficient=VETO_SHARE))
        },
    ),
)
