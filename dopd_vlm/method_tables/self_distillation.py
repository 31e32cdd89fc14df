"""Methods whose teacher is the student itself, with privilege or with the better image."""

from dopd_vlm.method_tables.table import uniform
from dopd_vlm.types import Route

FULL_JS = Route(target="self_target", divergence="jsd")
TOP_100_JS = Route(target="self_target", divergence="jsd", top_k=100, support="student")
WHOLE_IMAGE = Route(target="self_target", target_view="plain", divergence="reverse_kl")

METHODS = (
    # OPSD (2601.18734, its repository): the model at step 0, given the solution; full-vocabulary JSD(0.5).
    uniform("opsd", FULL_JS, self_target="frozen"),
    # SDFT (2601.19897, TRL's form): EMA of the student given a demonstration; JSD(0.5) on the student's top 100. No
    # importance clipping: one update per rollout.
    uniform("sdft", TOP_100_JS, self_target="ema"),
    # Vision-OPD (2605.18740, its repository): EMA 0.05 of the student sees boxes on the image; JSD(0.5), top 100. The
    # privileged view is the recipe's: data.annotations={boxes: drawn}.
    uniform("vision_opd", TOP_100_JS, self_target="ema"),
    # S2VOPD (2608.14144, abstract only): the student sees a degraded image, its EMA the whole one. Divergence and EMA
    # rate are ours. Rollouts come from the plain view.
    uniform("s2vopd", WHOLE_IMAGE, self_target="ema", student_view="degraded"),
)
