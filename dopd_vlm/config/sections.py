"""The sections of a recipe: one frozen dataclass each, with every setting's default and meaning.

Defaults are the paper's where it states them (paper section 2) and are marked otherwise.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from dopd_vlm.config.checks import above, at_least, require, require_each
from dopd_vlm.types import Sampling, check_completions


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
        require_each(self, "lora.", "rank", *at_least(0))
        require_each(self, "lora.", "alpha", *above(0))


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
        require_each(self, "data.", "workers validate_rows", *at_least(0))
        require_each(self, "data.", "limit", *at_least(1))


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """What the chat template gets besides the messages."""

    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to the chat template, e.g. {enable_thinking: false} for Qwen3."""
    max_prompt_length: int | None = None
    """A row whose prompt is longer in either view is skipped and counted; null is the model's context."""

    def __post_init__(self) -> None:
        require_each(self, "chat.", "max_prompt_length", *at_least(1))


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(Sampling):
    """Sampling of the student's completions; the paper states only the number.

    The fields of `Sampling` with other defaults, and who samples.
    """

    num_generations: int = 4
    """Completions per prompt."""
    temperature: float = 1.0
    """Sampling temperature, above 0; the loss has its own."""
    sources: dict[str, float] | None = None
    """Shares of the rows whose completions the student, the teacher or the row's answer writes, as
    {student: 0.5, answer: 0.5}; null keeps the method's own."""
    engine: str = "own"
    """Who samples: a name in dopd_vlm.rollout.engines.ENGINES."""
    batch_size: int = 64
    """Prompts generated at once, per process."""
    engine_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of vllm.LLM, e.g. {gpu_memory_utilization: 0.3, max_model_len: 4096}."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise ValueError(f"rollout.{error}") from error
        if self.sources is not None:
            check_completions("rollout.sources", self.sources)
        require_each(self, "rollout.", "batch_size", *at_least(1))
        require_each(self, "rollout.", "temperature", *above(0))
        require(
            self.engine != "own" or not self.engine_options,
            "rollout.engine_options",
            self.engine_options,
            "only with an engine that has some, as rollout.engine=vllm",
        )

    def sampling(self, **changes: Any) -> Sampling:
        """The settings of a draw alone, with `changes`."""
        settings = {entry.name: getattr(self, entry.name) for entry in fields(Sampling)}
        return Sampling(**{**settings, **changes})


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Which table of routes, and the paper's unknowns around it."""

    name: str = "dopd"
    """A name in dopd_vlm.methods.METHODS."""
    self_target: Literal["live", "ema", "frozen"] | None = None
    """Whose weights the self-target has: the student's now, their moving average, or the initial ones; null keeps
    the table's own (live in the paper's)."""
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
    gap_floor: float | None = None
    """Nats; a gap below it is low whatever the threshold, as where it is rounding (`routing/noise`); null is none, as
    in the paper."""
    threshold_scope: Literal["batch", "process"] = "batch"
    """Tokens that the thresholds are taken from: the whole optimizer batch, or each process's own share of it."""
    reduction: Literal["sequence-mean", "token-mean"] = "sequence-mean"
    """Mean over sequences of means over tokens (the paper's Eq. 10), or mean over the batch's tokens."""
    light_weight: float | None = None
    """beta_l, weight of LH and HS tokens where they are trained; null keeps the table's own (0.6)."""
    weak_weight: float | None = None
    """beta_w, weight of LL tokens where they are trained; null keeps the table's own (0.3)."""
    top_k: int | None = None
    """Support size of the top-K divergences; null keeps the table's own (128 in the paper's)."""
    support: Literal["target", "student"] | None = None
    """Whose K most probable tokens; the paper does not say. Null keeps the table's own (target in the paper's)."""
    tail: Literal["bucket", "renormalise", "truncate"] | None = None
    """The mass outside: one more outcome, none, or ignored, which is no distribution and pushes mass out; null
    keeps the table's own (bucket)."""
    temperature: float = 1.0
    """Softmax temperature inside the divergences."""
    head_precision: Literal["auto", "bfloat16", "tf32", "float32"] = "auto"
    """Operands of the output layers' products in the loss; sums are float32. auto: bfloat16 on a GPU that trains in
    bfloat16 (what sampled the tokens, too), else each head's own."""
    chunk_size: int | None = None
    """Tokens per chunk of the loss; null chooses from free memory."""

    def __post_init__(self) -> None:
        require(0 <= self.trim < 1, "method.trim", self.trim, "in [0, 1)")
        require(0 < self.ema_rate <= 1, "method.ema_rate", self.ema_rate, "in (0, 1]")
        is_quantile = isinstance(self.statistic, float) and 0 < self.statistic < 1
        require(
            isinstance(self.statistic, str) or is_quantile,
            "method.statistic",
            self.statistic,
            "mean, median or a quantile in (0, 1)",
        )
        weights = "light_weight weak_weight gap_threshold gap_floor"
        require_each(self, "method.", weights, *at_least(0))
        require_each(self, "method.", "top_k chunk_size", *at_least(1))
        require_each(self, "method.", "temperature", *above(0))


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
        require_each(self, "optim.", f"learning_rate {sizes}", *above(0))
        require_each(self, "optim.", "warmup_steps weight_decay", *at_least(0))
        require(
            self.max_grad_norm > 0, "optim.max_grad_norm", self.max_grad_norm, "> 0, .inf is off"
        )
        require(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "both in [0, 1)")


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
        require_each(self, "evaluation.", "every limit", *at_least(1))
