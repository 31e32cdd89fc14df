"""Every task on self-written rows in the benchmark's own schema: gold answers score 1, others 0."""

import dataclasses
import json
from pathlib import Path

import av
import pytest
import tiny
from PIL import Image

from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_samples
from dopd_vlm.eval.benchmarks.benchmark import Benchmark, benchmark_names, load_benchmark
from dopd_vlm.eval.benchmarks.convert import convert, to_row, to_rows
from dopd_vlm.eval.benchmarks.sources import raw_rows
from dopd_vlm.eval.completions.generators import Completion
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.eval.results.results import Results
from dopd_vlm.prompts import build_prompts
from dopd_vlm.scripts.wiring.samples import ImagePool
from dopd_vlm.types import Message, Sample

FIXTURES = Path(__file__).parent / "fixtures" / "tasks"
SOLUTIONS = {
    "humaneval": [
        "    return a + b\n",
        "```python\ndef last(xs: List[int]) -> int:\n    return xs[-1]\n```",
    ],
    "livecodebench": [
        "```python\na, b = map(int, input().split())\nprint(a + b)\nexit()\n```",
        "```python\nclass Solution:\n    def last(self, xs: List[int]) -> int:\n        return xs[-1]\n```",
    ],
    "autologi": [
        "First Cem.\n```json\n{'Ann': 2, \"Bob\": 3, 'Cem': 1}\n```",
        "inputs = [{'Ida'}, {'Kai', 'Jon'}]",
    ],
    "bfclv3": ["[rect.area(width=3, height=4.5)]", "None of the functions can be used."],
    "livebench": [
        "so **yes, no, yes**",
        "$\\boxed{2x}$",
        '```jsonl\n{"size": 2.0, "name": "fir"}\n```',
        "```python\nprint(a + b)\n```",
        '"The Sun rises."',
    ],
}
"""Answers of tasks whose gold is a test or an object, not a text."""
WRONG = {
    "humaneval": ["    return a - b\n", "import sys\nsys.exit(0)"],
    "livecodebench": [
        "print(3)",
        "class Solution:\n    def last(self, xs):\n        return xs[0]",
    ],
    "autologi": ["{'Ann': 1, 'Bob': 3, 'Cem': 2}", "[['Ida'], ['Jon', 'Kai']]"],
    "bfclv3": ["[rect.area(width=3, height=4)]", "[rect.area(width=3, height=4.5)]"],
    "livebench": [
        "so **yes, yes, yes**",
        "$\\boxed{x}$",
        '{"size": 3, "name": "fir"}',
        "```python\nprint(a)\n```",
        "The moon rises.",
    ],
    "zebralogic_grid": ['{"solution": {"House 1": {"Name": "Ann"}}}', "{}"],
}
TASKS = [name for name in benchmark_names() if load_benchmark(name).columns]


def samples_of(task: Benchmark, folder: Path) -> list[Sample]:
    tiny.image(40, 30).save(folder / "image.png")
    tiny.image(48, 30).save(folder / "wide.png")
    rows = to_rows(task, read_rows(FIXTURES / f"{task.name}.jsonl", root=folder))
    samples, skipped = make_samples(rows, [])
    assert not skipped, skipped
    return samples


def gold_of(name: str, samples: list[Sample]) -> list[str]:
    if name == "zebralogic_grid":
        return [json.dumps({"reasoning": "{}", "solution": json.loads(s.answer)}) for s in samples]
    alternatives = [
        json.loads(s.answer)[1] if s.answer.startswith('["') else s.answer for s in samples
    ]
    return SOLUTIONS.get(name) or alternatives


def prompt_key(messages: list[Message]) -> str:
    """What tells the questions of a fixture apart: words and sizes of images."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(block.get("text") or str(block["image"].size) for block in content)


def run(task: Benchmark, samples: list[Sample], answers: list[str]) -> Results:
    """Through the real path: prompts, completions, scorer, aggregate."""
    once = dataclasses.replace(task.generation, num_generations=1, temperature=0.0)
    task = dataclasses.replace(task, generation=once)
    prompts = [prompt_key(build_prompts(sample, task.prompts).plain) for sample in samples]
    assert len(set(prompts)) == len(prompts)
    texts = dict(zip(prompts, answers, strict=True))

    def complete(prompts, generation, seed):
        return [
            Completion(text=texts[prompt_key(p)], finish_reason="stop", num_tokens=1)
            for p in prompts
        ]

    found = evaluate("fake", task, samples=samples, generate=complete)
    assert found.error_rate == 0.0
    return found


@pytest.mark.parametrize("name", TASKS)
def test_gold_is_right_and_nonsense_is_not(name: str, tmp_path: Path) -> None:
    task = load_benchmark(name)
    samples = samples_of(task, tmp_path)
    assert len(samples) >= 2
    gold = gold_of(name, samples)
    assert run(task, samples, gold).accuracy == 1.0
    if name not in {*SOLUTIONS, *WRONG}:
        boxed = [f"\\boxed{{{answer}}}" for answer in gold]
        assert run(task, samples, boxed).accuracy == 1.0
    nonsense = WRONG.get(name) or ["I cannot say.", "", "no idea", "?"][: len(samples)]
    assert run(task, samples, nonsense).accuracy == 0.0


def test_yes_or_no_has_the_f1_of_yes(tmp_path: Path) -> None:
    task = load_benchmark("pope")
    pair = samples_of(task, tmp_path)[:2]
    assert [sample.answer for sample in pair] == ["yes", "no"]
    four = [
        dataclasses.replace(
            s,
            uid=f"{s.uid}{i}",
            question=f"{i} {s.question}",
            plain=dataclasses.replace(s.plain, images=(Image.new("RGB", (40 + i, 40)),)),
        )
        for i in range(2)
        for s in pair
    ]
    # One hit, one false alarm, one miss, one unread that is a no: 2 / (2 + 1 + 1).
    found = run(task, four, ["yes", "yes", "no", "?"])
    assert found.second["f1_yes"] == pytest.approx(0.5) and found.second["f1_yes_stderr"] > 0
    assert run(task, four, ["yes", "no", "yes", "no"]).second["f1_yes"] == 1.0
    assert "f1_yes" not in run(task, [pair[1]], ["no"]).second, "there is no yes"


def test_every_task_has_rows() -> None:
    assert {path.stem for path in FIXTURES.glob("*.jsonl")} == set(TASKS)


def test_images_and_their_places(tmp_path: Path) -> None:
    two, one, *_ = samples_of(load_benchmark("mmmu"), tmp_path)
    assert len(two.plain.images) == 2 and two.question.count("<image>") == 2
    assert one.answer_type == "number" and one.choices is None
    mc = samples_of(load_benchmark("zebralogic_mc"), tmp_path)
    assert "Who has" in mc[1].question
    _, options, both = samples_of(load_benchmark("mmmu_pro"), tmp_path)
    assert options.choices == {"A": "image 2", "B": "image 3"}
    assert "image 1" in options.question and "image 2" in both.question
    count, distance = samples_of(load_benchmark("vsibench"), tmp_path)
    assert len(count.plain.images) == 2 and count.answer_type == "number"
    assert distance.choices == {"A": "table", "B": "sofa", "C": "stove", "D": "bed"}


def test_questions_that_benchmarks_build(tmp_path: Path) -> None:
    """The shape of a grid, starter code, functions in the system turn, an open question's hint."""
    grid = samples_of(load_benchmark("zebralogic_grid"), tmp_path)[1].question
    assert grid.count('"Pet": "___"') == 2 and "Eva has a cat" in grid and '"Eva"' not in grid
    program, function = samples_of(load_benchmark("livecodebench"), tmp_path)
    assert "stdin" in program.question and "class Solution" in function.question
    call, weather = samples_of(load_benchmark("bfclv3"), tmp_path)
    assert call.question == "Area of 3 by 4.5?" and '"name": "rect.area"' in (call.system or "")
    assert (weather.system or "").endswith("Be brief.")
    assert [turn["content"] for turn in weather.history] == ["Hello.", "How can I help?"]
    choice, open_one = samples_of(load_benchmark("mathvista"), tmp_path)
    assert choice.question == "Which is larger?" and choice.answer == "B"
    assert open_one.question.startswith("Hint: Please answer")


def test_second_metrics(tmp_path: Path) -> None:
    """Partly right answers, by hand: cells, worst case over variants, means of means, figures."""
    half = ['{"House 1": {"Name": "ann", "Drink": ["milk"]}}', "none"]
    task = load_benchmark("zebralogic_grid")
    found = run(task, samples_of(task, tmp_path), half)
    assert (found.accuracy, dict(found.second)) == (
        0.0,
        {"cell_accuracy": 0.25, "cell_accuracy_stderr": 0.25},
    )
    task = load_benchmark("dynamath")
    found = run(task, samples_of(task, tmp_path), ["-2.501", "B", "5:0"])
    assert (found.accuracy, found.second["worst_case"]) == (2 / 3, 0.5)
    task = load_benchmark("mmmu")
    found = run(task, samples_of(task, tmp_path), ["B", "5.004", "6.51"])
    assert list(found.per_question.values()) == [1, 1, 0]
    task = load_benchmark("hallusionbench")
    found = run(task, samples_of(task, tmp_path), ["yes", "yes"])
    assert (found.second["qAcc"], found.second["fAcc"]) == (0.5, 0.0)
    task = load_benchmark("vsibench")
    found = run(task, samples_of(task, tmp_path), ["5", "A"])
    # |5 - 4| / 4 = 0.25 is within 1 - t for t = 0.5, 0.55, ..., 0.75: 6 thresholds of 10.
    assert found.second["vsi"] == pytest.approx((0.6 + 0) / 2)


def test_means_of_means(tmp_path: Path) -> None:
    """CV-Bench's official mean: half 2D, which is half of each source, and half 3D."""
    task = load_benchmark("cvbench")
    sources = ["ADE20K"] * 4 + ["COCO", "Omni3D"]
    row = json.loads((FIXTURES / "cvbench.jsonl").read_text().splitlines()[0])
    tiny.image(40, 30).save(tmp_path / "image.png")
    raw = [{**row, "idx": i, "source": s, "question": "x" * (i + 1)} for i, s in enumerate(sources)]
    samples, _ = make_samples(to_rows(task, read_rows(raw, root=tmp_path)), [])
    found = run(task, samples, ["C", "A", "A", "A", "C", "A"])
    assert found.accuracy == pytest.approx(2 / 6)
    assert found.second["official"] == pytest.approx(((0.25 + 1) / 2 + 0) / 2)


def test_option_order_depends_on_the_question_alone() -> None:
    task = load_benchmark("gpqa_diamond")
    raw = [json.loads(line) for line in (FIXTURES / "gpqa_diamond.jsonl").read_text().splitlines()]
    alone = to_row(task, raw[1], 1)
    assert to_rows(task, raw)[1] == alone
    assert alone["choices"][alone["answer"]] == "argon"
    orders = {tuple(to_row(task, raw[1], i)["choices"].values()) for i in range(30)}
    assert len(orders) > 5


def test_options_keep_names_that_look_like_letters() -> None:
    task = load_benchmark("mmlu_pro")
    row = json.loads((FIXTURES / "mmlu_pro.jsonl").read_text().splitlines()[1])
    made = to_row(task, {**row, "options": ["yeast", "virus", "C. elegans"]}, 0)
    assert list(made["choices"].values()) == ["yeast", "virus", "C. elegans"]


def test_parts_are_read_in_turn() -> None:
    """Every subject before the second question of any; ids may repeat between them."""
    asked = []

    def read(source, *, split, name):
        asked.append((source, split, name))
        count = 2 if len(asked) == 1 else 1
        return [
            {"id": i, "question": "?", **dict.fromkeys("ABCD", "o"), "answer": "A"}
            for i in range(count)
        ]

    task = load_benchmark("ceval")
    rows = to_rows(task, raw_rows(task, read))
    assert len(asked) == 52 and asked[1] == ("ceval/ceval-exam", "val", task.configs[1])
    assert [row["meta"]["category"] for row in rows[:52]] == list(task.configs)
    assert rows[52]["meta"]["category"] == task.configs[0]
    assert len({row["uid"] for row in rows}) == 53
    asked.clear()
    raw_rows(load_benchmark("livebench"), read)
    assert asked[1] == ("livebench/math", "test", None)


def test_files_are_joined_with_their_answers(tmp_path: Path) -> None:
    fixture = [json.loads(line) for line in (FIXTURES / "bfclv3.jsonl").read_text().splitlines()]
    answers = tmp_path / "possible_answer"
    answers.mkdir()
    for row, name in zip(fixture, ("simple", "live_irrelevance"), strict=True):
        gold = {"id": row["id"], "ground_truth": row.pop("ground_truth")}
        (tmp_path / f"BFCL_v3_{name}.json").write_text(json.dumps(row) + "\n")
        if gold["ground_truth"]:
            (answers / f"BFCL_v3_{name}.json").write_text(json.dumps(gold) + "\n")
    (tmp_path / "BFCL_v3_multi_turn_base.json").write_text("{}\n")
    task = load_benchmark("bfclv3")
    rows = to_rows(task, raw_rows(task, read_rows, str(tmp_path)))
    assert {row["meta"]["category"] for row in rows} == {"simple", "live_irrelevance"}
    assert any('"width": [3]' in row["answer"] for row in rows)
    with pytest.raises(ValueError, match="no file named BFCL"):
        raw_rows(task, read_rows, str(FIXTURES))


def test_rows_outside_the_release_are_counted() -> None:
    task = load_benchmark("livebench")
    good = [json.loads(line) for line in (FIXTURES / "livebench.jsonl").read_text().splitlines()]
    late = {**good[0], "livebench_release_date": "2025-05-30T00:00:00"}
    removed = {**good[0], "livebench_removal_date": "2024-11-25"}
    found = convert(task, [late, *good, removed])
    assert (len(found.rows), found.left_out, found.problems) == (5, 2, [])
    with pytest.raises(ValueError, match=r"keeps rows whose .*2024-11-25.*none of the 1 is such"):
        convert(task, [late])
    assert len(convert(task, [*good, *good], limit=1).rows) == 1


def test_rows_without_answers_are_named() -> None:
    task = load_benchmark("math500")
    good = json.loads((FIXTURES / "math500.jsonl").read_text().splitlines()[0])
    found = convert(task, [good, {**good, "answer": ""}, {**good, "answer": None}])
    assert len(found.rows) == 1
    assert found.problems == [
        f"task 'math500' row {i}: it has no answer in column 'answer'" for i in (2, 3)
    ]
    with pytest.raises(ValueError, match=r"none of 1 rows can be used.*hides its answers.*--rows"):
        convert(task, [{**good, "answer": None}])


def test_missing_columns_are_named() -> None:
    with pytest.raises(
        ValueError, match="no column 'problem' or 'answer' or 'subject'; they have: question"
    ):
        to_rows(load_benchmark("math500"), [{"question": "1 + 1?"}])


def test_equal_images_are_held_once(tmp_path: Path) -> None:
    pool = ImagePool()
    samples = [pool.share(one) for one in samples_of(load_benchmark("vsibench"), tmp_path)]
    (other,) = samples_of(load_benchmark("mmmu_pro_vision"), tmp_path)[1:]
    views = [view for one in samples for view in (one.plain, one.privileged)]
    assert len({id(image) for view in views for image in view.images}) == 1
    assert pool.share(other).plain.images[0].size == (48, 30)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        (
            "mmstar",
            "which fills the cache.*hf download Lin-Chen/MMStar --repo-type dataset.*--rows DIR/FILE",
        ),
        ("livebench", "hf download livebench/reasoning .*; hf download livebench/math "),
        ("gpqa_diamond", "gated: accept its terms"),
        ("autologi", "AutoLogi_en.jsonl from the repository 8188zq/AutoLogi"),
        ("vsibench", "unzip its videos"),
    ],
)
def test_absent_rows_say_how_to_get_them(name: str, advice: str) -> None:
    def read(source, *, split, name):
        raise ValueError(f"{source!r} is no file here, and the hub failed\nwith a long story")

    with pytest.raises(ValueError, match=rf"task {name!r}: .* and the hub failed; .*{advice}"):
        raw_rows(load_benchmark(name), read)


def test_videos_become_frames(tmp_path: Path) -> None:
    """A film of growing brightness: its frames are evenly spread, and made once."""
    (tmp_path / "scannet").mkdir()
    with av.open(str(tmp_path / "scannet" / "s1.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(0, 240, 3):
            image = Image.new("RGB", (64, 48), (shade, shade, shade))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    row = json.loads((FIXTURES / "vsibench.jsonl").read_text().splitlines()[0])
    row = {**row, "dataset": "scannet", "frames": None}
    task = dataclasses.replace(load_benchmark("vsibench"), frames=4)
    (made,) = to_rows(task, read_rows([row], root=tmp_path))
    (sample,), _ = make_samples([made], [])
    shades = [image.convert("L").getpixel((32, 24)) for image in sample.plain.images]
    # The middles of four parts of 80 frames are frames 10, 30, 50 and 70, three shades a frame.
    assert shades == pytest.approx([30, 90, 150, 210], abs=6)
    written = [
        (path, path.stat().st_mtime_ns) for path in [tmp_path / name for name in made["images"]]
    ]
    to_rows(task, read_rows([row], root=tmp_path))
    assert [(path, path.stat().st_mtime_ns) for path, _ in written] == written
    with pytest.raises(ValueError, match=r"no video .*s2.mp4; unpack"):
        to_rows(task, read_rows([{**row, "scene_name": "s2"}], root=tmp_path))
