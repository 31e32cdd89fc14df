"""`Profile`: how a model's makers evaluate it, as a YAML in eval/profiles; laid over each task's settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from dopd_vlm.errors import unknown

from .benchmark import Benchmark

PROFILES = Path(__file__).parents[1] / "profiles"
PER_TASK = ("generation", "prompts", "pixels")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Settings in place of the tasks' own; what it does not name stays the task's."""

    name: str
    description: str
    source: str
    """Where the settings were published."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Decoding of every task."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Wording of every task."""
    pixels: tuple[int, int] | None = None
    """Fewest and most pixels to which the model's processor scales an image; None leaves it."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Given to the chat template, e.g. the thinking mode."""
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Task -> its `generation`, `prompts` and `pixels`, which come before the ones above."""

    def __post_init__(self) -> None:
        for task, settings in self.tasks.items():
            for name in settings.keys() - set(PER_TASK):
                raise unknown(f"setting of profile {self.name!r}, task {task!r}:", name, PER_TASK)
        for pixels in (self.pixels, *(one.get("pixels") for one in self.tasks.values())):
            if pixels is not None and not (len(pixels) == 2 and 0 < pixels[0] <= pixels[1]):
                raise ValueError(
                    f"profile {self.name!r}: pixels={list(pixels)} must be [fewest, most] above 0"
                )

    def task(self, task: Benchmark) -> Benchmark:
        """The task under this profile.

        Raises:
            ValueError: a setting that there is not, or a value that is not allowed.
        """
        own = self.tasks.get(task.name, {})
        changed = {}
        for section in ("generation", "prompts"):
            record = getattr(task, section)
            values = {**getattr(self, section), **own.get(section, {})}
            known = [entry.name for entry in fields(record)]
            for name in values.keys() - set(known):
                raise unknown(f"{section} setting of profile {self.name!r}:", name, known)
            if (
                section == "generation"
                and record.num_generations > 1
                and not values.get("temperature", 1)
            ):
                values = {**values, "num_generations": 1}
            changed[section] = replace(record, **values)
        return replace(task, **changed)

    def pixel_limits(self, task: str) -> tuple[int, int] | None:
        """Fewest and most pixels of an image of the task."""
        pixels = self.tasks.get(task, {}).get("pixels", self.pixels)
        return None if pixels is None else (pixels[0], pixels[1])


def profile_names() -> tuple[str, ...]:
    """Every name `load_profile` knows."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.yaml")))


def load_profile(name: str) -> Profile:
    """The Profile of that name, or of a YAML file of your own when `name` ends in .yaml.

    Raises:
        ValueError: unknown name or field, naming the near ones.
    """
    path = Path(name) if name.endswith(".yaml") else PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise unknown("profile", name, profile_names())
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold settings of a profile, got {type(tree).__name__}")
    known = [entry.name for entry in fields(Profile)]
    for key in tree.keys() - set(known):
        raise unknown(f"setting of {path.name}:", key, known)
    missing = {"description", "source"} - tree.keys()
    if missing:
        raise ValueError(f"{path.name} lacks {', '.join(sorted(missing))}")
    return Profile(**{"name": path.stem, **tree})
