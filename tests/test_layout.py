"""The house: imports go down the floors, folders have doors, the package list is the folders."""

import ast
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "dopd_vlm": "dopd_vlm",
    "data": "dopd_vlm.data",
    "eval": "dopd_vlm.eval",
    "scripts": "dopd_vlm.scripts",
}
FORBIDDEN = {
    "dopd_vlm": ("dopd_vlm.data", "dopd_vlm.eval", "dopd_vlm.scripts"),
    "data": ("dopd_vlm.eval", "dopd_vlm.scripts"),
    "eval": ("dopd_vlm.data", "dopd_vlm.scripts"),
    "scripts": (),
}
FLOORS = (
    (
        "types",
        "errors",
        "plugins",
        "config",
        "prompts",
        "distributed",
        "jsonl",
        "data_uri",
        "endpoint",
    ),
    ("divergences", "routing"),
    ("routers",),
    ("method_tables",),
    ("methods",),
    ("routed_loss",),
    ("models",),
    ("rollout",),
    ("run_folder",),
    ("training",),
    ("report",),
    ("memory", "tracking"),
    ("train",),
)
"""Rooms of the core; a room imports from lower floors, and on the lowest from its neighbours too."""
MOST_FILES = 14


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
    files = list((ROOT / folder).rglob("*.py"))
    assert len(files) > 3
    flat = ("data", "eval", "scripts")
    for path in files:
        for name in imported(path):
            wrong = [
                f for f in (*FORBIDDEN[folder], *flat) if name == f or name.startswith(f"{f}.")
            ]
            assert not wrong, f"{path.name} imports {name}"


def test_imports_of_the_core_go_down_the_floors():
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    folder = ROOT / "dopd_vlm"
    for path in folder.rglob("*.py"):
        room = path.relative_to(folder).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in floor, f"{room} stands on no floor"
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "dopd_vlm" or len(parts) < 2 or parts[1] == room:
                continue
            below = floor[parts[1]] < floor[room] or floor[parts[1]] == floor[room] == 0
            assert below, f"{path.relative_to(ROOT)} imports {name}, which is not below it"


def python_folders() -> dict[str, list[Path]]:
    """Package name -> its Python files, for every folder of the product that holds some."""
    folders: dict[str, list[Path]] = {}
    for top, package in FOLDERS.items():
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.parent.relative_to(ROOT / top).parts
            folders.setdefault(".".join((package, *parts)), []).append(path)
    return folders


def test_the_package_list_is_the_folders():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(settings["packages"]) == sorted(python_folders())
    assert settings["package-dir"] == {
        package: folder for folder, package in FOLDERS.items() if folder != package
    }


def test_folders_are_small_and_have_doors():
    for package, files in python_folders().items():
        names = [path.stem for path in files]
        assert "__init__" in names, f"{package} has no door"
        assert len(names) - 1 <= MOST_FILES, f"{package} holds {len(names) - 1} files"


def test_a_door_hands_names_on_and_nothing_else():
    for files in python_folders().values():
        (door,) = [path for path in files if path.stem == "__init__"]
        if (
            door.parent == ROOT / "scripts"
        ):  # the line that keeps scripts/evaluate.py from hiding a library
            continue
        for node in ast.parse(door.read_text(encoding="utf-8")).body:
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_list = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            assert is_text or is_list or isinstance(node, ast.ImportFrom), (door, ast.unparse(node))


@pytest.mark.parametrize("top", sorted(FOLDERS))
def test_no_file_name_stands_twice_in_a_folder_level(top):
    folders = [path for path in (ROOT / top).rglob("*.py") if path.stem != "__init__"]
    same = Counter((path.parent, path.stem) for path in folders)
    assert max(same.values()) == 1
    for path in folders:
        beside = path.with_suffix("")
        assert not beside.is_dir(), f"{path} and the folder {beside} have one name"


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
    for folder in ("dopd_vlm", "data", "eval"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            tops = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
            names = {
                a.name.split(".")[0] for n in tops if isinstance(n, ast.Import) for a in n.names
            }
            names |= {str(n.module).split(".")[0] for n in tops if isinstance(n, ast.ImportFrom)}
            assert not names & set(optional), path
