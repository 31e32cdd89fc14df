"""Checks that lmms-eval, with our plug-in model, finds our accuracy on the same questions.

    python scripts/lmms_eval_test.py [--env .lmms_eval] [--limit 24]

Makes an environment of its own on first use: this one's packages, and lmms-eval with what it needs
beside them, without its pins. Then exports a picture task (evaluate.py --export lmms-eval), runs
lmms-eval's own command line on it with the embedded student, and compares with evaluate.py.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
MODEL, TASK = "embedded:student_vl", "shapes"
LMMS_EVAL = "lmms-eval==0.7.3"
NEEDS = (
    "loguru", "jsonlines", "pytablewriter", "tenacity", "sacrebleu", "scikit-learn", "sqlitedict",
    "zss", "numexpr", "nltk", "openai", "python-dotenv",
)  # fmt: skip


def main() -> int:
    """0 when both harnesses agree to the last question."""
    options = _arguments()
    python = environment(options.env)
    out = options.env / "check"
    evaluate(out / "ours", "--limit", str(options.limit))
    evaluate(out / "task", "--limit", str(options.limit), "--export", "lmms-eval")
    theirs = run_lmms_eval(python, out, options.batch_size)
    tree = json.loads((out / "ours" / "results.json").read_text(encoding="utf-8"))
    ours = tree["results"][f"{TASK}__plain"]["accuracy,none"]
    print(f"{TASK}, {options.limit} questions: ours {ours:.4f}, lmms-eval {theirs:.4f}")
    return 0 if abs(ours - theirs) < 1e-9 else 1


def environment(folder: Path) -> Path:
    """The Python of an environment that sees this one's packages, with lmms-eval on top."""
    python = folder / "bin" / "python"
    if python.exists():
        return python
    print(f"making {folder}")
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    below = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", LMMS_EVAL], check=True)
    subprocess.run([*pip, *NEEDS], check=True)
    return python


def evaluate(out: Path, *options: str) -> None:
    """evaluate.py on the task."""
    command = [sys.executable, str(HERE / "evaluate.py"), MODEL, "--tasks", TASK, "--out", str(out)]
    subprocess.run([*command, *options], check=True, env=_offline())


def run_lmms_eval(python: Path, out: Path, batch_size: int) -> float:
    """The accuracy that lmms-eval writes."""
    from dopd_vlm.data.embedded import embedded_model

    folder = (out / "task" / f"dopd_{TASK}").resolve()
    command = [str(python), "-m", "lmms_eval", "--model", "dopd"]
    command += ["--model_args", f"pretrained={embedded_model(MODEL)}"]
    command += ["--tasks", f"dopd_{TASK}", "--include_path", str(folder), "--log_samples"]
    command += ["--batch_size", str(batch_size), "--output_path", str(out / "theirs")]
    subprocess.run(command, check=True, env=_offline())
    newest = max((out / "theirs").rglob("*_results.json"), key=lambda path: path.stat().st_mtime)
    results = json.loads(newest.read_text(encoding="utf-8"))["results"][f"dopd_{TASK}"]
    return float(results["accuracy,none"])


def _offline() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", type=Path, default=Path(".lmms_eval"))
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
