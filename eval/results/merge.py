"""Result folders together: one page of jobs that ran apart, and no two models in one folder."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from .results import Results, read_results

REPORT = "results.json"


def check_folder(out: Path, model: str) -> None:
    """Refuses a folder that holds results of another model.

    Raises:
        ValueError: it does, naming both.
    """
    for path in sorted(out.glob("results*.json")):
        others = {one.model for one in read_results(path)} - {model}
        if others:
            raise ValueError(
                f"{out} holds results of {', '.join(map(repr, sorted(others)))}, not of {model!r}: "
                "give another --out, or move that folder away"
            )


def with_earlier(out: Path, results: Sequence[Results]) -> list[Results]:
    """The results of the folder's earlier runs, with these in place of the same task and view."""
    earlier = read_results(out) if (out / REPORT).is_file() else []
    together = {(one.name, one.view): one for one in (*earlier, *results)}
    return list(together.values())


def merge(folders: Sequence[Path], out: Path) -> list[Results]:
    """The results of all folders, their samples and files copied to `out`.

    Raises:
        ValueError: a folder without results, results of several models, or a task and view twice with
            different results.
    """
    together: dict[tuple[str, str], Results] = {}
    models: set[str] = set()
    for folder in folders:
        for one in read_results(folder):
            models.add(one.model)
            first = together.setdefault((one.name, one.view), one)
            if first.model == one.model and first.per_question != one.per_question:
                raise ValueError(
                    f"task {one.name!r}, view {one.view}, stands with different results in several of "
                    f"{', '.join(map(str, folders))}: leave one out"
                )
    if len(models) != 1:
        raise ValueError(
            f"{', '.join(map(str, folders))} hold results of {len(models)} models "
            f"({', '.join(map(repr, sorted(models)))}): merge folders of one model; --compare takes two"
        )
    check_folder(out, models.pop())
    out.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        for path in (*folder.glob("samples_*.jsonl"), *folder.glob("results_*.json")):
            if path.parent.resolve() != out.resolve():
                shutil.copy2(path, out / path.name)
    return list(together.values())
