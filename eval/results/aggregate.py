"""Sample records -> Results."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dopd_vlm.types import Sample, ViewName

from ..benchmarks.benchmark import Benchmark
from ..completions.records import shares
from ..completions.requests import images_hash
from ..completions.store import Record
from .results import Results
from .second import all_right, mean_of_means, parts, with_errors, yes_f1
from .stats import Estimate, accuracy_metric, clustered_mean, pass_at


def aggregate(
    task: Benchmark,
    view: ViewName,
    model: str,
    samples: Sequence[Sample],
    records: Sequence[Record],
) -> Results:
    """Means over questions of the records' `accuracy`, with rates over completions."""
    by_uid: dict[str, list[float]] = {sample.uid: [] for sample in samples}
    for record in records:
        by_uid[record["uid"]].append(record["accuracy"])
    per_question = {uid: sum(scores) / len(scores) for uid, scores in by_uid.items()}
    clusters = _labels(samples, task.cluster) if task.cluster else _shared_images(samples)
    keys = [clusters.get(uid, uid) for uid in per_question]
    computed = accuracy_metric().compute(predictions=list(per_question.values()), references=keys)
    assert computed is not None
    num_generations = len(records) // len(samples)
    labels = _labels(samples, task.category)
    categories = _by_label(per_question, labels, clusters)
    return Results(
        name=task.name,
        view=view,
        model=model,
        accuracy=computed["accuracy"],
        stderr=computed["accuracy_stderr"],
        n=len(per_question),
        num_generations=num_generations,
        **_rates(records),
        per_question=per_question,
        clusters=clusters,
        categories={label: part.value for label, part in categories.items()},
        category_stderr={label: _finite(part.stderr) for label, part in categories.items()},
        category_n=dict(Counter(labels.values())),
        second=with_errors(_second(task, samples, records, per_question, clusters)),
        pass_at=pass_at(by_uid),
        mean_tokens=_share([r["num_tokens"] for r in records]),
    )


def _rates(records: Sequence[Record]) -> dict[str, Any]:
    rates = shares(records)
    return {
        "unparsed_rate": rates.unparsed,
        "empty_rate": rates.empty,
        "truncated_rate": rates.truncated,
        "error_rate": rates.scorer_error,
        "failed_rate": rates.failed,
    }


def _second(
    task: Benchmark,
    samples: Sequence[Sample],
    records: Sequence[Record],
    per_question: Mapping[str, float],
    clusters: Mapping[str, str],
) -> dict[str, Estimate]:
    shares_right = {
        name: all_right(per_question, _labels(samples, key)) for name, key in task.all_right.items()
    }
    labels = _labels(samples, task.category)
    means = {
        name: mean_of_means(tree, per_question, labels, clusters)
        for name, tree in task.means.items()
    }
    f1 = yes_f1(records, clusters) if task.answer_type == "yes_no" else {}
    known = {name: estimate for name, estimate in means.items() if estimate is not None}
    return {**shares_right, **known, **parts(records, clusters), **f1}


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def _labels(samples: Sequence[Sample], key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    return {
        sample.uid: str(sample.source[key])
        for sample in samples
        if sample.source.get(key) is not None
    }


def _shared_images(samples: Sequence[Sample]) -> dict[str, str]:
    """uid -> hash of the plain images where at least two questions share them; else empty."""
    hashes = {s.uid: images_hash(s.plain.images) for s in samples if s.plain.images}
    return hashes if len(set(hashes.values())) < len(hashes) else {}


def _by_label(
    per_question: Mapping[str, float], labels: Mapping[str, str], clusters: Mapping[str, str]
) -> dict[str, Estimate]:
    groups: dict[str, list[str]] = {}
    for uid, label in labels.items():
        groups.setdefault(label, []).append(uid)
    return {
        label: clustered_mean(
            [per_question[uid] for uid in uids], [clusters.get(uid, uid) for uid in uids]
        )
        for label, uids in sorted(groups.items())
    }


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values)
