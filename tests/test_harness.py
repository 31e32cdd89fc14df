"""The harness: cache keys, resume after SIGKILL, shared work, memory, failures, real models."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
import torch
from rich.console import Console

from dopd_vlm.eval.benchmarks.benchmark import Benchmark, load_benchmark
from dopd_vlm.eval.completions.generators import FAILED, Completion, engine_generator
from dopd_vlm.eval.completions.requests import make_requests, model_fingerprint
from dopd_vlm.eval.completions.store import SampleStore
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.eval.results import tables as report
from dopd_vlm.eval.results.results import privilege_gap, read_results, results_json, write_results
from dopd_vlm.eval.results.stats import mean
from dopd_vlm.rollout import OwnEngine
from dopd_vlm.types import Sample, Sampling, View

TASK = Benchmark(
    name="sums", description="d", rows="r", answer_type="number", category="kind", cluster="image"
)


def samples(count: int = 7) -> list[Sample]:
    """Questions of different lengths; the privileged view holds the answer."""
    return [
        Sample(
            uid=f"q{i}",
            question="plus " * (i * 3 % 5) + f"what is {i} + 2?",
            answer=str(i + 2),
            answer_type="number",
            plain=View(),
            privileged=View(context=f"it is {i + 2}"),
            source={"kind": "odd" if i % 2 else "even", "image": i // 2},
        )
        for i in range(count)
    ]


class Fake:
    """Answers from the messages alone: right with a reference, else right for even numbers."""

    def __init__(self, kill_at: int | None = None, fits: int = 99) -> None:
        self.batches: list[int] = []
        self.kill_at, self.fits = kill_at, fits

    def __call__(self, prompts, sampling: Sampling, numbers: Sequence[int]) -> list[Completion]:
        self.batches.append(len(prompts))
        if len(self.batches) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(prompts) > self.fits:
            raise torch.OutOfMemoryError("no")
        draws = [number % 1000 if sampling.temperature else 0 for number in numbers]
        return [self.answer(m[-1]["content"], d) for m, d in zip(prompts, draws, strict=True)]

    def answer(self, text: str, noise: int) -> Completion:
        number = int(text.split("what is ")[1].split(" ")[0])
        right = "Reference" in text or number % 2 == 0
        words = f"drawn {noise} answer {number + 2 if right else -1}" if number != 5 else "no idea"
        return Completion(
            text=words, finish_reason="length" if number == 3 else "stop", num_tokens=number + 1
        )


def run(out: Path | None = None, *, generate=None, view="plain", **options):
    return evaluate(
        "fake", TASK, view=view, samples=samples(), generate=generate or Fake(), out=out, **options
    )


def test_results_are_those_of_the_answers() -> None:
    found = run()
    assert found.accuracy == pytest.approx(4 / 7)
    assert found.per_question == {f"q{i}": float(i % 2 == 0) for i in range(7)}
    assert found.unparsed_rate == pytest.approx(1 / 7)
    assert found.truncated_rate == pytest.approx(1 / 7)
    assert found.mean_tokens == pytest.approx(4.0)
    assert found.categories == {"even": 1.0, "odd": 0.0}
    assert found.category_stderr == {"even": 0.0, "odd": 0.0}
    assert found.stderr != pytest.approx(mean(list(found.per_question.values())).stderr)
    gap = privilege_gap(found, run(view="privileged"))
    assert gap["privilege_gap"] == pytest.approx(2 / 7)


def test_the_same_text_with_other_pixels_or_view_never_hits() -> None:
    one = tiny.vl_sample("a", seed=1, context="")
    same_text = tiny.vl_sample("a", seed=9, context="")
    keys = {
        request.key
        for sample in (one, same_text)
        for view in ("plain", "privileged")
        for model in ("m1", "m2")
        for tokens in (8, 9)
        for request in make_requests(
            TASK,
            [sample],
            view=view,
            sampling=Sampling(max_completion_length=tokens),
            model_hash=model,
        )
    }
    assert len(keys) == 16


def test_equal_views_have_keys_of_their_own() -> None:
    twin = tiny.text_sample("a", context="")
    settings = {"sampling": Sampling(), "model_hash": "m"}
    plain = make_requests(TASK, [twin], view="plain", **settings)[0]
    privileged = make_requests(TASK, [twin], view="privileged", **settings)[0]
    assert plain.prompt_hash == privileged.prompt_hash and plain.key != privileged.key


def test_a_line_cut_by_a_kill_does_not_spoil_the_next(tmp_path: Path) -> None:
    first = SampleStore(tmp_path, "t", "plain", 0)
    first.append([{"key": "a"}, {"key": "b"}])
    part = tmp_path / "samples_t__plain.part0.jsonl"
    part.write_bytes(part.read_bytes()[:-3])
    second = SampleStore(tmp_path, "t", "plain", 0)
    second.append([{"key": "c"}])
    assert list(second.finished()) == ["a", "c"]


def test_a_view_with_the_same_prompt_is_made_anew(tmp_path: Path) -> None:
    twins = [dataclasses.replace(sample, privileged=View()) for sample in samples()]
    counts = []
    for view in ("plain", "privileged", "plain"):
        fake = Fake()
        evaluate("fake", TASK, view=view, samples=twins, generate=fake, out=tmp_path)
        counts.append(sum(fake.batches))
    assert counts == [7, 7, 0]


def _killed(out: Path, at: int, options: dict) -> None:
    run(out, generate=Fake(kill_at=at), **options)


@pytest.mark.parametrize(
    "options", [{}, {"generation": {"num_generations": 3, "temperature": 1.0}}]
)
def test_kill_and_resume_is_the_uninterrupted_run(tmp_path: Path, options: dict) -> None:
    options = {"batch_size": 2, **options}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = run(whole, **options)
    child = multiprocessing.get_context("fork").Process(target=_killed, args=(broken, 3, options))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    part = next(broken.glob("*.part0.jsonl"))
    assert len(part.read_text().splitlines()) == 4
    part.write_bytes(part.read_bytes()[:-9])
    fake = Fake()
    found = run(broken, generate=fake, **options)
    num_batches = -(-7 * options.get("generation", {}).get("num_generations", 1) // 2)
    assert len(fake.batches) == num_batches - 1
    assert found.per_question == expected.per_question
    for name in ("samples_sums__plain.jsonl", "results_sums__plain.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert not list(broken.glob("*.part*"))


def test_finished_runs_are_not_repeated_and_scores_are_made_anew(tmp_path: Path) -> None:
    run(tmp_path)
    fake = Fake()
    strict = dataclasses.replace(TASK, answer_type="text")
    found = evaluate("fake", strict, samples=samples(), generate=fake, out=tmp_path)
    assert fake.batches == []
    assert found.unparsed_rate == 0.0 and found.accuracy == pytest.approx(4 / 7)


def test_out_of_memory_halves_the_batch_and_keeps_to_the_size_that_fits() -> None:
    fake = Fake(fits=2)
    assert run(generate=fake, batch_size=7).per_question == run().per_question
    assert fake.batches == [7, 4, 2, 2, 2, 1]
    with pytest.raises(ValueError, match="one prompt alone does not fit"):
        run(generate=Fake(fits=0))


def test_a_model_that_runs_out_of_memory_once_ends_with_the_same_answers(tmp_path: Path) -> None:
    policy = tiny.vl_policy()
    questions = [tiny.vl_sample(uid, seed=i) for i, uid in enumerate("abc")]
    options = {"samples": questions, "generation": {"max_completion_length": 4}}
    evaluate(policy, "shapes", out=tmp_path / "whole", **options)
    num_calls = 0

    def fails_once(*inputs) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    policy.backbone.register_forward_pre_hook(fails_once)
    evaluate(policy, "shapes", out=tmp_path / "halved", **options)
    assert num_calls > 2
    name = "samples_shapes__plain.jsonl"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halved" / name).read_bytes()


def test_empty_and_endless_answers_are_counted_apart() -> None:
    def mute(prompts, sampling: Sampling, numbers: Sequence[int]) -> list[Completion]:
        endless = Completion(text="one and " * 9, finish_reason="length", num_tokens=99)
        empty = Completion(text=" \n", finish_reason="stop", num_tokens=1)
        return [endless if "is 0 " in m[-1]["content"] else empty for m in prompts]

    found = run(generate=mute)
    rates = (found.unparsed_rate, found.empty_rate, found.truncated_rate)
    assert rates == pytest.approx((1.0, 6 / 7, 1 / 7))
    assert found.accuracy == 0.0
    assert "| 100.0 | 85.7 | 14.3 | 0.0 |" in report.markdown([found])


def test_failed_requests_are_counted_and_asked_again(tmp_path: Path) -> None:
    fake = Fake()

    def unsteady(prompts, sampling: Sampling, numbers: Sequence[int]) -> list[Completion]:
        lost = Completion(text="", finish_reason=FAILED, num_tokens=0, failure="status 500")
        made = fake(prompts, sampling, numbers)
        return [lost if i == 0 else one for i, one in enumerate(made)]

    broken = run(tmp_path, generate=unsteady, batch_size=7)
    assert (broken.failed_rate, broken.empty_rate) == pytest.approx((1 / 7, 0.0))
    assert "14.3" in report.markdown([broken]).splitlines()[2]
    lines = (tmp_path / "samples_sums__plain.jsonl").read_text()
    assert '"filter": "failed: status 500"' in lines
    whole = run(tmp_path)
    assert whole.failed_rate == 0.0 and whole.per_question == run().per_question


def test_questions_that_share_an_image_are_clustered() -> None:
    one, two = tiny.vl_sample("a", seed=1), tiny.vl_sample("b", seed=2)
    twin = dataclasses.replace(one, uid="c", question="what is 2 + 2?")
    asked = [dataclasses.replace(s, question=f"what is {i} + 2?") for i, s in enumerate((one, two))]

    def texts(prompts, sampling: Sampling, numbers: Sequence[int]) -> list[Completion]:
        return [Completion(text="answer 2", finish_reason="stop", num_tokens=1) for _ in prompts]

    task = dataclasses.replace(TASK, cluster=None)
    alone = evaluate("fake", task, samples=asked, generate=texts)
    shared = evaluate("fake", task, samples=[*asked, twin], generate=texts)
    assert alone.clusters == {}
    assert shared.clusters["a"] == shared.clusters["c"] != shared.clusters["b"]


def test_a_failing_scorer_is_counted() -> None:
    broken = [dataclasses.replace(sample, answer="none") for sample in samples()]
    found = evaluate("fake", TASK, samples=broken, generate=Fake())
    assert (found.error_rate, found.accuracy) == (1.0, 0.0)


def test_avg_and_pass_at_k() -> None:
    found = run(generation={"num_generations": 4, "temperature": 0.7})
    assert found.metric == "avg@4" and found.n == 7
    assert found.pass_at == pytest.approx({"pass@1": 4 / 7, "pass@2": 4 / 7, "pass@4": 4 / 7})


def test_results_file_has_the_field_names_and_reads_back(tmp_path: Path) -> None:
    found = [run(tmp_path), run(tmp_path, view="privileged")]
    write_results(found, tmp_path)
    tree = json.loads((tmp_path / "results.json").read_text())
    row = tree["results"]["sums__plain"]
    assert row["accuracy,none"] == pytest.approx(4 / 7) and row["accuracy_stderr,none"] > 0
    assert row["privilege_gap"] == pytest.approx(2 / 7) and row["view"] == "plain"
    assert tree["n-samples"]["sums__plain"] == {"original": 7, "effective": 7}
    assert tree["configs"]["sums__plain"]["gen_config"]["temperature"] == 0.0
    assert results_json(read_results(tmp_path)) == results_json(found)
    line = json.loads((tmp_path / "samples_sums__plain.jsonl").read_text().splitlines()[5])
    assert (
        line["resps"] == [["no idea"]]
        and line["filtered_resps"] == [None]
        and line["filter"] == "unparsed"
    )


def test_tables_show_gap_and_comparison(tmp_path: Path) -> None:
    plain, privileged = run(), run(view="privileged")
    text = report.markdown([plain, privileged])
    assert "| sums | accuracy | 57.1 ± " in text and "| +28.6 ± " in text
    same = report.comparison_markdown([plain], [plain])
    assert "| +0.0 ± 0.0 | 1 | 0 | 0 | 1 |" in same
    assert len(report.tables([plain])) == 1
    found = dataclasses.replace(plain, settings={"paper": {"Base": 40.0, "Method": 50.5}})
    other = dataclasses.replace(plain, name="other", settings={"paper": {"Method": 60.0}})
    lines = report.markdown([found, other, privileged]).splitlines()[-4:]
    assert lines[0] == "| task | this model | Base | Method |"
    assert [line.split(" | ")[2:] for line in lines[2:]] == [["40.0", "50.5 |"], ["-", "60.0 |"]]
    console = Console(width=60)
    with console.capture() as printed:
        console.print(*report.tables([found]))
    assert "50.5" in printed.get()
    with pytest.raises(ValueError, match=r"A has sums \(plain\), B has nothing"):
        report.comparison_markdown([plain], [])


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="view 'teacher'"):
        run(view="teacher")
    with pytest.raises(ValueError, match="no samples"):
        evaluate("fake", TASK, samples=[], generate=Fake())
    with pytest.raises(ValueError, match="uid 'q0'"):
        evaluate("fake", TASK, samples=[*samples(1), *samples(1)], generate=Fake())
    with pytest.raises(ValueError, match="unknown generation setting"):
        run(generation={"temprature": 1})


def test_a_real_tiny_model_does_not_depend_on_batching(tmp_path: Path) -> None:
    policy = tiny.vl_policy()
    questions = [tiny.vl_sample(uid, seed=i, size=(32 + 16 * i, 48)) for i, uid in enumerate("abc")]
    task = dataclasses.replace(
        load_benchmark("shapes"), generation=Sampling(max_completion_length=5)
    )
    texts = []
    for size in (1, 3):
        evaluate(policy, task, samples=questions, out=tmp_path / str(size), batch_size=size)
        lines = (tmp_path / str(size) / "samples_shapes__plain.jsonl").read_text().splitlines()
        texts.append([json.loads(line)["resps"] for line in lines])
        assert "how many a?" in json.loads(lines[0])["arguments"]["gen_args_0"]["arg_0"]
    assert texts[0] == texts[1] and len(texts[0]) == 3


def test_fingerprint_follows_every_weight() -> None:
    policy = tiny.text_policy()
    before = model_fingerprint(policy)
    assert before == model_fingerprint(tiny.text_policy())
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[3, 5] += 1e-6  # type: ignore[operator]
    assert model_fingerprint(policy) != before


SHARED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from dopd_vlm.distributed import process_state
import test_harness as t
fake = t.Fake()
found = t.run(Path(sys.argv[2]), generate=fake, batch_size=3)
assert process_state().num_processes == 2
assert sum(fake.batches) == (4, 3)[process_state().process_index]
assert found.n == 7
"""


def test_two_processes_share_the_questions(tmp_path: Path) -> None:
    expected = run(tmp_path / "one")
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    tests = str(Path(__file__).parent)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), tests, str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("samples_sums__plain.jsonl", "results_sums__plain.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert expected.n == 7


def test_a_prompt_that_the_model_cannot_take_costs_its_own_answer_alone() -> None:
    policy = tiny.text_policy(0)
    short = [{"role": "user", "content": "what ?"}]
    long = [{"role": "user", "content": "a " * 2 * policy.encoder.context}]
    special = [{"role": "user", "content": f"what {policy.tokenizer.eos_token} ?"}]
    complete = engine_generator(OwnEngine(policy), policy.encoder)
    made = complete([long, short, special], Sampling(max_completion_length=4), range(3))
    assert [one.finish_reason == FAILED for one in made] == [True, False, True]
    assert "the context of" in made[0].failure and "a special token of" in made[2].failure
    assert made[1].text == complete([short], Sampling(max_completion_length=4), [1])[0].text
