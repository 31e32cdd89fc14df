"""Imports point one way, and the packages are the folders."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"dopd_vlm": "dopd_vlm", "data": "dopd_vlm.data", "eval": "dopd_vlm.eval"}
FORBIDDEN = {
    "dopd_vlm": ("dopd_vlm.data", "dopd_vlm.eval", "data", "eval"),
    "data": ("dopd_vlm.eval", "data", "eval"),
    "eval": ("dopd_vlm.data", "data", "eval"),
}


def imported(path: Path) -> set[str]:
    """Absolute module names of a file's imports, `from a import b` as a.b too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_imports_point_one_way(folder):
    files = list((ROOT / folder).glob("*.py"))
    assert len(files) > 3
    for path in files:
        for name in imported(path):
            wrong = [f for f in FORBIDDEN[folder] if name == f or name.startswith(f"{f}.")]
            assert not wrong, f"{path.name} imports {name}"


def test_the_package_list_is_the_folders_and_each_is_flat():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(settings["packages"]) == sorted(FOLDERS.values())
    for folder in FOLDERS:
        nested = [p for p in (ROOT / folder).rglob("*.py") if p.parent != ROOT / folder]
        assert not nested


def test_nothing_heavy_or_optional_is_imported_at_start():
    optional = (
        "vllm",
        "deepspeed",
        "bitsandbytes",
        "peft",
        "wandb",
        "trackio",
        "trl",
        "liger_kernel",
    )
    for folder in FOLDERS:
        for path in (ROOT / folder).glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            tops = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
            names = {
                a.name.split(".")[0] for n in tops if isinstance(n, ast.Import) for a in n.names
            }
            names |= {str(n.module).split(".")[0] for n in tops if isinstance(n, ast.ImportFrom)}
            assert not names & set(optional), path
