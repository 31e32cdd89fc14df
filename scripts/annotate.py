"""Lets a strong model write privileged annotations, recheck them, and drops what is not good.

    dopd annotate rows/ --endpoint http://HOST/v1 --model NAME --kind boxes,hints --out annotated/

Works with any OpenAI-compatible endpoint; the key is read from the environment (--key-variable).
OUT then holds metadata.jsonl with the images (rows that validate.py, preview.py and train.py
read), dropped.jsonl with a reason per row, and replies.jsonl with every raw reply. The same command
goes on after Ctrl-C, a kill or a failed endpoint; no request that was answered is asked again.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dopd_vlm.data.annotate.outcomes import Task
from dopd_vlm.data.annotate.pipeline import DROPPED, REPLIES, Outcome, annotate
from dopd_vlm.data.annotate.pipeline import Progress as Counts
from dopd_vlm.data.annotate.requests import WORDINGS
from dopd_vlm.data.coords import FAMILIES
from dopd_vlm.endpoint import Endpoint
from dopd_vlm.scripts.wiring.command_line import command_parser
from dopd_vlm.scripts.wiring.samples import rows_of

LINE_EVERY_S = 30.0
"""How often a line is printed where there is no terminal."""


def main(arguments: Sequence[str]) -> int:
    """0 all rows finished, 1 some are still without replies, 2 wrong arguments, 130 interrupted."""
    options = _arguments(arguments)
    console = Console()
    key = os.environ.get(options.key_variable)
    try:
        endpoint = Endpoint(
            url=options.endpoint.rstrip("/"),
            model=options.model,
            api_key=key,
            max_concurrent=options.concurrency,
            requests_per_minute=options.requests_per_minute,
            timeout_s=options.timeout,
            max_repeats=options.repeats,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
        )
        task = Task(
            kinds=tuple(options.kind.split(",")),
            coords=options.coords,
            attempts=options.attempts,
            max_pixels=options.max_pixels,
            json_schema=options.json_schema,
        )
        rows = rows_of(options.rows, options.split)[: options.limit]
        outcome = _run(options, console, rows, task, endpoint)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    _report(options, outcome, console)
    if outcome.stopped == "interrupted":
        return 130
    return 1 if outcome.pending else 0


def _run(
    options: argparse.Namespace,
    console: Console,
    rows: Sequence[dict[str, Any]],
    task: Task,
    endpoint: Endpoint,
) -> Outcome:
    """Annotates under a progress bar, or with a line now and then where there is no terminal."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows  {task.fields[counts]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task("", total=len(rows), counts="")
        show = _printer() if not console.is_terminal else None

        def on_progress(counts: Counts) -> None:
            text = _describe(counts, options.price)
            bar.update(shown, completed=counts.finished, counts=text)
            if show:
                show(f"{counts.finished}/{counts.num_rows} rows  {text}")

        return annotate(rows, options.out, task, endpoint, on_progress=on_progress)


def _printer() -> Callable[[str], None]:
    """Prints a line, but not more often than every LINE_EVERY_S."""
    last = [time.monotonic()]

    def show(line: str) -> None:
        if time.monotonic() - last[0] >= LINE_EVERY_S:
            last[0] = time.monotonic()
            print(line, flush=True)

    return show


def _describe(counts: Counts, price: tuple[float, float] | None) -> str:
    tokens = f"{counts.prompt_tokens:,} + {counts.completion_tokens:,} tokens"
    text = f"{counts.num_requests} replies, {counts.num_repeats} repeats, {tokens}"
    if price is None:
        return text
    cost = (counts.prompt_tokens * price[0] + counts.completion_tokens * price[1]) / 1e6
    return f"{text}, cost {cost:.{2 if cost >= 1 else 4}f}"


def _report(options: argparse.Namespace, outcome: Outcome, console: Console) -> None:
    num_dropped = sum(outcome.dropped.values())
    lines = [
        f"{outcome.kept} rows kept, {num_dropped} dropped, {outcome.pending} still to ask",
        *(f"  dropped, {reason}: {count}" for reason, count in sorted(outcome.dropped.items())),
        f"this run: {_describe(outcome.progress, options.price)}",
        f"in {options.out}: metadata.jsonl, {DROPPED} (a reason per row), {REPLIES}",
    ]
    if outcome.stopped:
        lines.append(f"stopped early: {outcome.stopped}")
    if outcome.pending:
        lines.append("the same command goes on with the rows still to ask")
    else:
        lines.append(f"next: dopd validate {options.out}")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("annotate", __doc__)
    add = parser.add_argument
    add("rows", help="a data set as read_rows takes it, or embedded:NAME/SPLIT")
    add("--split", help="split of the data set")
    add("--limit", type=int, help="the first N rows only")
    add("--endpoint", required=True, help="base address, up to /v1")
    add("--model", required=True, help="the model's name there")
    add("--kind", required=True, help=f"comma-separated, of {', '.join(WORDINGS)}")
    add("--out", type=Path, required=True, help="folder to write, or to go on with")
    add(
        "--coords",
        default="qwen3",
        choices=FAMILIES,
        help="how the model writes places: qwen3 is 0 to 1000, also right for models that follow "
        "instructions; qwen2_5 and pixel are pixels of the image as sent",
    )
    add("--key-variable", default="OPENAI_API_KEY", help="environment variable with the key")
    add("--concurrency", type=int, default=16, help="requests at once")
    add("--requests-per-minute", type=float, help="rate limit; default: none")
    add("--timeout", type=float, default=120.0, help="seconds for one reply")
    add(
        "--repeats", type=int, default=6, help="repeats after 429, 5xx, time-outs, lost connections"
    )
    add("--attempts", type=int, default=2, help="replies of a bad form before a row is dropped")
    add("--max-tokens", type=int, default=1024, help="length of a reply")
    add("--max-pixels", type=int, default=1_500_000, help="larger images are sent smaller")
    add("--temperature", type=float, default=0.0)
    add(
        "--json-schema",
        action="store_true",
        help="have the endpoint hold replies to the form (response_format: vLLM, SGLang, "
        "llama.cpp); for models that otherwise answer in prose",
    )
    add(
        "--price",
        type=float,
        nargs=2,
        metavar=("IN", "OUT"),
        help="price of a million prompt and completion tokens, to show the cost",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
