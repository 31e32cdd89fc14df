"""The mutations that scripts/checks/mutations.py applies still have a place and tests that exist."""

from collections import Counter

import pytest

from dopd_vlm.scripts.checks.mutation_cases import MUTATIONS, Mutation
from dopd_vlm.scripts.checks.mutations import ROOT, mutated


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: f"{one.file}:{one.old[:30]}")
def test_each_has_one_place_and_changes_it(mutation):
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert mutated(mutation, text) != text
    assert mutation.tests and all((ROOT / name).is_file() for name in mutation.tests)


def test_they_are_spread_and_none_stands_twice():
    parts = Counter(mutation.part for mutation in MUTATIONS)
    assert parts == {"core": 25, "data": 20, "eval": 15}
    assert len({(one.file, one.old) for one in MUTATIONS}) == len(MUTATIONS)


def test_a_place_that_is_gone_is_named():
    gone = Mutation(file="a.py", old="x", new="y", tests=())
    with pytest.raises(ValueError, match=r"a\.py holds 'x' 2 times"):
        mutated(gone, "x x")
