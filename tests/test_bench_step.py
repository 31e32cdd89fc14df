"""`bench.py step` and `bench.py rollout` on tiny sizes: every variant does the same work, timings add up."""

import json

import pytest
import torch

from dopd_vlm.scripts.benchmarks import rollout as bench_rollout
from dopd_vlm.scripts.benchmarks import step as bench_step
from dopd_vlm.scripts.benchmarks import timings as bench_timings

SIZES = [
    "--prompts",
    "2",
    "--generations",
    "2",
    "--tokens",
    "4",
    "--repeats",
    "1",
    "--threads",
    "1",
]
WORK = 2 * 2 * 4


def measured(module, folder, *options) -> dict:
    module.main([*SIZES, "--out", str(folder), *options])
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("one_thread")
def test_every_variant_of_a_step_does_the_same_work(tmp_path):
    names = ["dopd", "dopd-pixels", "opd_full_kl"]
    options = ["--model", "embedded_vl", "--micro", "2", "--variants", *names]
    timings = measured(bench_step, tmp_path, *options)["timings"]
    assert {name: len(steps) for name, steps in timings.items()} == dict.fromkeys(names, 1)
    for steps in timings.values():
        assert steps[0]["tokens"] == WORK
        assert all(steps[0][phase] > 0 for phase in bench_step.PHASES)
    # Both ways to the same rollouts: seeded by the step, which each variant counts for itself.
    assert share(timings["dopd"]) == share(timings["dopd-pixels"])
    assert sum(share(timings["dopd"])) == 1


def share(steps: list[dict]) -> list[float]:
    return [steps[0][f"share/{name}"] for name in ("lh", "ll", "ht", "hs")]


def test_timings_join_earlier_ones_on_the_same_terms_only(tmp_path):
    args = bench_timings.bench_parser("x", None).parse_args(["--out", str(tmp_path)])

    def write(variant: str, **terms) -> dict:
        for name, value in terms.items():
            setattr(args, name, value)
        timings = {variant: [{"rollout": 2.0, "tokens": 6.0}]}
        made = bench_timings.write(args, "x", bench_timings.report_of(args, timings, {}))
        return {name: len(calls) for name, calls in made["timings"].items()}

    assert write("a") == {"a": 1}
    assert write("b") == {"a": 1, "b": 1}
    assert write("a", repeats=9) == {"a": 2, "b": 1}
    assert write("a", tokens=3) == {"a": 1}


@pytest.mark.usefixtures("one_thread")
def test_images_are_sampled_by_us_and_by_generate_alone(tmp_path):
    report = measured(bench_rollout, tmp_path, "--model", "embedded_vl")
    assert {name: calls[0]["tokens"] for name, calls in report["timings"].items()} == {
        "ours": WORK, "generate": WORK,
    }  # fmt: skip
    assert report["failed"] == {"generate_batch": "takes no images"}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_trl_and_continuous_batching_do_the_same_work(tmp_path):
    pytest.importorskip("trl")
    steps = measured(bench_step, tmp_path / "s", "--model", "embedded_text", "--micro", "2")
    calls = measured(bench_rollout, tmp_path / "r", "--model", "embedded_text")
    assert steps["timings"].keys() == {"opd", "opd_full_kl", "dopd", "trl"}
    assert calls["timings"].keys() == {"ours", "generate", "generate_batch"}
    for found in (*steps["timings"].values(), *calls["timings"].values()):
        assert [one["tokens"] for one in found] == [WORK]


@pytest.fixture
def one_thread():
    """The benchmarks set the number of threads of the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
