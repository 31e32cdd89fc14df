"""Checks our exports with the programs they are for: the same answers must get the same scores.

    python scripts/checks/exports.py [bfcl] [vlmevalkit]

Each program gets an environment of its own in the cache on first use. The answers are made up, right
ones and wrong ones in turn: to questions that bfcl-eval ships, and to those of the embedded scenes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dopd_vlm.data.views import make_samples
from dopd_vlm.eval.benchmarks.benchmark import load_benchmark
from dopd_vlm.eval.benchmarks.convert import convert
from dopd_vlm.eval.bridges.export_questions import Export
from dopd_vlm.eval.bridges.exports import export
from dopd_vlm.eval.completions.generators import Completion
from dopd_vlm.eval.completions.requests import digest
from dopd_vlm.eval.completions.store import SampleStore
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.eval.results.results import Results
from dopd_vlm.prompts import build_prompts
from dopd_vlm.scripts.check_task_rows import gold_text, wrong_text
from dopd_vlm.scripts.checks.environments import environment
from dopd_vlm.scripts.wiring.samples import task_rows
from dopd_vlm.types import Message, Sampling

MODEL = "Qwen/Qwen3-1.7B"
"""bfcl-eval takes only names that it knows; no model is run."""
VLMEVALKIT_NEEDS = (
    "validators", "tabulate", "timeout-decorator", "sty", "portalocker", "dotenv", "openpyxl",
    "xlsxwriter", "pylatexenc", "json_repair", "anls", "apted", "distance", "editdistance",
    "levenshtein", "num2words", "rouge", "tiktoken", "termcolor", "nest_asyncio", "zss",
    "colormath", "jieba", "lxml", "omegaconf", "ipdb", "imageio", "opencv-python-headless",
    "scikit-learn", "nltk", "einops", "sentencepiece", "openai", "pdf2image", "scikit-image",
)  # fmt: skip
VLMEVALKIT_RUN = """
import json, sys
from vlmeval.dataset import build_dataset
task, answers, out = sys.argv[1:]
dataset = build_dataset(task)
assert dataset.TYPE == "MCQ", dataset.TYPE
for place in range(len(dataset)):
    assert any(part["type"] == "image" for part in dataset.build_prompt(dataset.data.iloc[place]))
texts = json.load(open(answers))
data = dataset.data.drop(columns=["image"])
data["prediction"] = [texts[str(index)] for index in data["index"]]
data.to_excel(f"{out}/answers.xlsx", index=False)
found = dataset.evaluate(f"{out}/answers.xlsx", model="exact_matching")
json.dump({"overall": float(found["Overall"][0]), "n": len(dataset)}, open(f"{out}/found.json", "w"))
"""


def main(arguments: Sequence[str]) -> int:
    """0 when every program agrees with us."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("programs", nargs="*", help=f"of {', '.join(CHECKS)}; all when left out")
    names = parser.parse_args(arguments).programs or list(CHECKS)
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(CHECKS)}")
    agree = True
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = CHECKS[name](Path(folder))
        for part in sorted(ours.keys() | theirs.keys()):
            one, other = ours.get(part, -1.0), theirs.get(part, -1.0)
            print(f"{name} {part}: ours {one:.4f}, theirs {other:.4f}")
            agree = agree and abs(one - other) < 1e-9
    return 0 if agree else 1


def bfcl(out: Path) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Accuracy by category: ours, and that of `bfcl evaluate`."""
    python = environment("bfcl", ("bfcl-eval==2026.3.23", "soundfile"), sees_ours=False)
    (rows,) = python.parents[1].glob("lib/python*/site-packages/bfcl_eval/data")
    ours, given = answered("bfclv3", str(rows), 400, out)
    export("bfcl", given)
    command = [str(python.with_name("bfcl")), "evaluate", "--model", MODEL, "--partial-eval"]
    environ = {**os.environ, "BFCL_PROJECT_ROOT": str(out.resolve())}
    subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL)
    theirs = {}
    for path in (out / "score").rglob("BFCL_v4_*_score.json"):
        category = path.stem.removeprefix("BFCL_v4_").removesuffix("_score")
        with path.open(encoding="utf-8") as file:
            theirs[category] = json.loads(file.readline())["accuracy"]
    return ours.categories, theirs


def vlmevalkit(out: Path) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Accuracy on the questions with options: ours, and that of VLMEvalKit's exact matching."""
    python = environment("vlmevalkit", ("--no-deps", "ms-vlmeval==0.0.20"), VLMEVALKIT_NEEDS)
    ours, given = answered("scenes", None, 60, out)
    export("vlmevalkit", given)
    places = [place for place, sample in enumerate(given.samples) if sample.choices]
    texts = {str(record["doc_id"]): record["resps"][0][0] for record in given.records}
    (out / "answers.json").write_text(json.dumps(texts), encoding="utf-8")
    command = [str(python), "-c", VLMEVALKIT_RUN, "scenes", str(out / "answers.json"), str(out)]
    environ = {**os.environ, "LMUData": str(out)}
    subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL, cwd=out)
    accuracy = json.loads((out / "found.json").read_text(encoding="utf-8"))
    scores = [ours.per_question[given.samples[place].uid] for place in places]
    mean = sum(scores) / len(scores)
    return {"overall": mean, "n": len(places)}, accuracy


def answered(task: str, rows: str | None, limit: int, out: Path) -> tuple[Results, Export]:
    """The first questions of a task with answers of which every third is wrong, evaluated by us."""
    benchmark = load_benchmark(task)
    raw = task_rows(benchmark, rows)
    conversion = convert(benchmark, raw, limit)
    samples, _ = make_samples(conversion.rows, [])
    places = conversion.places or range(len(samples))
    texts = [
        (gold_text(benchmark, sample, raw[at]) if place % 3 else wrong_text(sample, benchmark))
        or ""
        for place, (sample, at) in enumerate(zip(samples, places, strict=True))
    ]

    by_prompt = {
        _key(build_prompts(sample, benchmark.prompts).plain): text
        for sample, text in zip(samples, texts, strict=True)
    }

    def complete(
        prompts: Sequence[list[Message]], sampling: Sampling, numbers: Sequence[int]
    ) -> list[Completion]:
        answers = [by_prompt[_key(prompt)] for prompt in prompts]
        return [Completion(text=one, finish_reason="stop", num_tokens=1) for one in answers]

    results = evaluate(MODEL, benchmark, samples=samples, generate=complete, out=out)
    records = list(SampleStore(out, task, "plain", 0).finished().values())
    return results, Export(task=benchmark, samples=samples, records=records, out=out, model=MODEL)


def _key(messages: Sequence[Message]) -> str:
    """What tells prompts apart: their words and pixels."""
    blocks = [
        block["image"].tobytes() if "image" in block else block["text"]
        for turn in messages
        for block in (
            turn["content"] if isinstance(turn["content"], list) else [{"text": turn["content"]}]
        )
    ]
    return digest([str(one) for one in blocks])


CHECKS = {"bfcl": bfcl, "vlmevalkit": vlmevalkit}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
