"""The paper's method, its vanilla OPD and its ablations (arXiv 2606.30626)."""

from dataclasses import replace

from dopd_vlm.method_tables.table import Method, dropped, uniform
from dopd_vlm.types import Regime, Route

TOP_K = 128
LIGHT, WEAK = 0.6, 0.3
"""beta_l and beta_w of the paper (section 1.4)."""

LIGHT_TEACHER = Route(target="teacher", divergence="reverse_kl", top_k=TOP_K, weight=LIGHT)
WEAK_STUDENT = Route(target="self_target", divergence="reverse_kl", top_k=TOP_K, weight=WEAK)
DEEP_TEACHER = Route(target="teacher", divergence="jsd")
LIGHT_STUDENT = Route(target="self_target", divergence="reverse_kl", top_k=TOP_K, weight=LIGHT)
TOP_K_JS = Route(target="teacher", divergence="jsd", top_k=TOP_K)
VANILLA = Route(
    target="teacher", target_view="plain", divergence="reverse_kl", top_k=TOP_K, weight=1.0
)
SELF = Route(target="self_target", divergence="reverse_kl", top_k=TOP_K)
PRIVILEGED_TEACHER = replace(VANILLA, target_view="privileged")

DOPD_ROUTES: dict[Regime, Route] = {
    Regime.LH: LIGHT_TEACHER,
    Regime.LL: WEAK_STUDENT,
    Regime.HT: DEEP_TEACHER,
    Regime.HS: LIGHT_STUDENT,
}


def variant(name: str, **routes: Route) -> Method:
    """DOPD with other routes for the named regimes: variant("x", LL=..., HS=...)."""
    return Method(name=name, routes=DOPD_ROUTES | {Regime[key]: r for key, r in routes.items()})


def _token_types(name: str, *used: Regime) -> Method:
    routes = {r: DOPD_ROUTES[r] if r in used else dropped(DOPD_ROUTES[r]) for r in Regime}
    return Method(name=name, routes=routes)


def _one_objective(route: Route) -> Route:
    return replace(route, divergence="jsd")


METHODS = (
    # Paper sections 1.4 and 1.5.
    Method(name="dopd", routes=DOPD_ROUTES),
    # Eq. 5 and Fig. 3 T->S. The paper leaves the granularity of its vanilla OPD open.
    uniform("opd", VANILLA),
    uniform("opd_full", replace(VANILLA, divergence="jsd", top_k=None)),
    uniform("opd_sampled", replace(VANILLA, top_k=None, support="sampled")),
    # Fig. 3.
    uniform("priv_s_to_s", SELF),
    uniform("priv_t_to_s", PRIVILEGED_TEACHER),
    uniform("priv_t_to_priv_s", PRIVILEGED_TEACHER, student_view="privileged"),
    # Table 6: which tokens are trained on, and the same with one strategy for all of them.
    _token_types("dopd_ht", Regime.HT),
    _token_types("dopd_ht_lh", Regime.HT, Regime.LH),
    _token_types("dopd_ht_ll", Regime.HT, Regime.LL),
    _token_types("dopd_ht_hs", Regime.HT, Regime.HS),
    uniform("dopd_non_adaptive", TOP_K_JS),
    # Table 8. What replaces the removed part is our reading: without the student policy its regimes
    # go to the teacher at the same weights, and the other way round; one objective is JS; one
    # strategy is top-K.
    variant(
        "dopd_no_student",
        LL=replace(WEAK_STUDENT, target="teacher"),
        HS=replace(LIGHT_STUDENT, target="teacher"),
    ),
    variant(
        "dopd_no_teacher",
        LH=replace(LIGHT_TEACHER, target="self_target"),
        HT=replace(DEEP_TEACHER, target="self_target"),
    ),
    variant(
        "dopd_one_objective",
        LH=_one_objective(LIGHT_TEACHER),
        LL=_one_objective(WEAK_STUDENT),
        HS=_one_objective(LIGHT_STUDENT),
    ),
    variant("dopd_one_strategy", HT=TOP_K_JS),
)
