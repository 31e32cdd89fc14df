"""The privilege probe: is the student better when it sees what the teacher sees?"""

from collections import Counter
from collections.abc import Callable, Sequence

from dopd_vlm.models.image_features import StepFeatures
from dopd_vlm.rollout.own import generate
from dopd_vlm.training.metrics import total_of
from dopd_vlm.training.state import EncodedSample, TrainState
from dopd_vlm.training.step import completion_text
from dopd_vlm.types import Sample, ViewName

VIEWS: tuple[ViewName, ...] = ("plain", "privileged")


def privilege_probe(
    state: TrainState, samples: Sequence[EncodedSample], score: Callable[[str, Sample], float]
) -> dict[str, float]:
    """probe/<view>_accuracy and probe/<view>_length of the student's greedy completions in both views.

    `samples` is this process's share; the values are those of all processes, on each of them.
    """
    sums: Counter[str] = Counter(n=len(samples))
    features = StepFeatures()
    for view in VIEWS if samples else ():
        with state.accelerator.autocast():
            rollouts = generate(
                state.student,
                [s.prompts[view] for s in samples],
                max_completion_length=state.config.rollout.max_completion_length,
                temperature=0.0,
                batch_size=state.config.rollout.batch_size,
                features=features,
            )
        for rollout, sample in zip(rollouts, samples, strict=True):
            right = score(completion_text(state.student, rollout), sample.sample)
            sums.update({f"{view}_accuracy": right, f"{view}_length": len(rollout.completion_ids)})
    total = total_of(state.accelerator, sums)
    count = max(1, total.pop("n"))
    names = (f"{view}_{value}" for view in VIEWS for value in ("accuracy", "length"))
    return {f"probe/{name}": total[name] / count for name in names}
