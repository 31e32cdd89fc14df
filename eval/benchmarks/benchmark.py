"""`Benchmark`: one YAML in eval/tasks, which says where questions come from and how they count."""

import functools
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from dopd_vlm.errors import unknown
from dopd_vlm.prompts import PromptTemplate
from dopd_vlm.types import Sampling

from ..scorers import SCORERS
from .forms import ANSWER_FORMS, QUESTION_FORMS

TASKS = Path(__file__).parents[1] / "tasks"
SUITES = {
    "paper_vlm": (
        "realworldqa",
        "mmstar",
        "mathvision",
        "dynamath",
        "logicvista",
        "mmmu",
        "mmmu_pro",
        "mmmu_pro_vision",
        "vsibench",
    ),
    "paper_llm": (
        "ceval",
        "livebench",
        "math500",
        "aime25",
        "zebralogic_grid",
        "zebralogic_mc",
        "autologi",
        "bfclv3",
        "livecodebench",
    ),
}
"""The paper's benchmarks; it does not say which mode of ZebraLogic and of MMMU-Pro it means."""


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
    configs: tuple[str, ...] = ()
    """Several of them; where `rows` holds `{config}` they are data sets of their own."""
    split: str | None = None
    """Split of a hub data set."""
    splits: tuple[str, ...] = ()
    """Several of them."""
    files: str = ""
    """Where the rows are JSON lines in plain files of the data set or folder: a pattern of their names,
    whose group names the part."""
    answer_files: str = ""
    """Where answers are in files of their own: their name, `{file}` being the rows' file; joined by `id`."""
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> values; rows with others are left out. Dates are compared by day."""
    frames: int = 0
    """Images per video, where the `images` columns, joined by slashes, name a .mp4 by the rows."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Our field -> the benchmark's column (or columns); empty for rows in this project's schema."""
    question: str = ""
    """The question of every row, for benchmarks whose images hold the real one."""
    question_form: str = "plain"
    """How the question column is written: one of QUESTION_FORMS."""
    system: str = ""
    """System turn, `{value}` being the row's `system` column as text or indented JSON."""
    answer_form: str = "plain"
    """How the answer column is written: one of ANSWER_FORMS."""
    answer_type: str = "text"
    """Which scorer counts; `row` takes each question's own."""
    scorer: Mapping[str, Any] = field(default_factory=dict)
    """Options of the scorer."""
    judge: str = ""
    """How a model may judge, where the official protocol has it: `extract` or `verdict`; empty for never."""
    prompts: PromptTemplate = field(default_factory=PromptTemplate)
    """Wording around the question."""
    generation: Sampling = field(default_factory=Sampling)
    """Decoding."""
    annotations: tuple[str, ...] = ()
    """What the privileged view shows unless the caller chooses; () where rows have none."""
    cluster: str | None = None
    """Key of `meta` whose equal values make questions dependent (a shared image)."""
    category: str | None = None
    """Key of `meta` by which scores are also reported."""
    all_right: Mapping[str, str] = field(default_factory=dict)
    """Second metric -> key of `meta`: the share of its values whose questions are all right."""
    means: Mapping[str, Any] = field(default_factory=dict)
    """Second metric -> `categories`, the mean over them, or nested lists of categories: a mean of means."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """Published numbers in percent, for reference: model or method -> the official metric."""
    official: str = ""
    """The second metric that published numbers are, as livebench's mean of category means; empty where it
    is the accuracy."""
    access: str = ""
    """How to get rows that are gated or not on the hub."""

    def __post_init__(self) -> None:
        for name, known in (
            ("answer_form", ANSWER_FORMS),
            ("question_form", QUESTION_FORMS),
            ("answer_type", ("row", *SCORERS)),
            ("judge", ("", "extract", "verdict")),
        ):
            value = getattr(self, name)
            if value not in known:
                raise unknown(f"{name} of benchmark {self.name!r}:", value, known)
        if self.official and self.official not in (seconds := (*self.means, *self.all_right)):
            raise unknown(f"official metric of benchmark {self.name!r}:", self.official, seconds)

    @property
    def parts(self) -> tuple["Part", ...]:
        """Every configuration and split to be read; one part for most benchmarks."""
        configs = self.configs or (self.config,)
        splits = self.splits or (self.split,)
        is_own = "{config}" in self.rows
        return tuple(
            Part(
                rows=self.rows.replace("{config}", config or ""),
                config=None if is_own else config,
                split=split,
                label="-".join(
                    [str(config)] * (len(configs) > 1) + [str(split)] * (len(splits) > 1)
                ),
            )
            for config in configs
            for split in splits
        )


@dataclass(frozen=True, kw_only=True)
class Part:
    """One table of a benchmark's rows."""

    rows: str
    config: str | None
    split: str | None
    label: str
    """What tells it from the others; empty for the only one."""


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
        raise unknown("task", name, benchmark_names())
    return _read(path)


@functools.cache
def _read(path: Path) -> Benchmark:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold settings of a benchmark, got {type(tree).__name__}")
    tree = {"name": path.stem, **tree}
    for section, kind in (("prompts", PromptTemplate), ("generation", Sampling)):
        if section in tree:
            tree[section] = _build(kind, tree[section], f"{path.name}, {section}")
    try:
        for name in ("annotations", "configs", "splits"):
            tree[name] = tuple(tree.get(name, ()))
        keep = tree.get("keep", {})
        tree["keep"] = {name: tuple(map(str, values)) for name, values in keep.items()}
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{path.name}: something that must be a list or a mapping is neither: {error}"
        ) from error
    return _build(Benchmark, tree, path.name)


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """The record; ValueError naming the file for whatever its settings can get wrong."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a mapping of settings, got {values!r}")
    known = {entry.name: entry for entry in fields(kind)}
    for name in values:
        if name not in known:
            raise unknown(f"setting of {where}:", name, known)
    missing = [name for name, entry in known.items() if _is_needed(entry) and name not in values]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _is_needed(entry: Field) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING
