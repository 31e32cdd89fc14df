"""RunConfig: all settings of a training run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dopd_vlm.config.checks import at_least, require, require_each
from dopd_vlm.config.sections import (
    ChatConfig,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
)
from dopd_vlm.prompts import PromptTemplate


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
    plugins: list[str] = field(default_factory=list)
    """Python files that register types, methods or routers, as --plugin; a run's config.yaml has all it ran with."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters on the student."""
    prompts: PromptTemplate = field(default_factory=PromptTemplate)
    """Wording of both views."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """Chat template arguments."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Sampling."""
    method: MethodConfig = field(default_factory=MethodConfig)
    """Distillation method."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimization."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Benchmarks."""

    def __post_init__(self) -> None:
        require_each(self, "", "checkpoint_every", *at_least(1))
        require_each(self, "", "keep_checkpoints seed", *at_least(0))
        is_folder = self.name is None or Path(self.name).name == self.name
        require(is_folder, "name", self.name, "the name of a folder in output_dir, without a path")
