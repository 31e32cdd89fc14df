"""One optimizer step: rollouts -> target scores -> thresholds -> routed loss -> optimizer.

Shapes: B sequences, T completion tokens, H hidden size. Every count that divides a loss is known over
all processes and micro-batches before the first backward, so that gradients only ever add up.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from dopd_vlm.config import RunConfig
from dopd_vlm.encode import Batch, EncodedPrompt, collate, encode_prompt
from dopd_vlm.methods import Method
from dopd_vlm.models import Policy, output_head
from dopd_vlm.prompts import build_prompts
from dopd_vlm.rollout import generate
from dopd_vlm.routed_loss import LossOutput, routed_loss
from dopd_vlm.routing import Thresholds, thresholds
from dopd_vlm.scores import completion_hidden
from dopd_vlm.target_scores import TargetScores, target_scores
from dopd_vlm.types import Rollout, Sample, ViewName

log = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss is infinite or not a number; raised before the optimizer step."""


@dataclass(kw_only=True)
class TrainState:
    """What training changes (`step`, weights, moments) and what it needs at hand."""

    config: RunConfig
    accelerator: Accelerator
    student: Policy
    teacher: Policy | None
    self_target: Policy | None
    """The student itself when live; a second model when ema or frozen; None where the method has none."""
    method: Method
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    vocab_size: int
    """Softmax width: the smaller of the two heads, which may be padded differently."""
    step: int = 0
    num_skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """A sample with its two encoded prompts, shared by all its rollouts."""

    sample: Sample
    prompts: Mapping[ViewName, EncodedPrompt]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One frozen distribution's hidden states [B, T, H] and pass-1 scores on the sampled tokens."""

    hidden: Tensor
    mask: Tensor
    scores: TargetScores

    def rows(self, part: slice, mask: Tensor) -> "Target":
        """Sequences `part` of the scored ones, whose own mask is `mask`.

        The supports hold valid tokens only, in row order, so that a range of sequences is a range of them.
        """
        width, scores = mask.shape[1], self.scores
        first = int(self.mask[: part.start].sum())
        tokens = slice(first, first + int(mask.sum()))
        return Target(
            hidden=self.hidden[part, :width],
            mask=mask,
            scores=replace(
                scores,
                logp=scores.logp[part, :width],
                loss_logp=scores.loss_logp[part, :width],
                top_ids=None if scores.top_ids is None else scores.top_ids[tokens],
                top_logp=None if scores.top_logp is None else scores.top_logp[tokens],
            ),
        )


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Sequences of one forward and backward, with what both targets said about them."""

    samples: Sequence[EncodedSample]
    rollouts: Sequence[Rollout]
    batch: Batch
    teacher: Target | None
    self_target: Target | None


@dataclass(kw_only=True)
class Clock:
    """Seconds per named phase of one step."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to `name`."""
        start = time.perf_counter()
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
    thresholds: Thresholds | None


def train_step(
    state: TrainState,
    samples: Sequence[EncodedSample],
    clock: Clock,
    score: Callable[[str, Sample], float] | None = None,
) -> StepOutput:
    """One optimizer step on this process's share of the batch; `score` adds rollout/accuracy."""
    with clock.phase("rollout"):
        rollouts = roll_out(state, samples)
    output = distil_step(state, samples, rollouts, clock)
    if score is not None:
        per_sample = len(rollouts) // max(1, len(samples))
        right = sum(
            score(completion_text(state.student, rollout), samples[i // per_sample].sample)
            for i, rollout in enumerate(rollouts)
        )
        total = _total(state.accelerator, {"right": right, "n": float(len(rollouts))})
        output.metrics["rollout/accuracy"] = total["right"] / total["n"]
    return output


def distil_step(
    state: TrainState, samples: Sequence[EncodedSample], rollouts: Sequence[Rollout], clock: Clock
) -> StepOutput:
    """One optimizer step on given rollouts, `len(rollouts) / len(samples)` for each sample in order.

    The update depends on the union of the rollouts over processes, not on how they are spread.
    """
    with clock.phase("score"):
        micro_batches = score_targets(state, samples, rollouts)
        limits = batch_thresholds(state, micro_batches)
        num_sequences = int(_total(state.accelerator, {"n": float(len(rollouts))})["n"])
    if num_sequences == 0:
        raise ValueError(
            f"step {state.step}: every row of the batch was skipped; see skipped.jsonl"
        )
    with clock.phase("loss"):
        losses = [_backward(state, micro, limits, num_sequences) for micro in micro_batches]
    with clock.phase("step"):
        grad_norm = optimizer_step(state)
    sums = _total(state.accelerator, _sums(losses, rollouts))
    metrics = {**_averages(sums), "optim/grad_norm": grad_norm}
    if limits is not None:
        metrics |= {
            "threshold/gap": limits.gap,
            "threshold/q_student": limits.q_student,
            "threshold/q_teacher": limits.q_teacher,
        }
    return StepOutput(
        metrics=metrics, micro_batches=micro_batches, losses=losses, thresholds=limits
    )


def encode_sample(state: TrainState, sample: Sample) -> EncodedSample:
    """Both views' prompts, encoded once. Raises ValueError naming the uid."""
    config, pair = state.config, build_prompts(sample, state.config.prompts)
    views: tuple[ViewName, ...] = ("plain", "privileged")
    prompts: dict[ViewName, EncodedPrompt] = {
        view: encode_prompt(
            state.student,
            pair.view(view),
            uid=sample.uid,
            template_kwargs=config.chat.template_kwargs,
        )
        for view in views
    }
    longest, limit = max(len(p.input_ids) for p in prompts.values()), config.chat.max_prompt_length
    if limit is not None and longest > limit:
        raise ValueError(
            f"sample {sample.uid!r}: a prompt of {longest} tokens, chat.max_prompt_length is {limit}"
        )
    return EncodedSample(sample=sample, prompts=prompts)


def roll_out(state: TrainState, samples: Sequence[EncodedSample]) -> list[Rollout]:
    """Completions sampled from the student on plain prompts, seeded by run, step and process."""
    rollout, accelerator = state.config.rollout, state.accelerator
    seed = (state.config.seed * 1_000_003 + state.step) * 1_009 + accelerator.process_index
    with accelerator.autocast():
        return generate(
            state.student,
            [s.prompts["plain"] for s in samples],
            num_generations=rollout.num_generations,
            max_completion_length=rollout.max_completion_length,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            seed=seed,
            batch_size=rollout.batch_size,
        )


def score_targets(
    state: TrainState, samples: Sequence[EncodedSample], rollouts: Sequence[Rollout]
) -> list[MicroBatch]:
    """Micro-batches of like length, each with both targets' hidden states and scores, without gradient."""
    optim, per_sample = state.config.optim, len(rollouts) // max(1, len(samples))
    rows = sorted(
        ((samples[i // per_sample], rollout) for i, rollout in enumerate(rollouts)),
        key=lambda row: len(row[1].completion_ids),
        reverse=True,
    )
    micro_batches = []
    for start in range(0, len(rows), optim.score_batch_size):
        chosen = rows[start : start + optim.score_batch_size]
        teacher = _target(
            state, state.teacher, state.method.teacher_view, state.method.teacher_top_k, chosen
        )
        own = _target(
            state,
            state.self_target,
            state.method.self_target_view,
            state.method.self_target_top_k,
            chosen,
        )
        for first in range(0, len(chosen), optim.micro_batch_size):
            part = slice(first, first + optim.micro_batch_size)
            micro_batches.append(_micro_batch(state, chosen[part], part, teacher, own))
    return micro_batches


def _micro_batch(
    state: TrainState,
    rows: Sequence[tuple[EncodedSample, Rollout]],
    part: slice,
    teacher: Target | None,
    own: Target | None,
) -> MicroBatch:
    batch = _batch(state, state.method.student_view, rows)
    return MicroBatch(
        samples=[sample for sample, _ in rows],
        rollouts=[rollout for _, rollout in rows],
        batch=batch,
        teacher=teacher and teacher.rows(part, batch.mask),
        self_target=own and own.rows(part, batch.mask),
    )


def completion_text(policy: Policy, rollout: Rollout) -> str:
    """The completion for scoring and reading: special tokens left out."""
    text = policy.tokenizer.decode(rollout.completion_ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def greedy_views(
    state: TrainState, samples: Sequence[EncodedSample], score: Callable[[str, Sample], float]
) -> dict[str, float]:
    """probe/<view>_accuracy and probe/<view>_length of the student's greedy completions in both views."""
    views: tuple[ViewName, ...] = ("plain", "privileged")
    metrics: dict[str, float] = {}
    for view in views:
        with state.accelerator.autocast():
            rollouts = generate(
                state.student,
                [s.prompts[view] for s in samples],
                max_completion_length=state.config.rollout.max_completion_length,
                temperature=0.0,
                batch_size=state.config.rollout.batch_size,
            )
        right = [
            score(completion_text(state.student, rollout), s.sample)
            for rollout, s in zip(rollouts, samples, strict=True)
        ]
        lengths = [len(rollout.completion_ids) for rollout in rollouts]
        metrics[f"probe/{view}_accuracy"] = sum(right) / max(1, len(right))
        metrics[f"probe/{view}_length"] = sum(lengths) / max(1, len(lengths))
    return metrics


def _batch(
    state: TrainState, view: ViewName, rows: Sequence[tuple[EncodedSample, Rollout]]
) -> Batch:
    return collate(
        [sample.prompts[view] for sample, _ in rows],
        [rollout.completion_ids for _, rollout in rows],
        pad_id=state.student.pad_id,
    )


def _target(
    state: TrainState,
    policy: Policy | None,
    view: ViewName,
    top_k: int | None,
    rows: Sequence[tuple[EncodedSample, Rollout]],
) -> Target | None:
    if policy is None:
        return None
    batch = _batch(state, view, rows).to(policy.device)
    with torch.no_grad(), state.accelerator.autocast():
        hidden = completion_hidden(policy, batch)
    scores = target_scores(
        hidden,
        output_head(policy),
        batch.completion_ids,
        batch.mask,
        top_k=top_k,
        temperature=state.config.method.temperature,
        vocab_size=state.vocab_size,
        chunk_size=state.config.method.chunk_size,
    )
    return Target(hidden=hidden, mask=batch.mask.cpu(), scores=scores)


def batch_thresholds(state: TrainState, micro_batches: Sequence[MicroBatch]) -> Thresholds | None:
    """Thresholds over every valid token of the optimizer batch, of all processes; None without a gap."""
    if not state.method.routes_by_gap:
        return None
    pairs = [torch.empty(0, 2, dtype=torch.float64, device=state.accelerator.device)]
    for micro in micro_batches:
        assert micro.teacher is not None and micro.self_target is not None
        mask = micro.batch.mask.to(micro.teacher.scores.logp.device)
        pairs.append(
            torch.stack(
                [micro.teacher.scores.logp[mask], micro.self_target.scores.logp[mask]], -1
            ).double()
        )
    scores = _gather_rows(state.accelerator, torch.cat(pairs))
    return thresholds(
        scores[None, :, 0],
        scores[None, :, 1],
        torch.ones(1, len(scores), dtype=torch.bool),
        state.config.method.trim,
    )


def _gather_rows(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """Rows of all processes, of which each may hold another number; NaN marks the padding."""
    if accelerator.num_processes == 1:
        return rows.cpu()
    padded = accelerator.pad_across_processes(rows, dim=0, pad_index=float("nan"))  # type: ignore[arg-type]
    gathered = accelerator.gather(padded)
    assert isinstance(gathered, Tensor)
    return gathered[~gathered.isnan().any(-1)].cpu()


def _backward(
    state: TrainState, micro: MicroBatch, limits: Thresholds | None, num_sequences: int
) -> LossOutput:
    student, method = state.student, state.config.method
    batch = micro.batch.to(student.device)
    with state.accelerator.autocast():
        hidden = completion_hidden(student, batch)
    teacher, own = micro.teacher, micro.self_target
    output = routed_loss(
        hidden,
        output_head(student),
        own.hidden if own else None,
        teacher.hidden if teacher else None,
        output_head(state.teacher) if state.teacher else None,
        batch.completion_ids,
        batch.mask,
        state.method,
        privileged_head=output_head(state.self_target) if state.self_target else None,
        thresholds=limits,
        num_sequences=num_sequences,
        trim=method.trim,
        temperature=method.temperature,
        chunk_size=method.chunk_size,
        teacher_scores=teacher.scores if teacher else None,
        privileged_scores=own.scores if own else None,
    )
    _check_finite(state, micro, output)
    output.loss.backward()
    return output


def _check_finite(state: TrainState, micro: MicroBatch, output: LossOutput) -> None:
    if output.loss.isfinite():
        return
    bad = (~output.per_token.isfinite()).any(-1).nonzero().flatten().tolist() or range(
        len(micro.samples)
    )
    uids = sorted({micro.samples[i].sample.uid for i in bad})
    raise NonFiniteLossError(
        f"step {state.step}: the loss is {float(output.loss.detach())}; "
        f"samples {', '.join(uids[:5])}. Nothing was updated; the last checkpoint stands. "
        "Lower optim.learning_rate, or look at these rows"
    )


def optimizer_step(state: TrainState) -> float:
    """Add gradients up over processes, clip, step; returns the norm before clipping.

    A plain sum, as every weight already holds its share of the whole batch. Own reduction instead of
    DistributedDataParallel, which averages, and hangs when a process has no picture in its batch.
    """
    parameters = [p for p in state.student.model.parameters() if p.requires_grad]
    if state.accelerator.num_processes > 1:
        for parameter in parameters:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = state.accelerator.reduce(grad, "sum")  # type: ignore[assignment]
    norm = torch.nn.utils.clip_grad_norm_(parameters, state.config.optim.max_grad_norm)
    if not norm.isfinite():
        raise NonFiniteLossError(
            f"step {state.step}: the gradient norm is {float(norm)}; nothing was updated"
        )
    state.optimizer.step()
    state.scheduler.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.config.method.self_target == "ema" and state.self_target is not None:
        _update_average_(state.self_target.model, state.student.model, state.config.method.ema_rate)
    return float(norm)


@torch.no_grad()
def _update_average_(average: torch.nn.Module, model: torch.nn.Module, rate: float) -> None:
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new.to(old.dtype), rate)


def _sums(losses: Sequence[LossOutput], rollouts: Sequence[Rollout]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for output in losses:
        for name, value in output.metrics.items():
            sums[name] += float(value)
        sums["loss"] += float(output.loss.detach())
    sums["count/sequences"] += len(rollouts)
    sums["count/completion_tokens"] += sum(len(r.completion_ids) for r in rollouts)
    sums["count/truncated"] += sum(r.finish_reason == "length" for r in rollouts)
    return sums


def _total(accelerator: Accelerator, sums: Mapping[str, float]) -> Counter[str]:
    """Sums over processes, in the order of their ranks."""
    if accelerator.num_processes == 1:
        return Counter(sums)
    total: Counter[str] = Counter()
    for part in gather_object([dict(sums)]):
        total.update(part)
    return total


def _averages(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the whole batch from its sums, each divided once by its own count."""

    def mean(value: str, count: str) -> float:
        return sums[value] / sums[count] if sums[count] else 0.0

    metrics = {
        "loss": sums["loss"],
        "divergence/all": mean("divergence/all", "count/tokens"),
        "entropy/student": mean("entropy/student", "count/trained"),
        "rollout/length": mean("count/completion_tokens", "count/sequences"),
        "rollout/truncated": mean("count/truncated", "count/sequences"),
        "count/completion_tokens": sums["count/completion_tokens"],
        "count/sequences": sums["count/sequences"],
    }
    for name in ("lh", "ll", "ht", "hs"):
        metrics[f"share/{name}"] = mean(f"count/{name}", "count/tokens")
        metrics[f"divergence/{name}"] = mean(f"divergence/{name}", f"count/{name}")
    for name in ("gap/all", "prob/student", "prob/teacher"):
        if name in sums:
            metrics[name.replace("/all", "/mean")] = mean(name, "count/tokens")
    return metrics
