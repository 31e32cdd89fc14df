"""What the commands' parsers share, and recipes by name."""

import argparse
from dataclasses import replace
from pathlib import Path

import yaml

from dopd_vlm import plugins
from dopd_vlm.config import RunConfig
from dopd_vlm.errors import unknown

RECIPES = Path(__file__).parents[1] / "recipes"
SUFFIXES = (".yaml", ".yml")


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `dopd NAME`, the module's text above its options as it is written."""
    return argparse.ArgumentParser(
        prog=f"dopd {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_plugin_option(command: argparse.ArgumentParser) -> None:
    """--plugin FILE, for annotation types, methods and divergences of one's own."""
    command.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file that registers annotation types, methods or divergences; may be given more than once",
    )


def load_plugins(options: argparse.Namespace) -> None:
    """Runs the files of --plugin. Raises ValueError for one that does not run."""
    for name in options.plugin:
        plugins.load_file(name)


def with_plugins(config: RunConfig) -> RunConfig:
    """Runs the recipe's plug-ins, and on a resume those of the run so far; the config that names all that ran.

    Raises:
        ValueError: a file that does not run, or is no longer there.
    """
    names, saved = list(config.plugins), Path(config.output_dir) / str(config.name) / "config.yaml"
    if config.resume and saved.is_file():
        names += yaml.safe_load(saved.read_text(encoding="utf-8")).get("plugins") or []
    for name in names:
        plugins.load_file(name)
    return replace(config, plugins=[str(path) for path in plugins.files()])


def recipe_names() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def is_recipe(source: str) -> bool:
    """Whether `source`, which could be a data set as well, is a recipe: by suffix, or by name."""
    path = Path(source)
    return path.suffix in SUFFIXES or (source in recipe_names() and not path.exists())


def recipe_path(recipe: str) -> Path:
    """The file of a recipe given by path or by the name under which it ships.

    A name is a word without a suffix: `demo` is recipes/demo.yaml. Raises ValueError with near names.
    """
    path, known = Path(recipe), recipe_names()
    if path.suffix in SUFFIXES or path.is_file():
        return path
    if recipe in known:
        return RECIPES / f"{recipe}.yaml"
    raise unknown("recipe (a file of your own ends in .yaml)", recipe, known)
