"""Means, standard errors, paired tests and k-sample estimators, closed form where there is one."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    from evaluate import Metric


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its standard error, which is nan where one observation cannot give it."""

    value: float
    stderr: float
    n: int


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean of a - b over the same questions, its stderr and the two-sided normal p-value."""

    value: float
    stderr: float
    p_value: float
    n: int


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Questions that only one of two models got right, and the exact two-sided p-value."""

    only_a: int
    only_b: int
    p_value: float


def mean(values: Sequence[float]) -> Estimate:
    """sum x / n with stderr sqrt(sum (x - mean)^2 / (n (n - 1)))."""
    return clustered_mean(values, range(len(values)))


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """The mean over questions, whose errors may be correlated within a cluster.

    stderr = sqrt(G / (G - 1) sum_g (sum_{i in g} (x_i - mean))^2) / n for G clusters; with
    clusters of one this is the closed form of independent questions (Miller 2024, arXiv
    2411.00640, but for the factor G / (G - 1)).
    """
    n = len(values)
    if n == 0:
        return Estimate(value=math.nan, stderr=math.nan, n=0)
    average = math.fsum(values) / n
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - average
    groups = len(sums)
    if groups == 1:
        return Estimate(value=average, stderr=math.nan, n=n)
    squares = math.fsum(total**2 for total in sums.values())
    return Estimate(value=average, stderr=math.sqrt(groups / (groups - 1) * squares) / n, n=n)


def weighted_sum(
    values: Sequence[float],
    weights: Sequence[float],
    centres: Sequence[float],
    clusters: Sequence[Hashable],
) -> Estimate:
    """sum w x with stderr sqrt(G / (G - 1) sum_g (sum_{i in g} w_i (x_i - c_i))^2), G clusters.

    `centres` are the means that the values vary around, each value's own stratum's; with equal
    weights 1 / n and one mean this is `clustered_mean`.
    """
    total = math.fsum(w * x for w, x in zip(weights, values, strict=True))
    sums: dict[Hashable, float] = {}
    for value, weight, centre, cluster in zip(values, weights, centres, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + weight * (value - centre)
    groups = len(sums)
    if groups <= 1:
        return Estimate(value=total, stderr=math.nan, n=len(values))
    squares = math.fsum(one**2 for one in sums.values())
    return Estimate(value=total, stderr=math.sqrt(groups / (groups - 1) * squares), n=len(values))


def interval(value: float, stderr: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a mean of scores in [0, 1], never of no width.

    The sample size is the one that a share of this error has, value (1 - value) / stderr^2, so that
    clusters and fractions count; n where the error is 0 or unknown. Source: Wilson 1927.
    """
    if n == 0 or math.isnan(value):
        return math.nan, math.nan
    variance = value * (1 - value)
    size = variance / stderr**2 if stderr > 0 and variance > 0 else float(n)
    z = NormalDist().inv_cdf(0.975)
    centre = (value + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * math.sqrt(variance / size + z**2 / (4 * size**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(
    a: Mapping[str, float], b: Mapping[str, float], clusters: Mapping[str, Hashable] | None = None
) -> PairedDifference:
    """mean(a - b) by question; clusters of questions as in `clustered_mean`.

    Raises:
        ValueError: the two do not cover the same questions.
    """
    _check_same(a, b)
    differences = [a[uid] - b[uid] for uid in a]
    keys = [(clusters or {}).get(uid, uid) for uid in a]
    estimate = clustered_mean(differences, keys)
    return PairedDifference(
        value=estimate.value,
        stderr=estimate.stderr,
        p_value=_two_sided(estimate, len(set(keys))),
        n=estimate.n,
    )


def mcnemar(a: Mapping[str, float], b: Mapping[str, float]) -> McNemar:
    """The exact test on questions that one got right and the other did not: Binomial(n, 1/2).

    Raises:
        ValueError: different questions, or scores other than 0 and 1 (averages over samples).
    """
    _check_same(a, b)
    if not {*a.values(), *b.values()} <= {0.0, 1.0}:
        raise ValueError("McNemar's test needs scores of 0 or 1, one completion per question")
    only_a = sum(a[uid] > b[uid] for uid in a)
    only_b = sum(a[uid] < b[uid] for uid in a)
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return McNemar(only_a=only_a, only_b=only_b, p_value=min(1.0, 2 * tail / 2**n))


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased chance that one of k samples is right: 1 - C(n - c, k) / C(n, k) (arXiv 2107.03374).

    Raises:
        ValueError: unless 0 <= num_correct <= num_samples and 1 <= k <= num_samples.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(
            f"pass@{k} of {num_correct} right in {num_samples} samples: "
            "need 0 <= right <= samples and 1 <= k <= samples"
        )
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def pass_at(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """{"pass@k": mean over questions} for k = 1, 2, 4, ... up to the fewest samples of a question.

    {} for one sample a question and for scores other than 0 and 1.
    """
    fewest = min((len(one) for one in scores.values()), default=0)
    if fewest < 2 or not {score for one in scores.values() for score in one} <= {0.0, 1.0}:
        return {}
    sizes = [2**i for i in range(fewest.bit_length())]
    return {
        f"pass@{k}": math.fsum(pass_at_k(len(one), int(sum(one)), k) for one in scores.values())
        / len(scores)
        for k in sizes
    }


def diversity(answers: Mapping[str, Sequence[str]]) -> float:
    """How many of a question's samples differ: mean of (distinct - 1) / (samples - 1), 0 to 1.

    Questions with one sample do not count; nan without others.
    """
    shares = [(len(set(one)) - 1) / (len(one) - 1) for one in answers.values() if len(one) > 1]
    return math.fsum(shares) / len(shares) if shares else math.nan


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """sum(numerators) / sum(denominators), its stderr from resampled questions.

    Only for ratios of sums, whose standard error has no closed form.
    """
    n = len(numerators)
    if n != len(denominators) or n == 0 or not math.fsum(denominators):
        raise ValueError(
            f"a ratio needs as many denominators as numerators and a non-zero sum, got {n}"
        )
    generator = numpy.random.default_rng(seed)
    parts = numpy.array([numerators, denominators], dtype=float)
    draws = (generator.integers(n, size=n) for _ in range(num_resamples))
    tops, totals = numpy.array([parts[:, draw].sum(axis=1) for draw in draws]).T
    ratios = tops[totals != 0] / totals[totals != 0]
    stderr = float(ratios.std(ddof=1)) if len(ratios) > 1 else math.nan
    value = math.fsum(numerators) / math.fsum(denominators)
    return Estimate(value=value, stderr=stderr, n=n)


def _two_sided(difference: Estimate, num_clusters: int) -> float:
    """The normal p-value; the exact sign test's, 2^(1 - G), where all differences are equal.

    G equal differences have no spread to measure, but under the null each sign is a coin's.
    """
    if math.isnan(difference.stderr):
        return math.nan
    if difference.stderr <= 1e-12 * abs(difference.value):
        return 1.0 if difference.value == 0 else min(1.0, 2.0 ** (1 - num_clusters))
    return 2 * NormalDist().cdf(-abs(difference.value / difference.stderr))


def _check_same(a: Mapping[str, float], b: Mapping[str, float]) -> None:
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(
            f"paired statistics need the same questions on both sides; {len(odd)} are on one side "
            f"only, e.g. {', '.join(odd[:3])}"
        )


def accuracy_metric() -> "Metric":
    """The mean of scores and its standard error as a metric of the library `evaluate`.

    predictions are scores in [0, 1], references are cluster keys: where they repeat the error is
    clustered. Never loaded by name, which needs a network.
    """
    # Here, since `import evaluate` at the start of scripts/evaluate.py would load that script.
    import datasets
    import evaluate

    class Accuracy(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            columns = {
                "predictions": datasets.Value("float64"),
                "references": datasets.Value("string"),
            }
            return evaluate.MetricInfo(
                description="Mean correctness with a closed-form (clustered) standard error.",
                citation="",
                inputs_description="predictions: scores in [0, 1]; references: cluster keys.",
                features=datasets.Features(columns),
            )

        def _compute(  # type: ignore[override]
            self, predictions: Sequence[float], references: Sequence[str]
        ) -> dict[str, float]:
            estimate = clustered_mean(predictions, references)
            return {"accuracy": estimate.value, "accuracy_stderr": estimate.stderr}

    return Accuracy(keep_in_memory=True, seed=0)
