"""Profiles over tasks, result folders that come together, and what both refuse."""

import dataclasses
import json
from pathlib import Path

import pytest
from test_endpoint import TASK, right, samples, server

from dopd_vlm.config import ModelConfig
from dopd_vlm.data.embedded.sets import embedded_model
from dopd_vlm.endpoint import Endpoint
from dopd_vlm.eval.benchmarks.benchmark import SUITES, load_benchmark
from dopd_vlm.eval.benchmarks.profile import Profile, load_profile, profile_names
from dopd_vlm.eval.completions.requests import with_pixels
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.eval.results.merge import check_folder, merge, with_earlier
from dopd_vlm.eval.results.results import read_results, write_results
from dopd_vlm.models.policy import load_policy


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_fits_every_task_of_the_suites(name: str) -> None:
    profile = load_profile(name)
    tasks = [load_benchmark(task) for suite in SUITES.values() for task in suite]
    changed = [profile.task(task) for task in tasks]
    assert [task.name for task in changed] == [task.name for task in tasks]
    for task in changed:
        for setting, value in profile.generation.items():
            own = profile.tasks.get(task.name, {}).get("generation", {})
            assert getattr(task.generation, setting) == own.get(setting, value)
    assert set(profile.tasks) <= {task.name for task in map(load_benchmark, ("aime24",))} | {
        *SUITES["paper_vlm"], *SUITES["paper_llm"], "mathvista",
    }  # fmt: skip


def test_what_the_profiles_say() -> None:
    qwen = load_profile("qwen3_vl")
    mmmu = qwen.task(load_benchmark("mmmu"))
    assert (mmmu.generation.temperature, mmmu.generation.presence_penalty) == (0.7, 1.5)
    assert mmmu.prompts.choice.startswith("Question: {question}\nOptions:\n{options}\n")
    assert qwen.pixel_limits("mmmu") == (1280 * 28 * 28, 5120 * 28 * 28)
    assert qwen.pixel_limits("mathvision") == (768 * 28 * 28, 5120 * 28 * 28)
    aime = load_profile("qwen3").task(load_benchmark("aime25"))
    assert aime.generation.max_completion_length == 38912 and aime.generation.num_generations == 16
    assert load_profile("qwen3").template_kwargs == {"enable_thinking": False}
    greedy = load_profile("greedy").task(load_benchmark("aime25")).generation
    assert (greedy.temperature, greedy.num_generations) == (0.0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [("description: d\nsource: s\nspeed: 1\n", "unknown setting of mine.yaml"),
     ("description: d\n", "lacks source"), ("- 1\n", "must hold settings"),
     ("description: d\nsource: s\ngeneration: {warmth: 1}\n", "unknown generation setting"),
     ("description: d\nsource: s\npixels: [9, 3]\n", "must be"),
     ("description: d\nsource: s\ntasks: {mmmu: {rows: x}}\n", "task 'mmmu'")],
)  # fmt: skip
def test_profiles_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_profile(str(path)).task(TASK)
    with pytest.raises(ValueError, match=r"unknown profile 'qwen3_v'.*near: qwen3_vl"):
        load_profile("qwen3_v")


def test_penalties_and_pixels_reach_the_server_and_change_the_keys(tmp_path: Path) -> None:
    profile = Profile(name="p", description="d", source="s", generation={"presence_penalty": 1.5})
    with server(right) as (url, bodies):
        where = Endpoint(url=url, model="small")
        task = profile.task(TASK)
        evaluate(where, task, samples=samples(2), pixels=(100, 900), out=tmp_path)
        evaluate(where, task, samples=samples(2), pixels=(100, 901), out=tmp_path)
        assert len(bodies) == 4
    assert bodies[0]["presence_penalty"] == 1.5
    assert bodies[0]["mm_processor_kwargs"] == {"min_pixels": 100, "max_pixels": 900}


def test_a_local_model_scales_images_within_the_pixels() -> None:
    path = str(embedded_model("embedded:student_vl"))
    policy = load_policy(ModelConfig(path=path), device="cpu", trainable=False)
    before = dict(policy.processor.image_processor.size)
    limited = with_pixels(policy, (64 * 64, 96 * 96))
    from PIL import Image

    sizes = [
        one.processor.image_processor(Image.new("RGB", (32, 32)), return_tensors="pt")[
            "image_grid_thw"
        ]
        for one in (policy, limited)
    ]
    assert sizes[1].prod() > sizes[0].prod()
    assert dict(policy.processor.image_processor.size) == before


def results(folder: Path, name: str, model: str = "m"):
    def generate(prompts, generation, seed):
        from dopd_vlm.eval.completions.generators import Completion

        return [Completion(text="answer 2", finish_reason="stop", num_tokens=3) for _ in prompts]

    task = dataclasses.replace(TASK, name=name)
    found = evaluate(model, task, samples=samples(3), generate=generate, out=folder)
    write_results([found], folder)
    return found


def test_folders_of_one_model_come_together(tmp_path: Path) -> None:
    for folder, task in (("a", "sums"), ("b", "others")):
        results(tmp_path / folder, task)
    together = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert [one.name for one in together] == ["sums", "others"]
    for task in ("sums", "others"):
        assert (tmp_path / "out" / f"samples_{task}__plain.jsonl").is_file()
    # A later task in a folder joins the earlier ones; the same one again takes its place.
    again = results(tmp_path / "c", "sums")
    write_results(together, tmp_path / "out")
    assert [one.name for one in with_earlier(tmp_path / "out", [again])] == ["sums", "others"]


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    results(tmp_path / "a", "sums")
    results(tmp_path / "b", "others", model="other")
    with pytest.raises(ValueError, match="2 models"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds results of 'm', not of 'other'"):
        check_folder(tmp_path / "a", "other")
    with pytest.raises(ValueError, match="no evaluation results"):
        merge([tmp_path / "absent"], tmp_path / "out")
    tree = json.loads((tmp_path / "a" / "results.json").read_text())
    tree["dopd"][0]["per_question"]["q0"] = 0.25
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "results.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="stands with different results"):
        merge([tmp_path / "a", tmp_path / "d"], tmp_path / "out")
    assert read_results(tmp_path / "a")[0].model == "m"
