"""Sample records -> Results."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dopd_vlm.types import Sample, ViewName

from ..benchmarks.benchmark import Benchmark
from ..completions.records import shares
from ..completions.requests import pictures_hash
from ..completions.store import Record
from ..scoring.answers import normal
from .results import Results
from .stats import Estimate, accuracy_metric, bootstrap_ratio, clustered_mean, pass_at_k


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
    found = accuracy_metric().compute(predictions=list(per_question.values()), references=keys)
    assert found is not None
    num_generations = len(records) // len(samples)
    labels = _labels(samples, task.category)
    categories = _by_label(per_question, labels, clusters)
    return Results(
        name=task.name,
        view=view,
        model=model,
        accuracy=found["accuracy"],
        stderr=found["accuracy_stderr"],
        n=len(per_question),
        num_generations=num_generations,
        **_rates(records),
        per_question=per_question,
        clusters=clusters,
        categories={label: part.value for label, part in categories.items()},
        category_stderr={label: _finite(part.stderr) for label, part in categories.items()},
        category_n=dict(Counter(labels.values())),
        second=_second(task, samples, per_question, categories)
        | _parts(records)
        | (_yes_f1(records, clusters) if task.answer_type == "yes_no" else {}),
        pass_at=_pass_at(by_uid, num_generations),
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
    per_question: Mapping[str, float],
    categories: Mapping[str, Estimate],
) -> dict[str, float]:
    means = {label: part.value for label, part in categories.items()}
    shares_right = {
        name: _all_right(_labels(samples, key), per_question)
        for name, key in task.all_right.items()
    }
    return {**shares_right, **_means(task.means, means)}


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
    found = {s.uid: pictures_hash(s.plain.images) for s in samples if s.plain.images}
    return found if len(set(found.values())) < len(found) else {}


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


def _all_right(groups: Mapping[str, str], per_question: Mapping[str, float]) -> float:
    """Share of groups whose questions are all right."""
    right: dict[str, list[bool]] = {}
    for uid, group in groups.items():
        right.setdefault(group, []).append(per_question[uid] == 1.0)
    return _share([all(group) for group in right.values()])


def _means(means: Mapping[str, Any], categories: Mapping[str, float]) -> dict[str, float]:
    """The means of means that have a category here; categories without questions do not count."""
    found = {
        name: _mean(list(categories) if tree == "categories" else tree, categories)
        for name, tree in means.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def _mean(tree: Any, categories: Mapping[str, float]) -> float | None:
    if isinstance(tree, str):
        return categories.get(tree)
    values = [value for value in (_mean(one, categories) for one in tree) if value is not None]
    return _share(values) if values else None


def _parts(records: Sequence[Record]) -> dict[str, float]:
    names = dict.fromkeys(name for record in records for name in record["parts"])
    return {name: _share([record["parts"].get(name, 0.0) for record in records]) for name in names}


def _yes_f1(records: Sequence[Record], clusters: Mapping[str, str]) -> dict[str, float]:
    """F1 of `yes`: 2 TP / (2 TP + FP + FN), with its stderr; an unread answer is no yes."""
    counts: dict[str, list[float]] = {}
    for record in records:
        said, is_so = (
            normal(str(v)) == "yes" for v in (record["filtered_resps"][0], record["target"])
        )
        one = counts.setdefault(clusters.get(record["uid"], record["uid"]), [0.0, 0.0])
        one[0] += 2.0 * (said and is_so)
        one[1] += float(said) + float(is_so)
    tops, totals = zip(*counts.values(), strict=True)
    if not any(totals):
        return {}
    found = bootstrap_ratio(tops, totals)
    return {"f1_yes": found.value} | (
        {} if math.isnan(found.stderr) else {"f1_yes_stderr": found.stderr}
    )


def _pass_at(by_uid: Mapping[str, Sequence[float]], num_generations: int) -> dict[str, float]:
    """k = 1, 2, 4, ... up to the number of completions, for scores of 0 or 1."""
    if num_generations == 1 or any(
        s not in (0.0, 1.0) for scores in by_uid.values() for s in scores
    ):
        return {}
    sizes = [2**i for i in range(num_generations.bit_length())]
    return {
        f"pass@{k}": _share([pass_at_k(len(s), int(sum(s)), k) for s in by_uid.values()])
        for k in sizes
    }


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values)
