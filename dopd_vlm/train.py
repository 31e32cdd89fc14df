"""The training loop: take steps, evaluate, save, stop cleanly.

The loop knows no rows and no benchmarks: samples come as a sequence, evaluation and scoring as callables.
"""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate.utils import set_seed
from rich.console import Console

from dopd_vlm.config import RunConfig
from dopd_vlm.distributed import any_of, failing_together
from dopd_vlm.jsonl import read_lines
from dopd_vlm.methods import configured_method
from dopd_vlm.models.policy import Policy
from dopd_vlm.rollout.engine import RolloutEngine
from dopd_vlm.run_folder import SAMPLES_FILE, SKIPPED_FILE, open_run_folder
from dopd_vlm.tracking.console import RunView
from dopd_vlm.tracking.observer import VIEWS, Observer, privilege_probe
from dopd_vlm.tracking.token_maps import decoded_samples
from dopd_vlm.tracking.tracker import Tracker, check_trackers, start_trackers, stop_trackers
from dopd_vlm.training.build import build_state, make_accelerator, run_folder
from dopd_vlm.training.checkpoint import check_space, save_checkpoint
from dopd_vlm.training.completions import current_engine
from dopd_vlm.training.metrics import memory_metrics
from dopd_vlm.training.rescoring import DIFFERENCE_AT_MOST
from dopd_vlm.training.samples import VIEWS as SAMPLE_VIEWS
from dopd_vlm.training.samples import (
    BadRow,
    EncodedSample,
    EncodedStream,
    encode_row,
    encode_sample,
    num_workers,
    stand_ins,
    start_server,
)
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.step import Clock, train_step
from dopd_vlm.types import Sample

log = logging.getLogger(__name__)

ScoreAnswer = Callable[[str, Sample], float | None]
"""(completion text, sample) -> correctness in [0, 1]; None where the sample has no answer to score with."""
PROBE_SIZE = 64
"""Prompts of the privilege probe over all processes."""
ALIVE_AT_LEAST = 0.5
"""routing/alive below which a run warns."""
VIEWED_ROWS = 16
"""Rows among which a good one is looked for to see which views there are."""
LOGGED_SAMPLES = 4
"""Decoded completions kept at each checkpoint."""


class Evaluate(Protocol):
    """What measures the student between steps; called on every process."""

    def __call__(
        self,
        student: Policy,
        step: int,
        is_last: bool,
        *,
        teacher: Policy | None,
        engine: RolloutEngine,
    ) -> Mapping[str, float]:
        """{metric name: value}.

        `teacher` is the run's own, None where its method needs none; `engine` samples as in training
        and holds the student's weights of this step.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    run_dir: Path
    step: int
    interrupted: bool
    num_skipped: int


@failing_together()
def train(
    config: RunConfig,
    samples: Sequence[Sample],
    *,
    evaluate: Evaluate | None = None,
    score_answer: ScoreAnswer | None = None,
    console: Console | None = None,
    recipe: RunConfig | None = None,
    rows: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Distil until optim.max_steps, or until Ctrl-C, which saves and returns.

    `recipe` is what config.yaml will say, where that differs from `config`: names in place of folders.
    `rows` is what was found in the rows beforehand: it goes to rows.json, for the run page.
    `samples[i]` may raise ValueError for a bad row: it is counted, written to skipped.jsonl, and a
    good row takes its place.
    Raises ValueError before the first step for whatever a recipe can get wrong.
    """
    check_trackers(config.tracking)
    check_method(config, samples, has_scorer=score_answer is not None)
    accelerator = make_accelerator(config)
    set_seed(config.seed)
    console = console or Console()
    run_dir = run_folder(config)
    if accelerator.is_main_process:
        open_run_folder(recipe or config, rows)
    accelerator.wait_for_everyone()
    if num_workers(config, accelerator.device):
        start_server(samples)
    state = build_state(config, accelerator, run_dir)
    check_space(state, run_dir)
    tracker = open_tracker(state, run_dir, console)
    accelerator.wait_for_everyone()  # all have read what the folder holds before anyone adds to it
    loop = Loop(state, samples, tracker, evaluate, score_answer)
    with tracker.view, interruptible() as stop, closing(loop.stream), closing(state.engine):
        interrupted = loop.run(stop)
    stop_trackers(accelerator)
    return TrainResult(
        run_dir=run_dir, step=state.step, interrupted=interrupted, num_skipped=state.num_skipped
    )


def check_method(config: RunConfig, samples: Sequence[Sample], *, has_scorer: bool) -> None:
    """Raises ValueError for a method that asks for what the recipe lacks, before any model is loaded."""
    method = configured_method(config)
    if method.needs_reward and not has_scorer:
        raise ValueError(
            f"method.name={method.name!r} needs a reward for each completion, and there is no scorer: "
            "train on rows with an `answer`, by `dopd train`, or pass score_answer to train()"
        )
    further = [view for view in method.views if view not in SAMPLE_VIEWS]
    first = _first_good(samples) if further else None
    known = [*SAMPLE_VIEWS, *first.views] if first else further
    for view in further:
        if view not in known:
            raise ValueError(
                f"method.name={method.name!r} needs the view {view!r}, which the rows lack; they have "
                f"{', '.join(known)}: give each Sample views={{{view!r}: View(...)}}, or choose another method"
            )


def _first_good(samples: Sequence[Sample]) -> Sample | None:
    for row in range(min(VIEWED_ROWS, len(samples))):
        try:
            return samples[row]
        except ValueError:
            continue  # it is counted and written down when its turn comes
    return None


def open_tracker(state: TrainState, run_dir: Path, console: Console) -> Tracker:
    """Console, metrics.jsonl and the recipe's trackers, at the step where the run begins."""
    config, accelerator = state.config, state.accelerator
    notes = start_trackers(accelerator, config, run_dir) if config.tracking else []
    view = RunView(
        console,
        title=f"{config.name}: {config.method.name}",
        num_steps=config.optim.max_steps,
        is_shown=accelerator.is_main_process,
    )
    tracker = Tracker(
        run_dir=run_dir,
        is_main=accelerator.is_main_process,
        view=view,
        log=accelerator.log if config.tracking else None,
    )
    tracker.resume_at(state.step)
    for note in notes:
        tracker.say(note)
    return tracker


class Loop:
    """Steps over one state; its methods are the things that happen between steps."""

    def __init__(
        self,
        state: TrainState,
        samples: Sequence[Sample],
        tracker: Tracker,
        evaluate: Evaluate | None,
        score_answer: ScoreAnswer | None,
    ) -> None:
        self.state, self.samples, self.tracker = state, samples, tracker
        self.evaluate, self.score_answer = evaluate, score_answer
        lines = read_lines(tracker.run_dir / SKIPPED_FILE)
        self.bad_rows: set[int] = {line["row"] for line in lines}
        self.is_noise_told = self.is_difference_told = False
        size = min(PROBE_SIZE, len(samples))
        self.probe_rows = row_order(len(samples), state.config.seed, 0, size)
        self.observer = Observer(state, samples, self.probe_rows, tracker, score_answer)
        self.stream = EncodedStream(
            state.config,
            state.student.encoder,
            samples,
            self.coming_rows(),
            workers=num_workers(state.config, state.accelerator.device),
            ahead=len(self.share(range(state.config.optim.batch_size))),
            views=state.method.views,
        )

    def run(self, stop: list[int]) -> bool:
        """Steps until the last one or a signal to any process; True when a signal came."""
        state, config = self.state, self.state.config
        if self.is_measured() and state.step not in self.tracker.measured_steps:
            self.measure(is_last=state.step == config.optim.max_steps)
        while state.step < config.optim.max_steps:
            self.step()
            is_last = state.step == config.optim.max_steps
            is_stopped = any_of(state.accelerator, bool(stop))
            if is_last or is_stopped or state.step % config.checkpoint_every == 0:
                self.save()
            if is_stopped:
                self.tracker.say(f"interrupted: step {state.step} is saved, go on with resume=true")
                self.observer.renew_page()
                return True
            if self.is_measured():
                self.measure(is_last=is_last)
        return False

    def is_measured(self) -> bool:
        """Whether an evaluation belongs to this step: before the first, every so often, after the last."""
        step, config = self.state.step, self.state.config
        return step == config.optim.max_steps or step % config.evaluation.every == 0

    def step(self) -> None:
        """One optimizer step and its line in the log."""
        state, clock = self.state, Clock()
        with clock.phase("data"):
            batch = self.batch()
        output = train_step(state, batch, clock, self.score_answer)
        learning_rate = state.scheduler.get_last_lr()[0]
        state.step += 1
        num_tokens = output.metrics["count/completion_tokens"]
        metrics = {
            **output.metrics,
            "optim/learning_rate": learning_rate,
            **clock.metrics(num_tokens),
            **memory_metrics(),
        }
        self.tracker.step(state.step, metrics)
        self.warn_of_noise(metrics)
        self.warn_of_difference(metrics)
        self.observer.note(output, is_logged=self.is_measured() or state.step == 1)
        if state.step % state.config.checkpoint_every == 0 or state.step == 1:
            for record in decoded_samples(state, output, LOGGED_SAMPLES):
                self.tracker.write(SAMPLES_FILE, {"step": state.step, **record})

    def share(self, indices: Sequence[int]) -> Sequence[int]:
        """This process's part of rows that all processes work on."""
        accelerator = self.state.accelerator
        return indices[accelerator.process_index :: accelerator.num_processes]

    def coming_rows(self) -> Iterator[int]:
        """This process's rows of every step from here on."""
        config, size = self.state.config, self.state.config.optim.batch_size
        for step in range(self.state.step, config.optim.max_steps):
            yield from self.share(row_order(len(self.samples), config.seed, step * size, size))

    def batch(self) -> list[EncodedSample]:
        """This process's share of the step's rows, encoded; a good row takes the place of each bad one."""
        size = self.state.config.optim.batch_size
        places = self.share(range(self.state.step * size, (self.state.step + 1) * size))
        rows = [
            item if isinstance(item, EncodedSample) else self.stand_in(item, place)
            for item, place in zip(self.stream.take(len(places)), places, strict=True)
        ]
        return [replace(row, place=place) for row, place in zip(rows, places, strict=True)]

    def stand_in(self, bad: BadRow, place: int) -> EncodedSample:
        """A good row in place of a bad one, which is recorded, so that steps keep their size."""
        state = self.state
        self.skip(bad)
        for row in stand_ins(len(self.samples), state.config.seed, place):
            if row in self.bad_rows:
                continue
            views = state.method.views
            item = encode_row(state.config, state.student.encoder, self.samples, row, views)
            if isinstance(item, EncodedSample):
                return item
            self.skip(item)
        raise ValueError(f"no row can be used, the last: {bad.reason}; see {SKIPPED_FILE}")

    def skip(self, bad: BadRow) -> None:
        """Counts a bad row and writes it down."""
        self.state.num_skipped += 1
        self.bad_rows.add(bad.row)
        self.tracker.write(SKIPPED_FILE, {"step": self.state.step + 1, **asdict(bad)})
        log.warning("row %d is skipped: %s", bad.row, bad.reason)

    def measure(self, *, is_last: bool) -> None:
        """Benchmarks, and the privilege probe: is the student better when it sees what the teacher sees?"""
        state, view = self.state, self.tracker.view
        view.status(f"evaluation at step {state.step}")
        values: dict[str, float] = {}
        if self.evaluate is not None:
            values |= self.evaluate(
                state.student,
                state.step,
                is_last,
                teacher=state.teacher,
                engine=current_engine(state),
            )
        if self.score_answer is not None:
            values |= self.probe(self.score_answer)
        self.tracker.measured(state.step, values)
        view.status("token maps and report.html")
        self.observer.look()
        view.status("")

    def probe(self, score_answer: ScoreAnswer) -> dict[str, float]:
        """Greedy accuracy and length of the student in both views on the first training prompts."""
        state, encoded = self.state, []
        for index in self.share(self.probe_rows):
            try:
                encoded.append(encode_sample(state, self.samples[index]))
            except ValueError:
                continue  # batch() records it when its turn comes
        values = privilege_probe(state, encoded, score_answer)
        if state.step == 0 and state.method.needs_self_target:
            self.warn_of_no_gain(values)
        return values

    def warn_of_no_gain(self, values: Mapping[str, float]) -> None:
        """Says so where privilege does not help the student on the probe's prompts."""
        plain, privileged = (values.get(f"probe/{view}_accuracy") for view in VIEWS)
        if plain is not None and privileged is not None and privileged - plain < 0.02:
            self.tracker.say(
                f"[yellow]warning:[/] on {len(self.probe_rows)} training prompts the student is right in "
                f"{privileged:.0%} with privilege and {plain:.0%} "
                "without: a self-target that gains nothing from privilege has nothing to teach. "
                "Look at the annotations, or use method.name=opd"
            )

    def warn_of_noise(self, metrics: Mapping[str, float]) -> None:
        """Says so, once, where most high gaps are no larger than what the arithmetic moves them by."""
        alive = metrics.get("routing/alive", 1.0)
        if alive < ALIVE_AT_LEAST and not self.is_noise_told:
            self.is_noise_told = True
            self.tracker.say(
                f"[yellow]warning:[/] step {self.state.step}: {alive:.0%} of the high-gap tokens have a gap "
                f"above the noise of the arithmetic, {metrics['routing/noise']:.1e} nats: the rest is "
                "routed by rounding. Set method.gap_floor to a larger number of nats, or precision=float32"
            )

    def warn_of_difference(self, metrics: Mapping[str, float]) -> None:
        """Says so, once, where the engine's log-probs are not the student's."""
        difference = metrics.get("rollout/logprob_diff", 0.0)
        if difference > DIFFERENCE_AT_MOST and not self.is_difference_told:
            self.is_difference_told = True
            self.tracker.say(
                f"[yellow]warning:[/] step {self.state.step}: the engine's log-probs differ from the student's "
                f"own by {difference:.2f} nats a token (rollout/logprob_diff, at most {DIFFERENCE_AT_MOST} is "
                "usual): it samples from another model. Use rollout.engine=own, or compare the types of both"
            )

    def save(self) -> None:
        """A checkpoint by the main process, while the others wait."""
        if self.state.accelerator.is_main_process:
            save_checkpoint(self.state, self.tracker.run_dir)
        self.state.accelerator.wait_for_everyone()


def row_order(num_rows: int, seed: int, start: int, count: int) -> list[int]:
    """Rows start..start+count of an endless shuffled order, a function of the seed alone.

    Each pass over the rows has its own permutation; the last one used is held, 8 bytes a row.
    """
    if num_rows == 0:
        raise ValueError("there is no training row; see data.train and the rows that were skipped")
    rows: list[int] = []
    while len(rows) < count:
        epoch, offset = divmod(start + len(rows), num_rows)
        wanted = slice(offset, offset + count - len(rows))
        rows += _permutation(num_rows, seed * 1_000_003 + epoch)[wanted].tolist()
    return rows


@lru_cache(maxsize=1)
def _permutation(num_rows: int, seed: int) -> torch.Tensor:
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """A list that holds the signal once SIGINT or SIGTERM came; a second one stops at once."""
    stop: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
