"""Applies each mutation of `mutation_cases` to a scratch copy, and says which ones no test notices.

    python -m dopd_vlm.scripts.checks.mutations                   # all, one after the other: about 20 minutes
    python -m dopd_vlm.scripts.checks.mutations --part data       # core, data or eval

Exits with 1 where fewer than 95% are noticed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dopd_vlm.scripts.checks.mutation_cases import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("dopd_vlm", "data", "eval", "scripts", "tests")
TIMEOUT_S = 300
PASS_SHARE = 0.95


def main(arguments: Sequence[str]) -> int:
    """Runs them, prints a line each and the score."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--part", choices=("core", "data", "eval"), help="only these")
    options = parser.parse_args(arguments)
    chosen = [one for one in MUTATIONS if options.part in (None, one.part)]
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = scratch_copy(Path(folder))
        untouched = sorted({name for mutation in chosen for name in mutation.tests})
        if _tested(copy, untouched) != "survived":
            print(f"the tests fail without any mutation: {' '.join(untouched)}")
            return 1
        for mutation in chosen:
            outcome = outcome_of(mutation, copy)
            counts[outcome] += 1
            change = f"{mutation.old!r} -> {mutation.new!r}"
            print(f"{outcome:9} {mutation.file}: {change}", flush=True)
    share = 1 - counts["survived"] / max(1, len(chosen))
    print(f"{share:.1%} of {len(chosen)} noticed: {dict(counts)}")
    return 0 if share >= PASS_SHARE else 1


def scratch_copy(folder: Path) -> Path:
    """The tree laid out so that its own `dopd_vlm` is imported, whatever is installed."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("data", "eval", "scripts"):
        (folder / "dopd_vlm" / name).symlink_to(folder / name)
    return folder


def mutated(mutation: Mutation, text: str) -> str:
    """The file's text with the change.

    Raises:
        ValueError: the old text does not occur in it exactly once.
    """
    count = text.count(mutation.old)
    if count != 1:
        raise ValueError(
            f"{mutation.file} holds {mutation.old!r} {count} times; a mutation changes one place: "
            "renew it in scripts/checks/mutation_cases.py"
        )
    return text.replace(mutation.old, mutation.new)


def outcome_of(mutation: Mutation, copy: Path) -> str:
    """killed, survived, or timed out, which counts as noticed; the copy is whole again afterwards."""
    path = copy / mutation.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(mutated(mutation, whole), encoding="utf-8")
    try:
        return _tested(copy, mutation.tests)
    finally:
        path.write_text(whole, encoding="utf-8")


def _tested(copy: Path, tests: Sequence[str]) -> str:
    """How the tests take what the copy holds: as `outcome_of` says it."""
    options = ["-q", "-x", "-p", "no:cacheprovider", "-n", "0", "-m", "not slow"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-m", "pytest", *options, *tests],
            cwd=copy, env=environment, capture_output=True, check=False, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "timed out"
    return "survived" if done.returncode == 0 else "killed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
