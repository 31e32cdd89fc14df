"""One optimizer step: rollouts -> target scores -> thresholds -> routed loss -> optimizer.

Every count that divides a loss is known over all processes and micro-batches before the first
backward, so that gradients only ever add up.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from dopd_vlm.distributed import first_failure, sum_gradients_, total_of
from dopd_vlm.models.forward import completion_hidden
from dopd_vlm.models.image_features import StepFeatures
from dopd_vlm.models.policy import Policy
from dopd_vlm.rollout.seeds import mixed_seed
from dopd_vlm.routed_loss import LossOutput, Student, Target, routed_loss
from dopd_vlm.routed_loss.softmax import chunk_dtype
from dopd_vlm.routers import Limits
from dopd_vlm.routing import Counts
from dopd_vlm.training.completions import completions
from dopd_vlm.training.metrics import batch_averages, batch_sums
from dopd_vlm.training.noise import noise_metrics, routing_noise
from dopd_vlm.training.rescoring import logprob_difference
from dopd_vlm.training.samples import EncodedSample
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.targets import MicroBatch, batch_limits, score_targets, with_routes
from dopd_vlm.types import Rollout, Sample


class NonFiniteLossError(RuntimeError):
    """The loss is infinite or not a number; raised before the optimizer step."""


@dataclass(kw_only=True)
class Clock:
    """Seconds per named phase of one step."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to `name`, which a profiler's trace shows as `step/name`."""
        start = time.perf_counter()
        with torch.profiler.record_function(f"step/{name}"):
            yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - start

    def metrics(self, num_tokens: float) -> dict[str, float]:
        """time/<phase>, their sum, and tokens per second of the whole step."""
        total = sum(self.seconds.values())
        phases = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        return {**phases, "time/step_total": total, "time/tokens_per_second": num_tokens / total}


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """One optimizer step: metrics over all processes, and this process's tokens for the sample log."""

    metrics: dict[str, float]
    micro_batches: list[MicroBatch]
    losses: list[LossOutput]
    thresholds: Limits | None


def train_step(
    state: TrainState,
    samples: Sequence[EncodedSample],
    clock: Clock,
    score: Callable[[str, Sample], float | None] | None = None,
) -> StepOutput:
    """One optimizer step on this process's share of the batch; `score` adds rollout/accuracy.

    Completions that it gives None for are left out of the accuracy and counted in rollout/unscored.
    """
    features = StepFeatures()
    with clock.phase("rollout"):
        rollouts = roll_out(state, samples, features)
    scores = [] if score is None else _scores(state, samples, rollouts, score)
    rewards = {id(r): s for r, s in zip(rollouts, scores, strict=False) if s is not None}
    with clock.phase("score"):
        difference = logprob_difference(state, samples, rollouts)
    output = distil_step(state, samples, rollouts, clock, features, rewards)
    output.metrics.update(difference)
    if score is not None:
        own = [s for s, r in zip(scores, rollouts, strict=True) if r.source == "student"]
        output.metrics.update(accuracy_of(state.accelerator, own))
    return output


def _scores(
    state: TrainState,
    samples: Sequence[EncodedSample],
    rollouts: Sequence[Rollout],
    score: Callable[[str, Sample], float | None],
) -> list[float | None]:
    per_sample = len(rollouts) // max(1, len(samples))
    return [
        score(completion_text(state.student, rollout), samples[i // per_sample].sample)
        if rollout.source == "student"
        else None
        for i, rollout in enumerate(rollouts)
    ]


def accuracy_of(accelerator: Accelerator, scores: Sequence[float | None]) -> dict[str, float]:
    """rollout/accuracy over the scored completions of all processes; rollout/unscored where some are not."""
    scored = [score for score in scores if score is not None]
    sums = {"right": sum(scored), "scored": float(len(scored)), "all": float(len(scores))}
    total = total_of(accelerator, sums)
    unscored = total["all"] - total["scored"]
    metrics = {"rollout/unscored": unscored} if unscored else {}
    return metrics | (
        {"rollout/accuracy": total["right"] / total["scored"]} if total["scored"] else {}
    )


def distil_step(
    state: TrainState,
    samples: Sequence[EncodedSample],
    rollouts: Sequence[Rollout],
    clock: Clock,
    features: StepFeatures | None = None,
    rewards: Mapping[int, float] | None = None,
) -> StepOutput:
    """One optimizer step on given rollouts, `len(rollouts) / len(samples)` for each sample in order.

    `features` holds what the rollouts made of the step's images, where they made anything; `rewards` is
    id of a rollout -> its reward, for a router that asks for them.
    The update depends on the union of the rollouts over processes, not on how they are spread.
    """
    features = features or StepFeatures()
    with clock.phase("score"):
        micro_batches = score_targets(state, samples, rollouts, features)
        noise = routing_noise(state, micro_batches, features)
        features.keep_only(state.student)
        limits = batch_limits(state, micro_batches)
        counts = batch_counts(state, rollouts)
    if counts.num_sequences == 0:
        raise ValueError(
            f"step {state.step}: every row of the batch was skipped; see skipped.jsonl"
        )
    micro_batches = with_routes(state, micro_batches, limits, rewards)
    with clock.phase("loss"):
        losses = _losses(state, micro_batches, limits, counts, features)
        with recomputing(state):
            at_once = state.config.optim.micro_batch_size
            features.backward(state.student, at_once, lambda: state.accelerator.autocast())
    with clock.phase("step"):
        grad_norm = optimizer_step(state)
    sums = total_of(state.accelerator, batch_sums(losses, rollouts))
    metrics = {**batch_averages(sums), "optim/grad_norm": grad_norm}
    if limits is not None:
        metrics |= {f"threshold/{name}": value for name, value in limits.record().items()}
    metrics |= noise_metrics(state, micro_batches, losses, noise)
    return StepOutput(
        metrics=metrics, micro_batches=micro_batches, losses=losses, thresholds=limits
    )


def roll_out(
    state: TrainState, samples: Sequence[EncodedSample], features: StepFeatures | None = None
) -> list[Rollout]:
    """Completions of a training step, seeded by run, step, row and sample: never by process or batch."""
    rollout = state.config.rollout
    seed = mixed_seed(state.config.seed, rollout.seed, state.step)
    return completions(state, samples, rollout.sampling(seed=seed), features)


def completion_text(policy: Policy, rollout: Rollout) -> str:
    """The completion for scoring and reading: special tokens left out."""
    text = policy.tokenizer.decode(rollout.completion_ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def batch_counts(state: TrainState, rollouts: Sequence[Rollout]) -> Counts:
    """Sequences and completion tokens of the optimizer batch."""
    tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
    sums = {"sequences": float(len(rollouts)), "tokens": float(tokens)}
    total = total_of(state.accelerator, sums)
    return Counts(num_sequences=int(total["sequences"]), num_tokens=int(total["tokens"]))


def _losses(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    limits: Limits | None,
    counts: Counts,
    features: StepFeatures,
) -> list[LossOutput]:
    """Forward and backward of all micro-batches; a loss that is not finite on one rank stops all of them."""
    losses, failure = [], None
    try:
        for micro in micro_batches:
            losses.append(_backward(state, micro, limits, counts, features))
    except NonFiniteLossError as error:
        failure = str(error)
    failure = first_failure(state.accelerator, failure)
    if failure is not None:
        raise NonFiniteLossError(failure)
    return losses


def _backward(
    state: TrainState,
    micro: MicroBatch,
    limits: Limits | None,
    counts: Counts,
    features: StepFeatures,
) -> LossOutput:
    output = micro_batch_loss(state, micro, limits, counts, features)
    _check_finite(state, micro, output)
    with recomputing(state):
        output.loss.backward()
    return output


@contextmanager
def recomputing(state: TrainState) -> Iterator[None]:
    """Where checkpointed layers recompute: transformers does so in train mode alone (dropout is off)."""
    is_on = state.config.optim.gradient_checkpointing
    state.student.model.train(is_on)
    try:
        yield
    finally:
        state.student.model.eval()


def micro_batch_loss(
    state: TrainState,
    micro: MicroBatch,
    limits: Limits | None,
    counts: Counts,
    features: StepFeatures | None = None,
) -> LossOutput:
    """The routed loss of one micro-batch; gradient as the caller's mode says.

    With `features`, the gradient of the vision tower is left to `StepFeatures.backward`.
    """
    student, method = state.student, state.config.method
    batch = micro.batch.to(student.device)
    with state.accelerator.autocast(), recomputing(state):
        hidden = completion_hidden(student, batch, features)
    targets = {
        name: Target(hidden=target.hidden, head=target.head, scores=target.scores)
        for name, target in micro.targets.items()
    }
    head = state.head(student)
    return routed_loss(
        Student(hidden=hidden, head=head, head_grad=head_grad(hidden, head.weight)),
        targets,
        batch.completion_ids,
        batch.mask,
        state.method,
        thresholds=limits,
        routing=micro.routing,
        num_sequences=counts,
        temperature=method.temperature,
        chunk_size=method.chunk_size,
    )


def head_grad(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    """The weight's own `.grad`, made where it is missing, for the loss to add to: no second [V, H] a micro-batch.

    None where nothing is trained, and where the loss sums in another type than the weight's.
    """
    is_whole = weight.dtype == chunk_dtype(hidden, weight)
    if not (torch.is_grad_enabled() and weight.requires_grad and weight.is_leaf and is_whole):
        return None
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def _check_finite(state: TrainState, micro: MicroBatch, output: LossOutput) -> None:
    if output.loss.isfinite():
        return
    bad = (~output.per_token.isfinite()).any(-1).nonzero().flatten().tolist() or range(
        len(micro.samples)
    )
    uids = sorted({micro.samples[i].sample.uid for i in bad})
    raise NonFiniteLossError(
        f"step {state.step}: the loss is {float(output.loss.detach())}; "
        f"samples {', '.join(uids[:5])}. Nothing was updated; the last checkpoint is whole. "
        "Lower optim.learning_rate, or look at these rows"
    )


def optimizer_step(state: TrainState) -> float:
    """Add gradients up over processes, clip, step; returns the norm before clipping."""
    parameters = [p for p in state.student.model.parameters() if p.requires_grad]
    sum_gradients_(state.accelerator, parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, state.config.optim.max_grad_norm)
    if not norm.isfinite():
        raise NonFiniteLossError(
            f"step {state.step}: the gradient norm is {float(norm)}; nothing was updated"
        )
    state.optimizer.step()
    state.scheduler.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.method.self_target == "ema" and state.self_target is not None:
        _update_average_(state.self_target.model, state.student.model, state.config.method.ema_rate)
    return float(norm)


@torch.no_grad()
def _update_average_(average: torch.nn.Module, model: torch.nn.Module, rate: float) -> None:
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new.to(old.dtype), rate)
