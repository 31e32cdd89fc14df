"""A run's parts from its recipe: processes, models, method, optimizer, and where it writes."""

import copy
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from transformers import get_cosine_schedule_with_warmup

from dopd_vlm.config import DataConfig, RunConfig
from dopd_vlm.distributed import first_failure, process_state
from dopd_vlm.methods import Method, configured_method
from dopd_vlm.models.families import Family
from dopd_vlm.models.policy import (
    Policy,
    add_lora,
    check_vocabularies,
    checkpoint_activations_,
    has_bfloat16,
    load_policy,
    output_head,
)
from dopd_vlm.rollout.engines import open_engine
from dopd_vlm.training.agreement import check_same_weights
from dopd_vlm.training.checkpoint import AVERAGE, last_checkpoint, load_trainer_
from dopd_vlm.training.manifest import check_manifest
from dopd_vlm.training.state import TrainState


def make_accelerator(config: RunConfig) -> Accelerator:
    """Processes, device, precision and trackers."""
    # Not from an Accelerator: the precision of the first one cannot be changed.
    device = process_state().device or "cpu"
    use_bfloat16 = config.precision == "bfloat16" or (
        config.precision == "auto" and has_bfloat16(device)
    )
    return Accelerator(
        mixed_precision="bf16" if use_bfloat16 else "no",
        log_with=list(config.tracking) or None,
        project_config=ProjectConfiguration(
            project_dir=str(run_folder(config)), logging_dir=str(run_folder(config) / "tensorboard")
        ),
    )


def run_folder(config: RunConfig) -> Path:
    """Where the run writes."""
    return Path(config.output_dir) / str(config.name)


def build_state(config: RunConfig, accelerator: Accelerator, run_dir: Path) -> TrainState:
    """Models, method and optimizer; from the last checkpoint when resuming."""
    method = configured_method(config)
    checkpoint = checkpoint_to_resume(config, accelerator, run_dir)
    device = accelerator.device
    student = load_student(config, device, checkpoint)
    check_coords(config.data, student.family)
    teacher = (
        load_policy(config.teacher, device=device, trainable=False)
        if method.needs_teacher
        else None
    )
    if teacher is not None:
        check_vocabularies(student, teacher)
    parameters = [p for p in student.model.parameters() if p.requires_grad]
    optim = config.optim
    optimizer = torch.optim.AdamW(
        parameters, lr=optim.learning_rate, betas=optim.betas, weight_decay=optim.weight_decay
    )
    widths = [len(output_head(p).weight) for p in (student, teacher) if p is not None]
    state = TrainState(
        config=config,
        accelerator=accelerator,
        student=student,
        teacher=teacher,
        self_target=load_self_target(config, method, student, checkpoint),
        method=method,
        optimizer=optimizer,
        scheduler=get_cosine_schedule_with_warmup(optimizer, optim.warmup_steps, optim.max_steps),
        engine=open_engine(config.rollout, student, accelerator.autocast),
        vocab_size=min(widths),
        base=load_first(config, student) if method.needs_base else None,
    )
    if checkpoint is not None:
        load_trainer_(state, checkpoint)
    check_same_weights(state)
    return state


def checkpoint_to_resume(config: RunConfig, accelerator: Accelerator, run_dir: Path) -> Path | None:
    """The newest checkpoint where the recipe resumes; rank 0 reads all of it once and all hear what it says."""
    checkpoint = last_checkpoint(run_dir) if config.resume else None
    failure = None
    if checkpoint is not None and accelerator.is_main_process:
        try:
            check_manifest(checkpoint, config)
        except ValueError as error:
            failure = str(error)
    failure = first_failure(accelerator, failure)
    if failure is not None:
        raise ValueError(failure)
    return checkpoint


def check_coords(data: DataConfig, family: Family) -> None:
    """Warns where places stand in the text in other numbers than the family's models write."""
    in_text = [one for one in data.annotations if isinstance(one, str) or one[1] != "drawn"]
    if in_text and family.coords and data.coords not in family.coords:
        warnings.warn(
            f"data.coords={data.coords!r}: {family.name} writes places as {family.coords[-1]}; "
            f"set data.coords={family.coords[-1]}",
            stacklevel=2,
        )


def load_student(config: RunConfig, device: torch.device, checkpoint: Path | None) -> Policy:
    """The student with gradients, from a checkpoint when there is one."""
    if config.lora.rank:
        base = load_policy(config.student, device=device, trainable=False)
        student = add_lora(base, config.lora, checkpoint)
    else:
        source = replace(config.student, path=str(checkpoint or config.student.path))
        student = load_policy(source, device=device, trainable=True)
    if config.optim.gradient_checkpointing:
        checkpoint_activations_(student.model)
    return student


def load_first(config: RunConfig, student: Policy) -> Policy:
    """The student before the run, without gradient; fresh adapters change nothing, so with LoRA it has none."""
    return load_policy(config.student, device=student.device, trainable=False, like=student)


def load_self_target(
    config: RunConfig, method: Method, student: Policy, checkpoint: Path | None
) -> Policy | None:
    """Whose weights the self-target has: the live student itself, or a copy without gradient."""
    if not method.needs_self_target:
        return None
    if method.self_target == "live":
        return student
    is_average = method.self_target == "ema"
    average = checkpoint / AVERAGE if checkpoint and is_average else None
    if not config.lora.rank:
        source = replace(config.student, path=str(average or config.student.path))
        return load_policy(source, device=student.device, trainable=False, like=student)
    first = load_first(config, student)
    if not is_average:
        return first
    if average is None:
        return replace(student, model=copy.deepcopy(student.model).requires_grad_(False))
    adapted = add_lora(first, config.lora, average)
    return replace(adapted, model=adapted.model.requires_grad_(False))
