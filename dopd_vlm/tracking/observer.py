"""What a run looks at besides its loss: histograms, token maps, the privilege probe and report.html.

The numbers are what counts: a failure in here is logged, and the run goes on.
"""

import importlib.util
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dopd_vlm.distributed import total_of
from dopd_vlm.models.image_features import StepFeatures
from dopd_vlm.report.method_text import method_text
from dopd_vlm.report.run_page import write_report
from dopd_vlm.report.token_page import token_map_page
from dopd_vlm.routers import Limits
from dopd_vlm.routing import Thresholds, privilege_advantage_gap
from dopd_vlm.run_folder import HISTOGRAMS_FILE, MAPS_FILE, PROBES_FILE
from dopd_vlm.tracking.token_maps import probe_record, token_map_text, token_maps
from dopd_vlm.tracking.tracker import Tracker, log_token_maps
from dopd_vlm.training.completions import sample_completions
from dopd_vlm.training.samples import EncodedSample, encode_sample
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.step import StepOutput, completion_text
from dopd_vlm.types import Sample, Sampling, ViewName

log = logging.getLogger(__name__)

GAP_RANGE = (1e-6, 30.0)
"""Nats; values outside are counted in the first and the last bin."""
GAP_BINS = 60
"""Evenly spaced in log gap."""
PROBABILITY_BINS = 25
"""Evenly spaced in [0, 1], for each of q_S and q_T."""
VIEWS: tuple[ViewName, ...] = ("plain", "privileged")
NUM_PROBES = 4
"""Samples whose tokens are looked at throughout a run."""


@contextmanager
def harmless(what: str) -> Iterator[None]:
    """Whatever goes wrong inside is logged with its trace, and forgotten."""
    try:
        yield
    except Exception:
        log.exception("%s failed; the run goes on", what)


class Observer:
    """Looks at a run at each evaluation. Writes on the main process only."""

    def __init__(
        self,
        state: TrainState,
        samples: Sequence[Sample],
        rows: Sequence[int],
        tracker: Tracker,
        score_answer: Callable[[str, Sample], float | None] | None,
    ) -> None:
        """`rows` are candidates for probes, in order; the first that can be encoded are taken."""
        self.state, self.samples, self.rows = state, samples, rows
        self.tracker, self.score_answer = tracker, score_answer
        self._probes: list[EncodedSample] | None = None
        self._limits: Limits | None = None
        self._can_draw = importlib.util.find_spec("plotly") is not None

    def note(self, output: StepOutput, *, is_logged: bool) -> None:
        """Remember the step's thresholds; with `is_logged` write its histograms, on every process."""
        self._limits = output.thresholds
        if is_logged:
            record = histogram_record(output, self.state.accelerator)
            if record is not None:
                self.tracker.write(HISTOGRAMS_FILE, {"step": self.state.step, **record})

    def look(self) -> None:
        """Token maps of the probes, then the page."""
        if not self.tracker.is_main:
            return
        with harmless("the token maps"):
            self._map_tokens()
        self.renew_page()

    def renew_page(self) -> None:
        """report.html from what the run folder holds."""
        if not self.tracker.is_main:
            return
        if not self._can_draw:
            self.tracker.say_once(
                r"no report.html: pip install 'dopd-vlm\[viz]', "
                f"then dopd report {self.tracker.run_dir}"
            )
            return
        with harmless("report.html"):
            write_report(self.tracker.run_dir)

    def _map_tokens(self) -> None:
        probes = self.probes()
        if not probes:
            return
        maps = token_maps(self.state, probes, limits=self._limits, score_answer=self.score_answer)
        for record in maps:
            self.tracker.write(MAPS_FILE, record)
        if self.state.accelerator.trackers:
            method = method_text(self.state.method)
            page = token_map_page([probe_record(probe) for probe in probes], maps, method)
            text = "\n\n".join(map(token_map_text, maps))
            log_token_maps(self.state.accelerator, page, text, self.state.step)

    def probes(self) -> list[EncodedSample]:
        """The run's probes: those of its folder, else the first good rows, which are then stored."""
        if self._probes is None:
            path = self.tracker.run_dir / PROBES_FILE
            if path.exists():
                rows = [probe["row"] for probe in json.loads(path.read_text(encoding="utf-8"))]
                self._probes = [encode_sample(self.state, self.samples[row]) for row in rows]
            else:
                rows_encoded = self._choose()
                self._probes = [encoded for _, encoded in rows_encoded]
                records = [{"row": row, **probe_record(encoded)} for row, encoded in rows_encoded]
                path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        return self._probes

    def _choose(self) -> list[tuple[int, EncodedSample]]:
        probes: dict[str, tuple[int, EncodedSample]] = {}
        for row in self.rows:
            if len(probes) == NUM_PROBES:
                break
            try:
                encoded = encode_sample(self.state, self.samples[row])
            except ValueError:
                continue  # the loop records it when its turn comes
            probes.setdefault(encoded.sample.uid, (row, encoded))
        return list(probes.values())


def gap_edges() -> Tensor:
    """The GAP_BINS + 1 borders between bins, nats."""
    low, high = torch.tensor(GAP_RANGE, dtype=torch.float64).log().tolist()
    return torch.linspace(low, high, GAP_BINS + 1, dtype=torch.float64).exp()


def histogram_record(output: StepOutput, accelerator: Accelerator) -> dict[str, Any] | None:
    """Counts over the valid tokens of all processes; None for a method that does not route by gap.

    {"gap_edges": [GAP_BINS + 1], "gap_counts": [GAP_BINS], "q_counts": [q_T bin][q_S bin],
    "threshold": {"gap", "q_self", "q_teacher"}}. A collective: every process calls it.
    """
    if not isinstance(output.thresholds, Thresholds):
        return None
    pairs = [torch.empty(0, 2, dtype=torch.float64)]
    for micro in output.micro_batches:
        assert micro.teacher is not None and micro.self_target is not None
        scores = torch.stack([micro.teacher.scores.logp, micro.self_target.scores.logp], -1)
        pairs.append(scores[micro.batch.mask.to(scores.device)].double().cpu())
    gap, joint = token_counts(torch.cat(pairs))
    counts = torch.cat([gap, joint.flatten()]).to(accelerator.device)
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(counts, "sum")
    assert isinstance(counts, Tensor)
    gap, joint = counts[:GAP_BINS], counts[GAP_BINS:].view(PROBABILITY_BINS, PROBABILITY_BINS)
    return {
        "gap_edges": [float(f"{edge:.6g}") for edge in gap_edges().tolist()],
        "gap_counts": gap.tolist(),
        "q_counts": joint.tolist(),
        "threshold": output.thresholds.record(),
    }


def token_counts(logp: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs [N, 2] of teacher and self-target -> int64 [GAP_BINS] and [q_T, q_S] bins."""
    gap = privilege_advantage_gap(logp[:, 0], logp[:, 1])
    at = torch.bucketize(gap, gap_edges()[1:-1], right=True)
    bins = (logp.exp() * PROBABILITY_BINS).long().clamp(0, PROBABILITY_BINS - 1)
    joint = torch.bincount(
        bins[:, 0] * PROBABILITY_BINS + bins[:, 1], minlength=PROBABILITY_BINS**2
    )
    return torch.bincount(at, minlength=GAP_BINS), joint.view(PROBABILITY_BINS, PROBABILITY_BINS)


def privilege_probe(
    state: TrainState,
    samples: Sequence[EncodedSample],
    score: Callable[[str, Sample], float | None],
) -> dict[str, float]:
    """probe/<view>_accuracy and probe/<view>_length of the student's greedy completions in both views.

    Samples that `score` gives None for count for the length alone; probe/unscored says how many.
    `samples` is this process's share; the values are those of all processes, on each of them.
    """
    sums = {f"{view}_{value}": 0.0 for view in VIEWS for value in ("length", "accuracy", "scored")}
    features, rollout = StepFeatures(), state.config.rollout
    greedy = Sampling(max_completion_length=rollout.max_completion_length, stop=rollout.stop)
    for view in VIEWS if samples else ():
        prompts = [s.prompts[view] for s in samples]
        rollouts = sample_completions(state, prompts, greedy, features)
        for one, sample in zip(rollouts, samples, strict=True):
            right = score(completion_text(state.student, one), sample.sample)
            sums[f"{view}_length"] += len(one.completion_ids)
            sums[f"{view}_accuracy"] += right or 0.0
            sums[f"{view}_scored"] += right is not None
    return _probe_metrics(total_of(state.accelerator, {**sums, "n": float(len(samples))}))


def _probe_metrics(total: Mapping[str, float]) -> dict[str, float]:
    """Means of the sums over all processes."""
    metrics = {}
    for view in VIEWS:
        scored = total[f"{view}_scored"]
        metrics[f"probe/{view}_length"] = total[f"{view}_length"] / max(1, total["n"])
        if scored:
            metrics[f"probe/{view}_accuracy"] = total[f"{view}_accuracy"] / scored
        if scored < total["n"]:
            metrics["probe/unscored"] = total["n"] - scored
    return metrics
