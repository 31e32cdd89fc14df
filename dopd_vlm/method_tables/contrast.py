"""Methods that compare views in log space. Read from abstracts alone: the weighting of the terms is ours."""

from dopd_vlm.method_tables.table import uniform
from dopd_vlm.types import Route, Term

RESIDUAL_SHARE = 0.5
"""Of the full view's residual in AR-OPD; the paper's weighting was not readable. 0 is the partial view, 1 the full."""


def _route(target: str) -> Route:
    return Route(target=target, divergence="reverse_kl", support="sampled")


METHODS = (
    # RLCSD (2606.11709): signal = [log T(y|p+) - log S(y)] - [log T(y|p-) - log S(y)], a right against a wrong hint.
    # As a target: q ~ S T(p+) / T(p-), whose sampled reverse KL has just this slope.
    uniform(
        "rlcsd",
        _route("corrected"),
        targets={
            "corrected": (
                Term(policy="student", view="plain"),
                Term(policy="self_target", view="privileged"),
                Term(policy="self_target", view="wrong", coefficient=-1.0),
            )
        },
    ),
    # AR-OPD (2606.10385): anchor = teacher with partial privilege, plus a share of what the full privilege adds.
    uniform(
        "ar_opd",
        _route("anchored"),
        targets={
            "anchored": (
                Term(policy="teacher", view="partial", coefficient=1.0 - RESIDUAL_SHARE),
                Term(policy="teacher", view="privileged", coefficient=RESIDUAL_SHARE),
            )
        },
    ),
)
