"""`dopd make-tiny` and the page about it: models that read the rows, the same for the same seed; a gain by DOPD."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pages import blocks_of, run_command, run_python
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer

from dopd_vlm.data.views import make_samples
from dopd_vlm.eval.results.results import read_results
from dopd_vlm.scripts.main import main
from dopd_vlm.scripts.make import tiny_models
from dopd_vlm.types import Sample, View

PAGE = Path(__file__).parents[1] / "data" / "FROM_YOUR_ROWS.md"
FEW = tiny_models.Plan(batch_size=8, teacher_steps=3, told_steps=2, seen_steps=2, check_every=2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(tiny_models, "plan_of", lambda num_rows, seed: FEW)


def run_the_page(*overrides: str, shrink: bool) -> None:
    """All blocks; fewer rows when it is run in small."""
    names: dict = {}
    for kind, code, _ in blocks_of(PAGE):
        if kind == "python":
            small = code.replace('"flags", 1000', '"flags", 48').replace(
                '"flags_test", 200', '"flags_test", 12'
            )
            run_python(PAGE.name, small if shrink else code, names)
            continue
        for line in code.strip().splitlines():
            run_command(" ".join([line, *overrides]) if line.startswith("dopd train") else line)


def test_the_page_in_small(folder, few_steps, capsys):
    run_the_page(
        "optim.max_steps=1", "optim.batch_size=2", "rollout.num_generations=2", shrink=True
    )
    recipe = yaml.safe_load(Path("models/recipe.yaml").read_text())
    assert recipe["evaluation"]["tasks"] == ["models/test.yaml"]
    table = Path("models/table.md").read_text()
    assert "| teacher |" in table and "DOPD" in table
    told = "43 rows to learn from, 5 for the student's stop, 12 held out"
    assert told in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained("models/student")
    assert (
        tokenizer.unk_token_id not in tokenizer("Which colour has the turquoise stripe?").input_ids
    )
    AutoProcessor.from_pretrained("models/teacher")
    rows = json.loads(Path("runs/models_dopd/rows.json").read_text())
    assert rows == {"good": 48, "bad": 0, "unscorable": 0, "unknown": {}, "left_out": {"test": 0}}
    (result, *_) = read_results(Path("runs/models_dopd/evaluations/step_000001.json"))
    assert (result.name, result.n) == ("test", 12)


def text_rows(path: Path, count: int) -> None:
    """Text rows whose golds no word-level tokenizer gives back."""
    rows = [
        {"uid": str(i), "question": f"Say {i % 3}.5!", "answer": f"{i % 3}.5", "answer_type": "number",
         "annotations": {"hints": [f"wholesome {i % 3}"]}}
        for i in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_text_rows_give_text_models_and_the_same_ones_again(folder, few_steps, capsys):
    text_rows(Path("rows.jsonl"), 48)
    for out in ("a", "b"):
        assert main(["make-tiny", "rows.jsonl", "--annotations", "hints", "--out", out]) == 0
    assert "cannot be written" not in capsys.readouterr().out, "each gold is one token"
    for name in ("teacher", "student"):
        first, second = (load_file(f"{out}/{name}/model.safetensors") for out in ("a", "b"))
        assert all((second[key] == value).all() for key, value in first.items())
    assert "evaluation" not in yaml.safe_load(Path("a/recipe.yaml").read_text())


def test_too_few_rows_or_no_gold_is_told(folder, capsys):
    text_rows(Path("rows.jsonl"), 5)
    assert main(["make-tiny", "rows.jsonl", "--annotations", "hints", "--out", "a"]) == 2
    assert "5 good rows; at least 40" in capsys.readouterr().err
    assert main(["make-tiny", "rows.jsonl", "--annotations", "hnits", "--out", "a"]) == 2
    assert "near: hints" in capsys.readouterr().err
    assert not Path("a").exists()


def samples_on(images: list[Image.Image], per_image: int) -> list[Sample]:
    return [
        Sample(
            uid=f"{at}-{k}", question="q", answer="a",
            plain=View(images=(image,)), privileged=View(images=(image,), context=f"c{at}"),
        )
        for at, image in enumerate(images)
        for k in range(per_image)
    ]  # fmt: skip


def test_questions_on_one_image_are_held_out_together():
    images = [Image.new("RGB", (32, 32), (10 * i, 0, 0)) for i in range(20)]
    samples = samples_on(images, 3)
    train, held = tiny_models.split(samples, 0.1, 400, seed=0)
    assert len(train) + len(held) == 60 and len(held) == 6
    assert not {s.uid.split("-")[0] for s in train} & {s.uid.split("-")[0] for s in held}
    assert tiny_models.split(samples, 0.1, 400, seed=0)[1] == held
    assert tiny_models.split(samples, 0.1, 400, seed=1)[1] != held
    assert len(tiny_models.split(samples, 0.1, 3, seed=0)[1]) == 3
    with pytest.raises(ValueError, match="more images"):
        tiny_models.split(samples[:3], 0.1, 400, seed=0)


def test_misled_samples_keep_their_words_and_change_images():
    import numpy as np

    images = [Image.new("RGB", (32, 32), (10 * i, 0, 0)) for i in range(8)]
    samples = samples_on(images, 1)
    others = tiny_models.misled(samples, np.random.default_rng(0))
    assert [o.privileged.context for o in others] == [s.privileged.context for s in samples]
    assert [o.plain for o in others] == [s.plain for s in samples]
    assert sorted(id(o.privileged.images[0]) for o in others) == sorted(map(id, images))
    assert any(
        o.privileged.images != s.privileged.images for o, s in zip(others, samples, strict=True)
    )


def test_the_teacher_is_asked_for_the_privileged_text_where_there_is_one():
    (seen,) = samples_on([Image.new("RGB", (32, 32))], 1)
    asked = tiny_models.describing(replace(seen, choices={"A": "a", "B": "b"}))
    assert (asked.answer, asked.choices, asked.plain) == ("c0", None, seen.plain)
    assert asked.question != seen.question
    policy = tiny_models.warm_start("teacher", [seen])
    assert policy.tokenizer.unk_token_id not in policy.tokenizer(asked.question).input_ids
    inputs = tiny_models.batch_of(policy, [asked], "plain")
    said = policy.tokenizer.decode(inputs["labels"][inputs["labels"] >= 0])
    given = policy.tokenizer.decode(inputs["input_ids"][inputs["labels"] < 0])
    assert "c0" in said and "c0" not in given, "the text is the answer alone"
    unseen = replace(seen, plain=View(), privileged=View(context="c0"))
    untold = replace(seen, privileged=seen.plain)
    assert [tiny_models.describing(one) for one in (unseen, untold)] == [unseen, untold]


def test_rows_in_words_of_their_own_are_read_and_written_back():
    rows = [{"uid": "a", "question": "Welche Farbe hat €?", "answer": "dunkel-grün"}]
    samples, _ = make_samples(rows, [])
    policy = tiny_models.warm_start("student", samples)
    ids = policy.tokenizer("Welche Farbe hat €? dunkel-grün").input_ids
    assert policy.tokenizer.unk_token_id not in ids
    assert tiny_models.unwritable(samples, policy) == 0
    assert policy.model.get_input_embeddings().weight.shape[0] == len(policy.tokenizer)


@pytest.mark.slow
def test_the_page_as_it_stands_gains_ten_points(folder):
    run_the_page(shrink=False)
    before, after, teacher = (
        {r.view: r.accuracy for r in read_results(Path(f"runs/models_dopd/evaluations/{n}.json"))}
        for n in ("step_000000", "step_000250", "teacher")
    )
    assert teacher["plain"] >= 0.8
    assert before["privileged"] >= 0.85 and 0.3 <= before["plain"] <= 0.65
    assert after["plain"] >= before["plain"] + 0.1
