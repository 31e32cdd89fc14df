"""TRL's DistillationTrainer on the prompts, models and sizes of a TrainState, timed per phase.

Its loss is the full-vocabulary reverse KL (beta=1), always on-policy, teacher and student on one
prompt: `opd_full` with beta 1, which TRL has no top-K for. Gradient checkpointing is off, as ours.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from dopd_vlm.prompts import build_prompts
from dopd_vlm.scripts.benchmarks.timings import stoppable
from dopd_vlm.training.samples import EncodedSample
from dopd_vlm.training.state import TrainState


class Stopwatch(TrainerCallback):
    """Seconds per phase of each of the trainer's optimizer steps; runs the others in between."""

    def __init__(self, before_each: Callable[[], None]) -> None:
        self.before_each = before_each
        self.steps: list[dict[str, float]] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The others' turn, then ours starts."""
        self.before_each()
        self.seconds.clear()
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Whatever no wrapped method took belongs to `step`."""
        total = time.perf_counter() - self.start
        seconds = dict(self.seconds)
        seconds["loss"] = seconds["compute"] + seconds["backward"] - seconds["score"]
        known = seconds["rollout"] + seconds["score"] + seconds["loss"]
        self.steps.append({**seconds, "step": total - known})

    def wrap(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same callable, its time added to `phase`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = call(*args, **kwargs)
            self.seconds[phase] += time.perf_counter() - start
            return result

        return timed


def trl_steps(
    args: argparse.Namespace,
    state: TrainState,
    samples: list[EncodedSample],
    *,
    before_each: Callable[[], None],
) -> list[dict[str, float]]:
    """Phases of args.repeats + 1 optimizer steps; `before_each` runs before each of them."""
    watch = Stopwatch(before_each)
    assert state.teacher is not None
    trainer = DistillationTrainer(
        model=state.student.model,
        teacher_model=state.teacher.model,
        args=settings(args, state),
        train_dataset=dataset(samples, args.generations),
        processing_class=state.student.processor,
        callbacks=[watch],
    )
    trainer._generate_single_turn = watch.wrap("rollout", trainer._generate_single_turn)
    trainer.compute_loss = watch.wrap("compute", trainer.compute_loss)
    trainer.accelerator.backward = watch.wrap("backward", trainer.accelerator.backward)
    trainer._get_last_hidden_state = teacher_timed(watch, trainer, state.teacher.model)
    with stoppable():
        trainer.train()
    tokens = float(len(samples) * args.generations * args.tokens)
    return [{**step, "tokens": tokens} for step in watch.steps]


def teacher_timed(
    watch: Stopwatch, trainer: DistillationTrainer, teacher: Any
) -> Callable[..., Any]:
    """The trainer's forward, timed as `score` where it is the teacher's."""
    forward = trainer._get_last_hidden_state
    timed = watch.wrap("score", forward)

    def call(model: Any, *args: Any, **kwargs: Any) -> Any:
        return (timed if model is teacher else forward)(model, *args, **kwargs)

    return call


def settings(args: argparse.Namespace, state: TrainState) -> DistillationConfig:
    """The trainer's arguments for the same step."""
    sequences = args.prompts * args.generations
    return DistillationConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=args.micro,
        gradient_accumulation_steps=sequences // args.micro,
        max_steps=args.repeats + 1,
        learning_rate=state.config.optim.learning_rate,
        max_completion_length=args.tokens,
        temperature=1.0,
        top_k=0,
        beta=1.0,
        shuffle_dataset=False,
        save_strategy="no",
        report_to="none",
        logging_steps=10**6,
        disable_tqdm=True,
    )


def dataset(samples: list[EncodedSample], generations: int) -> Dataset:
    """Each prompt as often as it has completions."""
    pairs = [build_prompts(s.sample).plain for s in samples for _ in range(generations)]
    rows: dict[str, list[Any]] = {"prompt": [[strip(m) for m in messages] for messages in pairs]}
    images = [[b["image"] for m in ms for b in blocks(m) if b["type"] == "image"] for ms in pairs]
    if any(images):
        rows["images"] = images
    return Dataset.from_dict(rows)


def blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Content blocks; none for plain text."""
    return message["content"] if isinstance(message["content"], list) else []


def strip(message: dict[str, Any]) -> dict[str, Any]:
    """The message without its images: TRL takes them from a column of their own."""
    if isinstance(message["content"], str):
        return message
    content = [{k: v for k, v in b.items() if k != "image"} for b in message["content"]]
    if all(b["type"] == "text" for b in content):
        content = "".join(b["text"] for b in content)
    return {**message, "content": content}
