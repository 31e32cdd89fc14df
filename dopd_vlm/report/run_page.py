"""report.html: one self-contained page of a run, made from its folder alone (extra `viz`)."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dopd_vlm.jsonl import write_whole
from dopd_vlm.report.html import render
from dopd_vlm.report.method_text import read_method
from dopd_vlm.report.plots import run_plots
from dopd_vlm.report.token_page import token_map_html
from dopd_vlm.run_folder import RunRecord, read_run, recipe_difference
from dopd_vlm.types import Regime

REPORT_FILE = "report.html"
MOST_REASONS = 20
UNKNOWN_WORDS = "share of words that the student does not know"


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """The page of a run, whole or not at all, at `out` or RUN/report.html.

    Raises ValueError when the folder holds no run or plotly is not installed.
    """
    run = read_run(run_dir)
    path = Path(out) if out else run.path / REPORT_FILE
    return write_whole(path, report_page(run))


def report_page(run: RunRecord) -> str:
    """The page as HTML that needs no other file and no network."""
    reasons = Counter(line["reason"] for line in run.skipped)
    return render(
        "run.html",
        title=f"{run.name}: {run.config['method']['name']}",
        last_step=run.last_step,
        max_steps=run.max_steps,
        main=main_facts(run),
        different={
            name: json.dumps(value) for name, value in recipe_difference(run.config).items()
        },
        versions=versions(run),
        command=command(run),
        again=again(run),
        recipe=(run.path / "config.yaml").read_text(encoding="utf-8"),
        plots=run_plots(run),
        token_maps=token_map_html(run.probes, run.maps, read_method(run)),
        rows=row_facts(run),
        num_skipped=len(run.skipped),
        skipped=dict(reasons.most_common(MOST_REASONS)),
        more_reasons=max(0, len(reasons) - MOST_REASONS),
    )


def main_facts(run: RunRecord) -> dict[str, Any]:
    """Models, data and method."""
    config, method = run.config, read_method(run)
    by_regime = {f"{r.name} tokens": method.legend(r) for r in Regime} if method.by_gap else {}
    every = {"every token": method.every_token} if method.every_token else {}
    return {
        "method": config["method"]["name"],
        **by_regime,
        **every,
        "student": config["student"]["path"],
        "teacher": config["teacher"]["path"],
        "training rows": config["data"]["train"],
        "privileged view": json.dumps(config["data"]["annotations"]),
        "seed": config["seed"],
    }


def row_facts(run: RunRecord) -> dict[str, str]:
    """What the accuracies leave out, and the words that the student cannot read; empty where nobody looked."""
    counts = run.rows
    if not counts:
        return {}
    good, unscorable = counts["good"], counts["unscorable"]
    left_out = {
        f"rows of {task} that do not count": str(count)
        for task, count in counts["left_out"].items()
    }
    return {
        "answers of training rows that no scorer reads": (
            f"{unscorable} of {good} rows that were tried: they train, and count in no accuracy"
        ),
        **left_out,
        UNKNOWN_WORDS: unknown_words(counts["unknown"]),
    }


def unknown_words(shares: Mapping[str, float] | None) -> str:
    """`question 55.4%, answer 12.0%`, of the tokens of each column."""
    if shares is None:
        return "not looked up: the student's tokenizer was not here"
    columns = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return f"{columns}; it reads each of them as the same one" if columns else "none"


def versions(run: RunRecord) -> dict[str, Any]:
    """What the run ran on."""
    environment = run.environment
    return {
        "Python": environment.get("python"),
        **environment.get("packages", {}),
        "git": environment.get("git"),
        "platform": environment.get("platform"),
        "GPU": environment.get("cuda") or "none",
    }


def command(run: RunRecord) -> str:
    """The command line that started the run."""
    words = run.environment.get("command", [])
    if words and Path(words[0]).name == "dopd":
        return shlex.join(["dopd", *words[1:]])
    return shlex.join(["python", *words])


def again(run: RunRecord) -> str:
    """A command that repeats the run under another name."""
    recipe = shlex.quote(str(run.path / "config.yaml"))
    return f"dopd train {recipe} name={shlex.quote(run.name)}_again resume=false"
