"""What a recipe changes: its tree flattened, against the defaults."""

import functools
from collections.abc import Mapping
from typing import Any

import yaml

from dopd_vlm.config import DataConfig, ModelConfig, RunConfig, to_yaml

PLACES = ("name", "output_dir", "resume")
"""Recipe fields that say where a run writes, not what it does."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def recipe_difference(config: Mapping[str, Any]) -> dict[str, Any]:
    """{section.field: value} of what differs from a recipe that names models and data only."""
    default = default_recipe()
    return {
        name: value
        for name, value in flatten(config).items()
        if name not in PLACES and (name not in default or value != default[name])
    }


@functools.cache
def default_recipe() -> Mapping[str, Any]:
    """All fields of a recipe with their defaults, flat."""
    bare = RunConfig(
        student=ModelConfig(path=""), teacher=ModelConfig(path=""), data=DataConfig(train="")
    )
    return flatten(yaml.safe_load(to_yaml(bare)))
