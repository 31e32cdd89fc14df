"""Statistics against direct calculation."""

import itertools
import math
import random
import statistics

import numpy
import pytest
import scipy.stats

from dopd_vlm.eval.results.second import all_right, mean_of_means
from dopd_vlm.eval.results.stats import (
    bootstrap_ratio,
    clustered_mean,
    diversity,
    interval,
    mcnemar,
    mean,
    paired_difference,
    pass_at,
    pass_at_k,
    weighted_sum,
)


def values(n: int, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [float(generator.random() < 0.6) for _ in range(n)]


def test_mean_is_the_closed_form() -> None:
    scores = values(17)
    found = mean(scores)
    assert found.value == pytest.approx(statistics.mean(scores), abs=1e-12)
    assert found.stderr == pytest.approx(statistics.stdev(scores) / math.sqrt(17), abs=1e-12)
    assert math.isnan(mean([1.0]).stderr) and math.isnan(mean([]).value)


def test_copies_of_a_question_do_not_shrink_the_clustered_error() -> None:
    scores = values(11)
    tripled = [score for score in scores for _ in range(3)]
    clusters = [index for index in range(11) for _ in range(3)]
    assert clustered_mean(tripled, clusters).stderr == pytest.approx(mean(scores).stderr, abs=1e-12)
    assert mean(tripled).stderr < mean(scores).stderr


def slow_clustered_stderr(scores: list[float], clusters: list[int]) -> float:
    """sqrt(G / (G - 1) sum over all pairs of one cluster of their residuals' products) / n."""
    n, groups = len(scores), len(set(clusters))
    average = sum(scores) / n
    total = 0.0
    for i, j in itertools.product(range(n), repeat=2):
        if clusters[i] == clusters[j]:
            total += (scores[i] - average) * (scores[j] - average)
    return math.sqrt(total * groups / (groups - 1)) / n


def test_clustered_error_is_the_double_sum_over_pairs() -> None:
    generator = random.Random(3)
    clusters = [generator.randrange(9) for _ in range(40)]
    scores = [float(generator.random() < 0.2 + 0.07 * cluster) for cluster in clusters]
    found = clustered_mean(scores, clusters)
    assert found.stderr == pytest.approx(slow_clustered_stderr(scores, clusters), abs=1e-12)
    assert found.stderr > mean(scores).stderr


def test_clustered_error_is_that_of_a_regression_on_a_constant() -> None:
    models = pytest.importorskip(
        "statsmodels.api", reason="a second opinion: pip install statsmodels"
    )
    scores, clusters = values(50, 4), [index % 13 for index in range(50)]
    fit = models.OLS(numpy.array(scores), numpy.ones(50)).fit(
        cov_type="cluster", cov_kwds={"groups": numpy.array(clusters)}
    )
    assert clustered_mean(scores, clusters).stderr == pytest.approx(float(fit.bse[0]), rel=1e-9)


def test_clustered_paired_difference_clusters_the_differences() -> None:
    a = {str(i): v for i, v in enumerate(values(30, 5))}
    b = {str(i): v for i, v in enumerate(values(30, 6))}
    clusters = {uid: int(uid) // 3 for uid in a}
    found = paired_difference(a, b, clusters)
    differences = [a[uid] - b[uid] for uid in a]
    expected = slow_clustered_stderr(differences, [clusters[uid] for uid in a])
    assert found.stderr == pytest.approx(expected, abs=1e-12)
    normal = 2 * scipy.stats.norm.sf(abs(found.value) / found.stderr)
    assert found.p_value == pytest.approx(float(normal), rel=1e-9)


def test_paired_difference_is_scipys_paired_t_but_for_the_tail() -> None:
    a = {str(i): v for i, v in enumerate(values(200, 7))}
    b = {str(i): v for i, v in enumerate(values(200, 8))}
    found = paired_difference(a, b)
    expected = scipy.stats.ttest_rel(list(a.values()), list(b.values()))
    assert found.value / found.stderr == pytest.approx(float(expected.statistic), rel=1e-9)
    assert found.p_value == pytest.approx(float(expected.pvalue), rel=0.05)


def test_paired_difference_is_the_mean_of_differences() -> None:
    a = {str(i): v for i, v in enumerate(values(19, 1))}
    b = {str(i): v for i, v in enumerate(values(19, 2))}
    found = paired_difference(a, b)
    differences = [a[uid] - b[uid] for uid in a]
    assert found.value == pytest.approx(statistics.mean(differences), abs=1e-12)
    assert found.stderr == pytest.approx(statistics.stdev(differences) / math.sqrt(19), abs=1e-12)
    assert paired_difference(a, a).p_value == 1.0
    with pytest.raises(ValueError, match="one side only"):
        paired_difference(a, {})


def test_mcnemar_is_the_exact_binomial() -> None:
    a = {str(i): float(i < 9) for i in range(12)}
    b = {str(i): float(i >= 8) for i in range(12)}
    found = mcnemar(a, b)
    assert (found.only_a, found.only_b) == (8, 3)
    tail = sum(math.comb(11, i) for i in range(4)) / 2**11
    assert found.p_value == pytest.approx(2 * tail)
    assert found.p_value == pytest.approx(float(scipy.stats.binomtest(3, 11).pvalue))
    assert mcnemar(a, a).p_value == 1.0
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar({"a": 0.5}, {"a": 1.0})


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 0, 2), (4, 4, 1), (7, 5, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(n: int, c: int, k: int) -> None:
    from itertools import combinations

    subsets = list(combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_pass_at_k_refuses_what_it_cannot_estimate() -> None:
    with pytest.raises(ValueError, match="pass@3 of 1 right in 2"):
        pass_at_k(2, 1, 3)


def test_bootstrap_of_a_mean_agrees_with_its_closed_form() -> None:
    scores = values(60)
    found = bootstrap_ratio(scores, [1.0] * 60)
    assert found.value == pytest.approx(mean(scores).value)
    assert found.stderr == pytest.approx(mean(scores).stderr, rel=0.1)
    assert found == bootstrap_ratio(scores, [1.0] * 60)


def test_bootstrap_of_a_ratio_agrees_with_scipys() -> None:
    generator = random.Random(11)
    weights = [float(generator.randint(1, 9)) for _ in range(50)]
    rights = [float(generator.randint(0, int(w))) for w in weights]
    expected = scipy.stats.bootstrap(
        (numpy.array(rights), numpy.array(weights)),
        lambda x, y, axis: x.sum(axis=axis) / y.sum(axis=axis),
        paired=True,
        n_resamples=2000,
        method="percentile",
        rng=0,
    )
    found = bootstrap_ratio(rights, weights)
    assert found.stderr == pytest.approx(float(expected.standard_error), rel=0.1)
    assert found.value == pytest.approx(sum(rights) / sum(weights))


def test_questions_outside_of_all_clusters_are_clusters_of_their_own() -> None:
    """Two questions share an image and a third has none, so that it has no cluster's name."""
    a, b = {"x": 1.0, "y": 0.0, "z": 1.0}, {"x": 0.0, "y": 0.0, "z": 0.0}
    named = paired_difference(a, b, {"x": "one", "y": "one", "z": "z"})
    assert paired_difference(a, b, {"x": "one", "y": "one"}) == named


def test_equal_differences_give_the_sign_tests_p_value() -> None:
    a, b = {f"q{i}": 1.0 for i in range(10)}, {f"q{i}": 0.0 for i in range(10)}
    assert paired_difference(a, b).p_value == pytest.approx(
        float(scipy.stats.binomtest(10, 10).pvalue)
    )
    pair = paired_difference({"x": 0.3, "y": 0.9}, {"x": 0.2, "y": 0.8})
    assert pair.p_value == pytest.approx(0.5)
    together = paired_difference(a, b, dict.fromkeys(a, "one"))
    assert math.isnan(together.p_value)


@pytest.mark.parametrize(("right", "n"), [(0, 30), (27, 30), (30, 30), (7, 40), (500, 1000)])
def test_the_interval_is_wilsons(right: int, n: int) -> None:
    values = [1.0] * right + [0.0] * (n - right)
    estimate = mean(values)
    low, high = interval(estimate.value, estimate.stderr, n)
    # The unbiased error of a share is that of n - 1 questions.
    size = n - 1 if 0 < right < n else n
    wilson = scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
    assert low <= estimate.value <= high and high - low > 0
    assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=0.6 / size)


def test_the_interval_covers_where_the_normal_one_does_not() -> None:
    n, p = 30, 0.9
    chance = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]

    def covers(k: int) -> bool:
        estimate = mean([1.0] * k + [0.0] * (n - k))
        low, high = interval(estimate.value, estimate.stderr, n)
        return low <= p <= high

    assert math.fsum(chance[k] for k in range(n + 1) if covers(k)) > 0.93


def test_a_weighted_sum_with_one_mean_is_the_clustered_mean() -> None:
    values, clusters = [1.0, 0.0, 1.0, 1.0, 0.25], ["a", "a", "b", "c", "c"]
    centre = sum(values) / 5
    one = weighted_sum(values, [0.2] * 5, [centre] * 5, clusters)
    two = clustered_mean(values, clusters)
    assert (one.value, one.stderr) == pytest.approx((two.value, two.stderr))


def test_the_mean_of_means_weighs_categories_and_knows_its_error() -> None:
    per_question = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0, "e": 0.0, "f": 0.0}
    categories = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "y", "f": "z"}
    found = mean_of_means(["x", ["y", "z"], "absent"], per_question, categories, {})
    assert found is not None
    assert found.value == pytest.approx((0.5 + (2 / 3 + 0.0) / 2) / 2)
    x, y = mean([1.0, 0.0]).stderr, mean([1.0, 1.0, 0.0]).stderr
    # Strata of 2 and 3: their own factors n / (n - 1) are replaced by that of six clusters.
    square = (x / 2) ** 2 * (1 / 2) + (y / 4) ** 2 * (2 / 3)
    assert found.stderr == pytest.approx(math.sqrt(6 / 5 * square))
    assert mean_of_means(["absent"], per_question, categories, {}) is None


def test_all_right_counts_groups() -> None:
    found = all_right({"a": 1.0, "b": 1.0, "c": 0.0}, {"a": "p", "b": "p", "c": "q"})
    assert (found.value, found.n) == (0.5, 2) and found.stderr == pytest.approx(0.5)


def test_pass_at_k_and_diversity_of_samples() -> None:
    scores = {"a": [1.0, 0.0, 0.0, 0.0], "b": [0.0] * 4}
    assert pass_at(scores) == pytest.approx({"pass@1": 0.125, "pass@2": 0.25, "pass@4": 0.5})
    assert pass_at({"a": [1.0]}) == {} and pass_at({"a": [0.5, 1.0]}) == {}
    answers = {"a": ["x", "x", "x"], "b": ["x", "y", "z"], "c": ["x"]}
    assert diversity(answers) == pytest.approx(0.5) and math.isnan(diversity({"c": ["x"]}))
