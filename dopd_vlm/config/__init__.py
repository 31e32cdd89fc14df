"""The RunConfig tree, read from a YAML recipe plus `section.field=value` overrides."""

from .recipe import parser, read_config, to_yaml
from .run import RunConfig
from .sections import (
    ChatConfig,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
)

__all__ = [
    "ChatConfig",
    "DataConfig",
    "EvaluationConfig",
    "LoraConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "RolloutConfig",
    "RunConfig",
    "parser",
    "read_config",
    "to_yaml",
]
