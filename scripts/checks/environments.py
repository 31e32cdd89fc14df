"""Python environments of their own, for programs whose pins exclude this project's."""

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DONE = "installed.txt"
"""In an environment's folder: what was installed, written last."""


def cache_folder(*parts: str) -> Path:
    """A folder under ~/.cache/dopd_vlm, or under $XDG_CACHE_HOME."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().joinpath("dopd_vlm", *parts)


def environment(name: str, *steps: Sequence[str], sees_ours: bool = True) -> Path:
    """The Python of the environment `name` in the cache, made when absent or when `steps` differ.

    Args:
        name: of its folder.
        steps: arguments of `pip install`, one call each.
        sees_ours: whether it also sees the packages of the running Python, and this package first of
            all, so that torch and what needs it are not installed again.
    """
    folder = cache_folder("environments", name)
    python = folder / "bin" / "python"
    if sees_ours:
        steps = (("--no-deps", "--editable", str(ROOT)), *steps)
    wanted = "\n".join([sys.version, sys.prefix, *map(" ".join, steps)])
    done = folder / DONE
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return python
    print(f"making {folder}, once", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    if sees_ours:
        (site,) = folder.glob("lib/python*/site-packages")
        below = next(path for path in sys.path if path.endswith("site-packages"))
        text = f"import site; site.addsitedir({below!r})\n"
        (site / "below.pth").write_text(text, encoding="utf-8")
    for step in steps:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, *step], check=True)
    done.write_text(wanted, encoding="utf-8")
    return python
