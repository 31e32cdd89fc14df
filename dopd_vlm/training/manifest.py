"""What a checkpoint holds, with hashes: what was cut or is another recipe's is named before anything is loaded."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from dopd_vlm.config import RunConfig

MANIFEST = Path("trainer") / "manifest.json"
SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")


def write_manifest(folder: Path, config: RunConfig, model: PretrainedConfig) -> None:
    """Size and SHA-256 of every file below `folder`, and what the recipe must share to go on from it."""
    files = {str(path.relative_to(folder)): _entry(path) for path in _files(folder)}
    content = {"recipe": _recipe(config, model), "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2), encoding="utf-8")


def check_manifest(folder: Path, config: RunConfig) -> None:
    """Every file is as it was written, and the recipe is of the same student; a folder without manifest passes.

    Raises:
        ValueError: a file that is missing, cut or changed; another architecture or LoRA rank.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name, entry in manifest["files"].items():
        file = folder / name
        state = "is missing" if not file.is_file() else _difference(_entry(file), entry)
        if state:
            raise ValueError(
                f"checkpoint file {file} {state}; delete the folder {folder} to go on from the checkpoint before"
            )
    saved = manifest["recipe"]
    for name, value in _wanted(config).items():
        if saved[name] != value:
            raise ValueError(
                f"{folder} is of another recipe: {name} is {saved[name]} there and {value} here; "
                "set the recipe back, or start another run with name=..."
            )


def _wanted(config: RunConfig) -> dict[str, Any]:
    """What the recipe says of its student; of a hub id or a folder of adapters the LoRA rank alone."""
    if not (Path(config.student.path) / "config.json").is_file():
        return {"lora.rank": config.lora.rank}
    trust = config.student.trust_remote_code
    student = AutoConfig.from_pretrained(config.student.path, trust_remote_code=trust)
    return _recipe(config, student)


def _recipe(config: RunConfig, model: PretrainedConfig) -> dict[str, Any]:
    text = model.get_text_config()
    sizes = {f"student {name}": getattr(text, name) for name in SIZES}
    return {"student model_type": model.model_type, **sizes, "lora.rank": config.lora.rank}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _difference(entry: dict[str, Any], saved: dict[str, Any]) -> str:
    """How a file differs from what was written, empty where it does not."""
    if entry["bytes"] != saved["bytes"]:
        return f"has {entry['bytes']} bytes, {saved['bytes']} were written"
    return "" if entry == saved else "has other content than was written"
