"""Checks that lmms-eval, with our plug-in model, finds our accuracy on the same questions.

    python scripts/checks/lmms.py [--limit 24]

Makes an environment of its own in the cache on first use: lmms-eval without its pins, what it needs
beside this one's packages, and this package. Then exports an image task (evaluate.py --export
lmms-eval), runs lmms-eval's own command line on it with the embedded student, and compares accuracy
and completions with evaluate.py's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dopd_vlm.data.embedded.sets import embedded_model
from dopd_vlm.scripts.checks.environments import environment

HERE = Path(__file__).parents[1]
MODEL, TASK = "embedded:student_vl", "shapes"
LMMS_EVAL = "lmms-eval==0.7.3"
NEEDS = (
    "loguru", "jsonlines", "pytablewriter", "tenacity", "sacrebleu", "scikit-learn", "sqlitedict",
    "zss", "numexpr", "nltk", "openai", "python-dotenv",
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """0 when both harnesses agree to the last question."""
    options = _arguments(arguments)
    python = environment("lmms-eval", ("--no-deps", LMMS_EVAL), NEEDS)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        evaluate(out / "ours", "--limit", str(options.limit))
        evaluate(out / "task", "--limit", str(options.limit), "--export", "lmms-eval")
        run_lmms_eval(python, out, options.batch_size)
        ours, theirs = our_numbers(out / "ours"), their_numbers(out / "theirs")
    same = sum(a == b for a, b in zip(ours[1], theirs[1], strict=True))
    print(
        f"{TASK}, {options.limit} questions: ours {ours[0]:.4f}, lmms-eval {theirs[0]:.4f}, "
        f"equal completions {same} of {len(ours[1])}"
    )
    return 0 if abs(ours[0] - theirs[0]) < 1e-9 and same == len(ours[1]) else 1


def evaluate(out: Path, *options: str) -> None:
    """evaluate.py on the task."""
    command = [sys.executable, str(HERE / "evaluate.py"), MODEL, "--tasks", TASK, "--out", str(out)]
    subprocess.run([*command, *options], check=True, env=_offline())


def run_lmms_eval(python: Path, out: Path, batch_size: int) -> None:
    """lmms-eval's command line on the exported task; its files go into OUT/theirs."""
    folder = (out / "task" / f"dopd_{TASK}").resolve()
    command = [str(python), "-m", "lmms_eval", "--model", "dopd"]
    command += ["--model_args", f"pretrained={embedded_model(MODEL)}"]
    command += ["--tasks", f"dopd_{TASK}", "--include_path", str(folder), "--log_samples"]
    command += ["--batch_size", str(batch_size), "--output_path", str(out / "theirs")]
    subprocess.run(command, check=True, env=_offline())


def our_numbers(out: Path) -> tuple[float, list[str]]:
    """(accuracy, completions in the order of the questions) that evaluate.py wrote."""
    tree = json.loads((out / "results.json").read_text(encoding="utf-8"))
    lines = _lines(out / f"samples_{TASK}__plain.jsonl")
    return tree["results"][f"{TASK}__plain"]["accuracy,none"], [one["resps"][0][0] for one in lines]


def their_numbers(out: Path) -> tuple[float, list[str]]:
    """The same that lmms-eval wrote."""
    (results,) = out.rglob("*_results.json")
    (samples,) = out.rglob(f"*_samples_dopd_{TASK}.jsonl")
    tree = json.loads(results.read_text(encoding="utf-8"))
    lines = sorted(_lines(samples), key=lambda one: one["doc_id"])
    return tree["results"][f"dopd_{TASK}"]["accuracy,none"], [
        one["filtered_resps"] for one in lines
    ]


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _offline() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=24, help="questions")
    parser.add_argument("--batch-size", type=int, default=8, help="of lmms-eval")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
