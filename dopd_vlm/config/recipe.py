"""YAML recipe plus `section.field=value` overrides -> RunConfig, and back to YAML."""

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dopd_vlm.config.run import RunConfig
from dopd_vlm.errors import unknown

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


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
