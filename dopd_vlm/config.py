"""The RunConfig tree: one frozen dataclass a section, read from a YAML recipe plus `a.b=value` overrides.

Defaults are the paper's where it states them (paper section 2) and are marked otherwise.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from dopd_vlm.errors import unknown
from dopd_vlm.prompts import PromptTemplate
from dopd_vlm.types import Sampling

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name}={value!r} is not allowed: {allowed}")


def _require_each(
    section: object, prefix: str, names: str, ok: Callable[[Any], bool], allowed: str
) -> None:
    """`_require` for several fields, by their names with spaces between; null is allowed where a field has it."""
    for name in names.split():
        value = getattr(section, name)
        _require(value is None or ok(value), f"{prefix}{name}", value, allowed)


def _at_least(low: float) -> tuple[Callable[[Any], bool], str]:
    """Finite and no smaller; with how a message says so."""
    return lambda value: low <= value < math.inf, f">= {low}"


def _above(low: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: low < value < math.inf, f"> {low}"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on the student (extra `peft`); rank 0 trains all weights."""

    rank: int = 0
    """Adapter rank; 0 is off."""
    alpha: int = 64
    """Adapter scale numerator."""
    target_modules: str = "all-linear"
    """Which linear layers get an adapter; never the output head."""

    def __post_init__(self) -> None:
        _require_each(self, "lora.", "rank", *_at_least(0))
        _require_each(self, "lora.", "alpha", *_above(0))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where a model comes from and how it is held."""

    path: str
    """Folder, hub id, or `embedded:NAME` for a model that ships with the package."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """auto: float32 for the student (its updates vanish in bfloat16), the device's best for the teacher."""
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    """Attention kernel."""
    trust_remote_code: bool = False
    """Run Python from the model folder; off unless you trust its author."""
    load_in: Literal["full", "4bit", "8bit"] = "full"
    """Quantised weights through bitsandbytes (teacher only, GPU)."""
    eos_token_ids: list[int] | None = None
    """Ids that end a completion; null takes those of the checkpoint's generation_config.json."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training rows and what of their annotations the privileged view shows."""

    train: str
    """Folder with metadata.jsonl, JSONL, Parquet, hub id, save_to_disk folder, or `embedded:NAME/train`."""
    split: str | None = None
    """Split of a hub data set."""
    annotations: list[str | tuple[str, str]] = field(default_factory=lambda: ["boxes"])
    """Annotation types, or (type, form) pairs such as [boxes, drawn]."""
    coords: Literal["qwen2", "qwen2_5", "qwen3", "norm1", "pixel"] = "qwen3"
    """Coordinate convention of the model family for boxes as text."""
    limit: int | None = None
    """Use the first N rows only."""
    validate_rows: int = 5000
    """Rows that are fully built and checked before training starts; later bad rows are counted as they come."""
    workers: int | None = None
    """Processes that make the coming rows; null is 2 on a GPU, none on CPU; the result is always the same."""

    def __post_init__(self) -> None:
        _require_each(self, "data.", "workers validate_rows", *_at_least(0))
        _require_each(self, "data.", "limit", *_at_least(1))


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """What the chat template gets besides the messages."""

    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to the chat template, e.g. {enable_thinking: false} for Qwen3."""
    max_prompt_length: int | None = None
    """A row whose prompt is longer in either view is skipped and counted; null is the model's context."""

    def __post_init__(self) -> None:
        _require_each(self, "chat.", "max_prompt_length", *_at_least(1))


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(Sampling):
    """Sampling of the student's completions; the paper states only the number.

    The fields of `Sampling` with other defaults, and who samples.
    """

    num_generations: int = 4
    """Completions per prompt."""
    temperature: float = 1.0
    """Sampling temperature, above 0; the loss has its own."""
    engine: str = "own"
    """Who samples: a name in dopd_vlm.rollout.engines.ENGINES."""
    batch_size: int = 64
    """Prompts generated at once, per process (own engine)."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise ValueError(f"rollout.{error}") from error
        _require_each(self, "rollout.", "batch_size", *_at_least(1))
        _require_each(self, "rollout.", "temperature", *_above(0))

    def sampling(self, **changes: Any) -> Sampling:
        """The settings of a draw alone, with `changes`."""
        settings = {entry.name: getattr(self, entry.name) for entry in fields(Sampling)}
        return Sampling(**{**settings, **changes})


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Which table of routes, and the paper's unknowns around it."""

    name: str = "dopd"
    """A name in dopd_vlm.methods.METHODS."""
    self_target: Literal["live", "ema", "frozen"] = "live"
    """Whose weights the self-target has: the student's now (the paper), their moving average, or the initial ones."""
    ema_rate: float = 0.05
    """Share of the new weights in the moving average at each step."""
    trim: float = 0.05
    """Share of the largest gaps left out of the threshold means (paper section 1.3)."""
    trim_of: Literal["gap", "each"] = "gap"
    """What is trimmed: the gap decides for all three means, or each quantity loses its own largest."""
    train_outliers: bool = True
    """Whether trimmed tokens are still routed and trained, or leave the loss as well as the means."""
    statistic: Literal["mean", "median"] | float = "mean"
    """Threshold of gap and probabilities: their mean (the paper), median, or a quantile in (0, 1)."""
    gap_threshold: float | None = None
    """Nats; fixes the gap's threshold (probabilities keep theirs); null takes the batch's statistic."""
    threshold_scope: Literal["batch", "process"] = "batch"
    """Tokens behind the thresholds: the whole optimizer batch, or each process's own share of it."""
    reduction: Literal["sequence-mean", "token-mean"] = "sequence-mean"
    """Mean over sequences of means over tokens (the paper's Eq. 10), or mean over the batch's tokens."""
    light_weight: float | None = None
    """beta_l, weight of LH and HS tokens where they are trained; null keeps the table's own (0.6)."""
    weak_weight: float | None = None
    """beta_w, weight of LL tokens where they are trained; null keeps the table's own (0.3)."""
    top_k: int | None = 128
    """Support size of the top-K divergences; null keeps the table's own."""
    support: Literal["target", "student"] = "target"
    """Whose K most probable tokens; the paper does not say."""
    tail: Literal["bucket", "renormalise", "truncate"] = "bucket"
    """The mass outside: one more outcome, none, or ignored, which is no distribution and pushes mass out."""
    temperature: float = 1.0
    """Softmax temperature inside the divergences."""
    head_precision: Literal["auto", "bfloat16", "tf32", "float32"] = "auto"
    """Operands of the output layers' products in the loss; sums are float32. auto: bfloat16 on a GPU that trains in
    bfloat16 (what sampled the tokens, too), else each head's own."""
    chunk_size: int | None = None
    """Tokens per chunk of the loss; null chooses from free memory."""

    def __post_init__(self) -> None:
        _require(0 <= self.trim < 1, "method.trim", self.trim, "in [0, 1)")
        _require(0 < self.ema_rate <= 1, "method.ema_rate", self.ema_rate, "in (0, 1]")
        is_quantile = isinstance(self.statistic, float) and 0 < self.statistic < 1
        _require(
            isinstance(self.statistic, str) or is_quantile,
            "method.statistic",
            self.statistic,
            "mean, median or a quantile in (0, 1)",
        )
        weights = "light_weight weak_weight gap_threshold"
        _require_each(self, "method.", weights, *_at_least(0))
        _require_each(self, "method.", "top_k chunk_size", *_at_least(1))
        _require_each(self, "method.", "temperature", *_above(0))


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, schedule and batch. AdamW, cosine, 5e-6, 128 x 4 and 200 steps are the paper's."""

    learning_rate: float = 5e-6
    """Peak learning rate."""
    max_steps: int = 200
    """Optimizer steps."""
    batch_size: int = 128
    """Prompts per step over all processes."""
    micro_batch_size: int = 8
    """Sequences per forward and backward, per process, at most score_batch_size; changes memory, not the result."""
    score_batch_size: int = 32
    """Sequences per target forward (no gradient), per process."""
    warmup_steps: int = 0
    """Linear warm-up; the paper states none."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay; the paper states none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    max_grad_norm: float = 1.0
    """Gradient clipping, `.inf` for none; the paper states none."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward: less memory, more time."""

    def __post_init__(self) -> None:
        sizes = "max_steps batch_size micro_batch_size score_batch_size"
        _require_each(self, "optim.", f"learning_rate {sizes}", *_above(0))
        _require_each(self, "optim.", "warmup_steps weight_decay", *_at_least(0))
        _require(
            self.max_grad_norm > 0, "optim.max_grad_norm", self.max_grad_norm, "> 0, .inf is off"
        )
        _require(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "both in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Benchmarks during and after training."""

    tasks: list[str] = field(default_factory=list)
    """Names in eval/tasks; empty is no evaluation."""
    views: list[Literal["plain", "privileged"]] = field(
        default_factory=lambda: ["plain", "privileged"]
    )
    """Views to evaluate the student in."""
    every: int = 50
    """Steps between evaluations; there is one before the first and one after the last step."""
    limit: int | None = None
    """Questions per task during training; the last evaluation takes all."""
    teacher: bool = True
    """Evaluate the teacher too, once."""

    def __post_init__(self) -> None:
        _require_each(self, "evaluation.", "every limit", *_at_least(1))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run. Repeatable from the resolved copy in its folder."""

    student: ModelConfig
    """The model that learns."""
    teacher: ModelConfig
    """The frozen model that teaches."""
    data: DataConfig
    """Training rows."""
    name: str | None = None
    """Run name; null takes the recipe's file name."""
    output_dir: str = "runs"
    """Parent of the run folder."""
    seed: int = 0
    """Seeds data order and sampling."""
    resume: bool = False
    """Go on from the run folder's last checkpoint."""
    checkpoint_every: int = 50
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept besides the last."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forwards; auto is bfloat16 where the device has it in hardware."""
    tracking: list[Literal["tensorboard", "trackio", "wandb"]] = field(default_factory=list)
    """Trackers besides metrics.jsonl (extra `trackers`): a name or a list; wandb is offline without WANDB_MODE."""
    lora: LoraConfig = LoraConfig()
    """Adapters on the student."""
    prompts: PromptTemplate = field(default_factory=PromptTemplate)
    """Wording of both views."""
    chat: ChatConfig = ChatConfig()
    """Chat template arguments."""
    rollout: RolloutConfig = RolloutConfig()
    """Sampling."""
    method: MethodConfig = MethodConfig()
    """Distillation method."""
    optim: OptimConfig = OptimConfig()
    """Optimization."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Benchmarks."""

    def __post_init__(self) -> None:
        _require_each(self, "", "checkpoint_every", *_at_least(1))
        _require_each(self, "", "keep_checkpoints seed", *_at_least(0))
        is_folder = self.name is None or Path(self.name).name == self.name
        _require(is_folder, "name", self.name, "the name of a folder in output_dir, without a path")


def parser() -> "ArgumentParser":
    """A parser whose --help documents every field of RunConfig."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        exit_on_error=False, description="Distil a student from a privileged teacher."
    )
    parser.add_class_arguments(RunConfig)
    return parser


def read_config(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """RunConfig of a YAML recipe with `section.field=value` overrides.

    Raises ValueError naming the field, the value and what is allowed; an unknown field names the near ones.
    """
    path = Path(recipe)
    if not path.is_file():
        raise ValueError(f"recipe {str(path)!r} does not exist; recipes ship in scripts/recipes/")
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for override in overrides:
        _override(tree, override)
    _check_known(tree, RunConfig, "")
    if tree.get("name") is None:
        tree["name"] = path.stem
    if isinstance(tree.get("tracking"), str):
        tree["tracking"] = [tree["tracking"]]
    from jsonargparse import ArgumentError

    try:
        run_parser = parser()
        return RunConfig(**vars(run_parser.instantiate(run_parser.parse_object(tree))))
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(f"recipe {path}: {error}") from error


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML that `read_config` reads back to an equal one."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _check_known(tree: dict[str, Any], section: type, prefix: str) -> None:
    known = {field.name: field.type for field in fields(section)}
    for name, value in tree.items():
        if name not in known:
            raise unknown("setting", f"{prefix}{name}", [f"{prefix}{other}" for other in known])
        inner = known[name]
        if isinstance(inner, type) and is_dataclass(inner) and isinstance(value, dict):
            _check_known(value, inner, f"{prefix}{name}.")


def _override(tree: dict[str, Any], override: str) -> None:
    match = re.fullmatch(r"(?:--)?([\w.]+)=(.*)", override, flags=re.DOTALL)
    if match is None:
        raise ValueError(f"override {override!r} is not of the form section.field=value")
    *sections, name = match[1].split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {override!r}: {section} is a value, not a section")
    tree[name] = yaml.safe_load(match[2])
