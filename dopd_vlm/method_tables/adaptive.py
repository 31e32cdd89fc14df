"""Methods that choose or weigh tokens; their routers are in routers/adaptive.py and routers/visual.py."""

from dataclasses import replace

from dopd_vlm.method_tables.floors import LIKELIHOOD
from dopd_vlm.method_tables.paper import VANILLA
from dopd_vlm.method_tables.table import Method, dropped
from dopd_vlm.types import Regime

SAMPLED = replace(VANILLA, top_k=None, support="sampled")
EOPD_TOP_K = 16

METHODS = (
    # EOPD (2603.07079, from an audit): forward KL on the teacher's top 16 where its entropy exceeds 0.8 nats,
    # reverse KL elsewhere. The audit adds the forward KL to the clipped reverse KL there; a token has one route here.
    Method(
        name="eopd",
        router="teacher_entropy",
        routes={
            **dict.fromkeys(Regime, SAMPLED),
            Regime.HT: replace(VANILLA, divergence="forward_kl", top_k=EOPD_TOP_K),
        },
    ),
    # TIP (2604.14084): the upper half of tokens by a soft OR of student entropy and divergence.
    Method(name="tip", router="soft_or", routes=dict.fromkeys(Regime, VANILLA)),
    # REOPOLD (2603.11137, secondary): policy gradient with reward log T - log s, clipped below, on tokens of high
    # student entropy. Its change from exploration to refinement is left out.
    Method(name="reopold", router="clipped_reward", routes=dict.fromkeys(Regime, LIKELIHOOD)),
    # AOPD (2605.06387, secondary): A = log T - log s; A > 0: -A log s(y); A <= 0: reverse KL to the teacher.
    Method(
        name="aopd",
        router="advantage_sign",
        routes={
            **dict.fromkeys(Regime, dropped(VANILLA)),
            Regime.HT: LIKELIHOOD,
            Regime.HS: VANILLA,
        },
    ),
    # VA-OPD (2605.21924, secondary, no code): weights by what the teacher says less of on a degraded image.
    Method(name="va_opd", router="visual_advantage", routes=dict.fromkeys(Regime, VANILLA)),
)
