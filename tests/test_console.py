"""The live panel and the lines in its place: every number the user is promised, no scrolling."""

import io
import json

import pytest
from rich.console import Console

from dopd_vlm.tracking.console import BAR_WIDTH, MOST_LINES, RunView, plain_accuracy, regime_bar

METRICS = {
    "loss": 0.5123, "threshold/gap": 0.25, "share/lh": 0.5, "share/ll": 0.1, "share/ht": 0.3, "share/hs": 0.1,
    "entropy/student": 1.25, "rollout/length": 17.5, "rollout/accuracy": 0.62, "time/tokens_per_second": 1234.0,
    "time/rollout": 0.5, "time/score": 0.25, "time/loss": 0.2, "time/step": 0.05, "time/step_total": 1.0,
    "memory/process_gib": 1.5,
}  # fmt: skip
EXPECTED = (
    "0.5123", "0.250 nats", "LH 50%", "LL 10%", "HT 30%", "HS 10%", "entropy 1.250", "length 17.5", "1234 tok/s",
    "rollout 0.50s", "score 0.25s", "loss 0.20s", "1.50 GiB", "62%", "plain 71.0%", "(40.0% at step 0)",
)  # fmt: skip


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def view_on(*, terminal: bool, steps: int = 10, shown: bool = True):
    file, clock = io.StringIO(), Clock()
    console = Console(
        file=file,
        force_terminal=terminal,
        width=120,
        color_system="truecolor" if terminal else None,
    )
    return (
        RunView(console, title="run: dopd", num_steps=steps, is_shown=shown, now=clock),
        file,
        clock,
    )


def news(view, clock):
    view.measured(
        0,
        {
            "eval/a/plain/accuracy": 0.5,
            "eval/b/plain/accuracy": 0.3,
            "eval/a/privileged/accuracy": 1.0,
        },
    )
    clock.seconds = 3.0
    view.step(1, METRICS)
    clock.seconds = 5.0
    view.step(2, METRICS)
    view.measured(2, {"eval/a/plain/accuracy": 0.8, "eval/b/plain/accuracy": 0.62})


def test_piped_output_is_one_line_a_step_with_every_number():
    view, file, clock = view_on(terminal=False)
    with view:
        news(view, clock)
        view.step(3, METRICS)
    lines = file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("step") and "loss" in line] == [
        "step 1/10", "step 2/10", "step 3/10",
    ]  # fmt: skip
    for text in EXPECTED:
        assert text in lines[-1], text
    assert "\x1b" not in file.getvalue() and "left 0:00:07" in lines[-1]


def test_a_long_piped_run_leaves_steps_out_but_not_the_last():
    view, file, _ = view_on(terminal=False, steps=10 * MOST_LINES + 1)
    for step in range(1, 10 * MOST_LINES + 2):
        view.step(step, METRICS)
    lines = file.getvalue().splitlines()
    assert (
        MOST_LINES / 2 < len(lines) <= MOST_LINES + 1
        and f"step {10 * MOST_LINES + 1}/" in lines[-1]
    )


def test_the_panel_has_every_number_and_is_drawn_in_place():
    view, file, clock = view_on(terminal=True)
    with view:
        news(view, clock)
        view.status("evaluation at step 2")
        text = plain(view)
    for expected in (
        *EXPECTED[:2],
        *EXPECTED[6:],
        "step 2/10",
        "left 0:00:12",
        "evaluation at step 2",
    ):
        assert expected in text, expected
    for regime in ("LH  50%", "LL  10%", "HT  30%", "HS  10%"):
        assert regime in text
    assert "\x1b[" in file.getvalue()  # the cursor moves up instead of scrolling


def plain(view) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(view.render())
    return console.file.getvalue()


def test_a_method_without_routing_shows_no_regimes_and_an_empty_panel_is_fine():
    view, _, _ = view_on(terminal=False)
    assert "step 0/10" in plain(view)
    view.step(1, {"loss": 1.0, "share/ht": 1.0})
    assert "HT" not in plain(view) and "1.0000" in plain(view)


def test_other_processes_are_silent():
    view, file, clock = view_on(terminal=False, shown=False)
    with view:
        news(view, clock)
        view.say("hello")
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    "shares", [(0.333, 0.333, 0.333, 0.001), (0, 0, 1, 0), (0.01, 0.01, 0.97, 0.01)]
)
def test_the_bar_is_always_as_wide(shares):
    names = ("share/lh", "share/ll", "share/ht", "share/hs")
    bar = regime_bar(dict(zip(names, shares, strict=True)))
    assert len(bar.plain) == BAR_WIDTH


def test_plain_accuracy_prefers_benchmarks_over_training_prompts():
    assert plain_accuracy({"probe/plain_accuracy": 0.2}) == 0.2
    assert plain_accuracy({"probe/plain_accuracy": 0.2, "eval/x/plain/accuracy": 0.4}) == 0.4
    assert plain_accuracy(json.loads("{}")) is None
