"""Statistics against direct calculation."""

import math
import random
import statistics

import pytest

from dopd_vlm.eval.stats import (
    avg_at_k,
    bootstrap_ratio,
    clustered_mean,
    mcnemar,
    mean,
    paired_difference,
    pass_at_k,
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


def test_avg_at_k_weighs_questions_equally() -> None:
    found = avg_at_k({"a": [1.0, 0.0], "b": [1.0, 1.0, 1.0, 1.0], "c": [0.0]})
    assert found.value == pytest.approx(0.5) and found.n == 3


def test_bootstrap_of_a_mean_agrees_with_its_closed_form() -> None:
    scores = values(60)
    found = bootstrap_ratio(scores, [1.0] * 60)
    assert found.value == pytest.approx(mean(scores).value)
    assert found.stderr == pytest.approx(mean(scores).stderr, rel=0.1)
    assert found == bootstrap_ratio(scores, [1.0] * 60)
