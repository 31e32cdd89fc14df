"""Save and resume: a Hugging Face folder for users, and inside it what the next step needs.

    runs/NAME/checkpoints/step_000100/          student weights and processor, loadable by the Auto classes
    runs/NAME/checkpoints/step_000100/trainer/  optimizer, schedule, step, self-target, manifest
    runs/NAME/checkpoint -> checkpoints/...     the newest

Data order and sampling are functions of seed and step, so no random state is stored.
"""

import re
import shutil
from pathlib import Path

import torch

from dopd_vlm.jsonl import replacing
from dopd_vlm.training.manifest import write_manifest
from dopd_vlm.training.state import TrainState

LINK = "checkpoint"
AVERAGE = Path("trainer") / "self_target"
"""Weights of an ema self-target, inside a checkpoint."""


def save_checkpoint(state: TrainState, run_dir: Path) -> Path:
    """Write to a temporary name, rename, then move the link and drop old ones; call on one process.

    Raises OSError with the folder's name when the disk is full; what was saved before stays whole.
    """
    final = run_dir / "checkpoints" / f"step_{state.step:06d}"
    try:
        with replacing(final) as partial:
            _write(state, partial)
    except OSError as error:
        raise OSError(
            f"checkpoint {final} was not written ({error}); earlier ones are whole"
        ) from error
    with replacing(run_dir / LINK) as link:
        link.symlink_to(final.relative_to(run_dir), target_is_directory=True)
    for old in checkpoints(run_dir)[: -1 - state.config.keep_checkpoints]:
        shutil.rmtree(old)
    return final


def _write(state: TrainState, folder: Path) -> None:
    state.student.model.save_pretrained(folder, safe_serialization=True)
    state.student.processor.save_pretrained(folder)
    trainer = folder / "trainer"
    trainer.mkdir()
    if state.method.self_target == "ema" and state.self_target is not None:
        state.self_target.model.save_pretrained(folder / AVERAGE, safe_serialization=True)
    torch.save(
        {
            "step": state.step,
            "num_skipped": state.num_skipped,
            "optimizer": state.optimizer.state_dict(),
            "scheduler": state.scheduler.state_dict(),
        },
        trainer / "state.pt",
    )
    write_manifest(folder, state.config, state.student.model.config)


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    folders = (run_dir / "checkpoints").glob("step_*")
    return sorted(path for path in folders if re.fullmatch(r"step_\d+", path.name))


def last_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    complete = checkpoints(run_dir)
    return complete[-1] if complete else None


def load_trainer_(state: TrainState, checkpoint: Path) -> None:
    """Optimizer, schedule and step of a checkpoint into `state`; tensors only, nothing else is unpickled."""
    saved = torch.load(checkpoint / "trainer" / "state.pt", map_location="cpu", weights_only=True)
    state.optimizer.load_state_dict(saved["optimizer"])
    state.scheduler.load_state_dict(saved["scheduler"])
    state.step, state.num_skipped = saved["step"], saved["num_skipped"]


def check_space(state: TrainState, run_dir: Path) -> None:
    """Raise ValueError before training when the disk cannot hold the checkpoints that will be kept."""
    trained = sum(
        p.numel() * p.element_size() for p in state.student.model.parameters() if p.requires_grad
    )
    everything = sum(p.numel() * p.element_size() for p in state.student.model.parameters())
    needed = (everything + 2 * trained) * (state.config.keep_checkpoints + 2)
    free = shutil.disk_usage(run_dir).free
    if free < needed:
        raise ValueError(
            f"{run_dir} has {free / 2**30:.1f} GiB free, the checkpoints need {needed / 2**30:.1f} GiB; "
            "free some space, set output_dir elsewhere or lower keep_checkpoints"
        )
