"""Second metrics of a task, each with its standard error under `<name>_stderr` where it has one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..completions.store import Record
from ..scoring.answers import normal
from .stats import Estimate, bootstrap_ratio, clustered_mean, weighted_sum

Questions = Mapping[str, float]
Labels = Mapping[str, str]


def with_errors(metrics: Mapping[str, Estimate]) -> dict[str, float]:
    """{name: value, name_stderr: its error}; an error that one observation cannot give is left out."""
    pairs: dict[str, float] = {}
    for name, estimate in metrics.items():
        pairs[name] = estimate.value
        if not math.isnan(estimate.stderr):
            pairs[f"{name}_stderr"] = estimate.stderr
    return pairs


def all_right(per_question: Questions, groups: Labels) -> Estimate:
    """Share of groups whose questions are all right, with the error of a mean over groups."""
    right: dict[str, bool] = {}
    for uid, group in groups.items():
        right[group] = right.get(group, True) and per_question[uid] == 1.0
    values = [float(value) for value in right.values()]
    return clustered_mean(values, range(len(values)))


def mean_of_means(
    tree: Any, per_question: Questions, categories: Labels, clusters: Labels
) -> Estimate | None:
    """The mean over categories, or over nested lists of them, as `Benchmark.means` writes it.

    It is a weighted sum of questions, a question weighing its category's weight over the category's
    size; the error is that of such a sum over clusters. None without any of the categories.
    """
    sizes: dict[str, int] = {}
    for category in categories.values():
        sizes[category] = sizes.get(category, 0) + 1
    weights = _weights(sorted(sizes) if tree == "categories" else tree, sizes)
    uids = [uid for uid, category in categories.items() if category in weights]
    if not uids:
        return None
    centres = {
        category: math.fsum(per_question[uid] for uid in uids if categories[uid] == category)
        / sizes[category]
        for category in weights
    }
    return weighted_sum(
        [per_question[uid] for uid in uids],
        [weights[categories[uid]] / sizes[categories[uid]] for uid in uids],
        [centres[categories[uid]] for uid in uids],
        [clusters.get(uid, uid) for uid in uids],
    )


def _weights(tree: Any, sizes: Mapping[str, int]) -> dict[str, float]:
    """Category -> its weight in the mean; those without questions do not count."""
    if isinstance(tree, str):
        return {tree: 1.0} if tree in sizes else {}
    branches = [branch for branch in (_weights(one, sizes) for one in tree) if branch]
    return {
        category: weight / len(branches)
        for branch in branches
        for category, weight in branch.items()
    }


def parts(records: Sequence[Record], clusters: Labels) -> dict[str, Estimate]:
    """Means of the scores' parts over questions, each the mean over its completions."""
    names = dict.fromkeys(name for record in records for name in record["parts"])
    metrics = {}
    for name in names:
        by_uid: dict[str, list[float]] = {}
        for record in records:
            by_uid.setdefault(record["uid"], []).append(record["parts"].get(name, 0.0))
        values = [math.fsum(scores) / len(scores) for scores in by_uid.values()]
        metrics[name] = clustered_mean(values, [clusters.get(uid, uid) for uid in by_uid])
    return metrics


def yes_f1(records: Sequence[Record], clusters: Labels) -> dict[str, Estimate]:
    """F1 of `yes`: 2 TP / (2 TP + FP + FN), its error from resampled clusters; unread is no yes."""
    counts: dict[str, list[float]] = {}
    for record in records:
        said, is_so = (
            normal(str(v)) == "yes" for v in (record["filtered_resps"][0], record["target"])
        )
        one = counts.setdefault(clusters.get(record["uid"], record["uid"]), [0.0, 0.0])
        one[0] += 2.0 * (said and is_so)
        one[1] += float(said) + float(is_so)
    tops, totals = zip(*counts.values(), strict=True)
    return {"f1_yes": bootstrap_ratio(tops, totals)} if any(totals) else {}
