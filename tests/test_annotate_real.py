"""The annotating pipeline against real servers: `transformers serve`, and llama.cpp with real weights."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from real_server import llama_cpp_serve, transformers_serve

from dopd_vlm.data.annotate.outcomes import Task
from dopd_vlm.data.annotate.pipeline import annotate
from dopd_vlm.data.annotations.disclosure import disclosed
from dopd_vlm.data.embedded.sets import embedded_model
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.validate import validate
from dopd_vlm.data.views import make_samples
from dopd_vlm.endpoint import Endpoint

pytestmark = pytest.mark.slow
QUESTIONS = {
    "Tom has 7 apples and gives 2 to Ann. How many apples are left?": "5",
    "A train goes 60 km in one hour. How far does it go in three hours?": "180",
    "Which is larger, the sun or the moon?": "sun",
    "What is the capital of France?": "Paris",
}


def text_rows(folder: Path):
    rows = [
        {"uid": f"q{n}", "question": question, "answer": answer}
        for n, (question, answer) in enumerate(QUESTIONS.items())
    ]
    return read_rows(rows, root=folder)


@pytest.fixture(scope="module")
def smollm2_gguf(tmp_path_factory) -> Path:
    """The file with the real weights: SmolLM2-135M-Instruct in 4 bits."""
    spec = importlib.util.spec_from_file_location(
        "make_smollm2", Path(__file__).parents[1] / "scripts" / "make" / "smollm2.py"
    )
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    try:
        return script.checked(script.gguf_file(tmp_path_factory.mktemp("gguf")))
    except ValueError as error:
        pytest.skip(f"no real weights: {error}")


def test_a_real_model_writes_rows_that_pass_the_recheck_and_train(smollm2_gguf, tmp_path) -> None:
    """SmolLM2 holds to a form only when llama.cpp makes it: then some rows are kept, and those whose
    hints tell the answer are dropped like a strong model's."""
    pytest.importorskip("xllamacpp", reason="the extra `dev` has it")
    rows = text_rows(tmp_path)
    with llama_cpp_serve(smollm2_gguf) as url:
        where = Endpoint(url=url, model="smollm2", max_tokens=128, max_concurrent=2)
        outcomes = {
            (kind, held): annotate(
                rows,
                tmp_path / f"{kind}{held}",
                Task(kinds=(kind,), attempts=1, json_schema=held),
                where,
            )
            for kind, held in (("solution", True), ("hints", True), ("hints", False))
        }
    for outcome in outcomes.values():
        assert (outcome.stopped, outcome.pending) == ("", 0)
        assert outcome.kept + sum(outcome.dropped.values()) == len(rows)
        assert outcome.progress.prompt_tokens > outcome.progress.completion_tokens > 0
    solved = outcomes["solution", True]
    assert solved.kept >= 3, (
        "a weak model, but its solutions are of the form and it finds them good"
    )
    assert set(solved.dropped) <= {"cut", "recheck"}
    assert outcomes["hints", True].dropped.get("disclosure", 0) >= 1
    assert set(outcomes["hints", False].dropped) & {"no JSON", "form"}, "left free it writes prose"
    made = read_rows(tmp_path / "solutionTrue")
    assert validate(made).problems == []
    samples, skipped = make_samples(made, ["solution"])
    assert len(samples) == solved.kept and not skipped
    told = Counter(bool(disclosed(s.privileged.context, s.answer)) for s in samples)
    assert told[True] >= 1, "some of what it wrote solves the question"


@pytest.mark.parametrize(("name", "kind"), [("student_text", "hints"), ("student_vl", "boxes")])
def test_transformers_serve_speaks_the_same_protocol(tmp_path, name, kind) -> None:
    """With an embedded student: its replies are no JSON, but counted and kept."""
    model = str(embedded_model(f"embedded:{name}"))
    Image.new("RGB", (200, 100), "teal").save(tmp_path / "p.png")
    images = {"images": ["p.png"]} if kind == "boxes" else {}
    rows = [{**row, **images} for row in list(text_rows(tmp_path))[:3]]
    with transformers_serve(model) as url:
        where = Endpoint(url=url, model=model, max_tokens=8, max_concurrent=2, timeout_s=60)
        outcome = annotate(rows, tmp_path / "real", Task(kinds=(kind,), attempts=1), where)
    assert outcome.stopped == "" and outcome.pending == 0
    assert outcome.kept + sum(outcome.dropped.values()) == 3 and "rejected" not in outcome.dropped
    assert outcome.progress.num_requests >= 3
    assert outcome.progress.prompt_tokens > 0 and outcome.progress.completion_tokens > 0
