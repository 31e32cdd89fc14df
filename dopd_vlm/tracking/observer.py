"""What a run shows of itself beside its numbers: histograms, token maps and report.html.

The numbers are what counts: a failure in here is logged, and the run goes on.
"""

import importlib.util
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dopd_vlm.report.run_page import write_report
from dopd_vlm.report.token_page import token_map_page
from dopd_vlm.routing import Thresholds
from dopd_vlm.run_folder import HISTOGRAMS_FILE, MAPS_FILE, PROBES_FILE
from dopd_vlm.tracking.histograms import histogram_record
from dopd_vlm.tracking.token_maps import probe_record, token_map_text, token_maps
from dopd_vlm.tracking.tracker import Tracker
from dopd_vlm.tracking.trackers import log_token_maps
from dopd_vlm.training.state import EncodedSample, TrainState, encode_sample
from dopd_vlm.training.step import StepOutput
from dopd_vlm.types import Sample

log = logging.getLogger(__name__)

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
        score_answer: Callable[[str, Sample], float] | None,
    ) -> None:
        """`rows` are candidates for probes, in order; the first that can be encoded are taken."""
        self.state, self.samples, self.rows = state, samples, rows
        self.tracker, self.score_answer = tracker, score_answer
        self._probes: list[EncodedSample] | None = None
        self._limits: Thresholds | None = None
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
                f"then python scripts/report.py {self.tracker.run_dir}"
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
            page = token_map_page([probe_record(probe) for probe in probes], maps)
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
                chosen = self._choose()
                self._probes = [encoded for _, encoded in chosen]
                stored = [{"row": row, **probe_record(encoded)} for row, encoded in chosen]
                path.write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
        return self._probes

    def _choose(self) -> list[tuple[int, EncodedSample]]:
        chosen: dict[str, tuple[int, EncodedSample]] = {}
        for row in self.rows:
            if len(chosen) == NUM_PROBES:
                break
            try:
                encoded = encode_sample(self.state, self.samples[row])
            except ValueError:
                continue  # the loop records it when its turn comes
            chosen.setdefault(encoded.sample.uid, (row, encoded))
        return list(chosen.values())
