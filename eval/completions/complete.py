"""Requests -> completions: what the store holds is not made again, what is made is stored at once."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.progress import Progress

from dopd_vlm.types import Sampling

from .endpoint import Ask
from .generators import Completion, Generate
from .records import completions_of, to_record
from .requests import Request
from .store import SampleStore


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where completions come from, and what their hashes and the results file say about it.

    One of `ask` and `complete` is there.
    """

    name: str
    fingerprint: str
    ask: Ask | None = None
    """Makes each completion apart, as a server does."""
    complete: Generate | None = None
    """Makes batches, in which an answer depends on the others, as in a model's padded arithmetic."""
    settings: Mapping[str, Any] = field(default_factory=dict)


class Bar:
    """A bar of a running rich display, with the tokens per second in its field `speed`; None shows nothing."""

    def __init__(self, progress: Progress | None, title: str, total: int) -> None:
        self._progress, self._tokens, self._started = progress, 0, time.monotonic()
        self._task = progress.add_task(title, total=total, speed="") if progress else None

    def advance(self, completions: Sequence[Completion], *, are_new: bool = True) -> None:
        """Counts completions, those of an earlier run without their tokens."""
        self._tokens += sum(one.num_tokens for one in completions) if are_new else 0
        if self._progress is not None and self._task is not None:
            speed = self._tokens / max(time.monotonic() - self._started, 1e-9)
            shown = f"{speed:,.0f} tokens/s" if self._tokens else ""
            self._progress.update(self._task, advance=len(completions), speed=shown)


def complete_all(
    source: Source,
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    batch_size: int = 32,
    store: SampleStore | None = None,
    progress: Progress | None = None,
    title: str = "",
) -> dict[str, Completion]:
    """Key -> completion of all requests.

    Prompts go by size, the longest first: memory runs out at once or never, the time left is not
    promised too short, and no long answer starts last.
    """
    done = completions_of(store.finished()) if store else {}
    done = {one.key: done[one.key] for one in requests if one.key in done}
    order = sorted(requests, key=lambda r: (-_size(r), r.doc_id, r.sample_idx))
    bar = Bar(progress, title, len(requests))
    bar.advance(list(done.values()), are_new=False)

    def keep(pairs: Sequence[tuple[Request, Completion]]) -> None:
        done.update({request.key: completion for request, completion in pairs})
        if store is not None:
            store.append([to_record(request, completion) for request, completion in pairs])
        bar.advance([completion for _, completion in pairs])

    if source.ask is not None:
        missing = [one for one in order if one.key not in done]
        source.ask(missing, sampling, lambda request, completion: keep([(request, completion)]))
    else:
        for start in range(0, len(order), batch_size):
            keep(_batch(source, order[start : start + batch_size], done, sampling))
    return done


def _batch(
    source: Source,
    batch: Sequence[Request],
    done: Mapping[str, Completion],
    sampling: Sampling,
) -> list[tuple[Request, Completion]]:
    """The missing completions of a batch, which is a function of the requests alone.

    One that was half written is made anew, and comes out the same.
    """
    if source.complete is None or all(one.key in done for one in batch):
        return []
    numbers = [one.number for one in batch]
    completions = source.complete([one.messages for one in batch], sampling, numbers)
    pairs = zip(batch, completions, strict=True)
    return [(request, completion) for request, completion in pairs if request.key not in done]


def _size(request: Request) -> int:
    """What orders prompts by length without tokenizing them: pixels over 400 plus characters."""
    size = 0
    for turn in request.messages:
        content = turn["content"]
        for block in content if isinstance(content, list) else [{"text": content}]:
            image = block.get("image")
            pixels = 0 if image is None else image.width * image.height
            size += pixels // 400 + len(block.get("text", ""))
    return size
