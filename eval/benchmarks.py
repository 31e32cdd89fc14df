"""`Benchmark`: one YAML in eval/tasks, which says where questions come from and how they count."""

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from dopd_vlm.prompts import PromptTemplate

from .scorers import SCORERS

TASKS = Path(__file__).parent / "tasks"
ANSWER_FORMS = ("plain", "index", "option", "hashes", "parens", "first_choice", "tests")
"""Letter or value as it is; number of the option; text of the option; behind `####`; `(A)`; the
right option before the wrong ones, in which case the order is drawn per question; prompt, tests and
entry point of a program."""
SUITES = {
    "paper_vlm": (
        "realworldqa",
        "mmstar",
        "mathvision",
        "dynamath",
        "logicvista",
        "mmmu",
        "mmmu_pro",
    ),
    "paper_llm": ("ceval", "math500", "aime25", "zebralogic_mc"),
}
"""The paper's benchmarks that have a plain table of rows and a rule-based metric."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How completions are made; defaults are greedy."""

    max_completion_length: int = 1024
    """Tokens after which a completion is cut and counted as truncated."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass; 1 is off."""
    top_k: int = 0
    """0 is off."""
    num_generations: int = 1
    """Completions per question; the score is then avg@k."""

    def __post_init__(self) -> None:
        for name in ("max_completion_length", "num_generations"):
            if getattr(self, name) < 1:
                raise ValueError(f"generation.{name}={getattr(self, name)} must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"generation.temperature={self.temperature} must not be negative")
        if self.num_generations > 1 and self.temperature == 0:
            raise ValueError(
                f"num_generations={self.num_generations} greedy completions would all be the same: "
                "set a temperature above 0"
            )


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark. It holds no rows: scripts read `rows` and hand Samples to the harness."""

    name: str
    """File name in eval/tasks."""
    description: str
    """One line."""
    rows: str
    """`embedded:NAME/SPLIT`, a hub id, or a file or folder."""
    config: str | None = None
    """Configuration of a hub data set."""
    split: str | None = None
    """Split of a hub data set."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Our field -> the benchmark's column (or columns); empty for rows in this project's schema."""
    answer_form: str = "plain"
    """How the answer column is written: one of ANSWER_FORMS."""
    answer_type: str = "text"
    """Which scorer counts; `row` takes each question's own."""
    scorer: Mapping[str, Any] = field(default_factory=dict)
    """Options of the scorer."""
    prompts: PromptTemplate = field(default_factory=PromptTemplate)
    """Wording around the question."""
    generation: Generation = Generation()
    """Decoding."""
    annotations: tuple[str, ...] = ()
    """What the privileged view shows unless the caller chooses; () where rows have none."""
    cluster: str | None = None
    """Key of `meta` whose equal values make questions dependent (a shared picture)."""
    category: str | None = None
    """Key of `meta` by which scores are also reported."""
    all_right: str | None = None
    """Name of a second metric: the share of clusters whose questions are all right."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """Published numbers in percent, for reference: model or method -> accuracy."""
    access: str = ""
    """How to get rows that are gated or not on the hub."""

    def __post_init__(self) -> None:
        if self.answer_form not in ANSWER_FORMS:
            raise ValueError(
                f"benchmark {self.name!r}: unknown answer_form {self.answer_form!r}; "
                f"known: {', '.join(ANSWER_FORMS)}"
            )
        if self.answer_type != "row" and self.answer_type not in SCORERS:
            near = difflib.get_close_matches(self.answer_type, SCORERS, n=3) or list(SCORERS)
            raise ValueError(
                f"benchmark {self.name!r}: unknown answer_type {self.answer_type!r}; "
                f"near: {', '.join(near)}"
            )


def benchmark_names() -> tuple[str, ...]:
    """Every name `load_benchmark` knows."""
    return tuple(sorted(path.stem for path in TASKS.glob("*.yaml")))


def load_benchmark(name: str) -> Benchmark:
    """The Benchmark of that name, or of a YAML file of your own when `name` ends in .yaml.

    Raises:
        ValueError: unknown name or field, naming the near ones.
    """
    path = Path(name) if name.endswith(".yaml") else TASKS / f"{name}.yaml"
    if not path.is_file():
        known = benchmark_names()
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise ValueError(
            f"unknown task {name!r}; near: {', '.join(near)}; known: {', '.join(known)}"
        )
    return _read(path)


@functools.cache
def _read(path: Path) -> Benchmark:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree = {"name": path.stem, **tree}
    for section, kind in (("prompts", PromptTemplate), ("generation", Generation)):
        if section in tree:
            tree[section] = _build(kind, tree[section], f"{path.name}: {section}.")
    tree["annotations"] = tuple(tree.get("annotations", ()))
    return _build(Benchmark, tree, f"{path.name}: ")


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    known = [entry.name for entry in fields(kind)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
            raise ValueError(f"{where}{name} is unknown; near: {', '.join(near)}")
    return kind(**values)
