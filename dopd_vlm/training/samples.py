"""Rows -> encoded samples, in a given order, ahead of the step that needs them.

The order is decided by whoever asks, so what comes never depends on the number of workers.
"""

import os
import pickle
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from multiprocessing import forkserver, parent_process
from random import Random
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dopd_vlm.config import RunConfig
from dopd_vlm.models.encoder import EncodedPrompt, Encoder, encode_prompt
from dopd_vlm.prompts import build_prompts
from dopd_vlm.training.parcel import Parcel, pack, unpack
from dopd_vlm.training.state import TrainState
from dopd_vlm.types import Sample, ViewName

VIEWS = ("plain", "privileged")
"""Views that every sample has, and every method is measured in."""
GPU_WORKERS = 2
"""Workers where the recipe names no number and the model computes elsewhere."""


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """A sample with an encoded prompt for each view, shared by all its rollouts."""

    sample: Sample
    prompts: Mapping[ViewName, EncodedPrompt]
    place: int = 0
    """Of its row among those of the step, over all processes: it seeds the rollouts."""


def encode_sample(state: TrainState, sample: Sample) -> EncodedSample:
    """The prompts of the method's views, encoded once. Raises ValueError naming the uid."""
    encoder, views = state.student.encoder, state.method.views
    return EncodedSample(sample=sample, prompts=encoded_views(state.config, encoder, sample, views))


def encoded_views(
    config: RunConfig, encoder: Encoder, sample: Sample, views: Sequence[ViewName] = VIEWS
) -> dict[ViewName, EncodedPrompt]:
    """Prompts of those views of a sample. Raises ValueError naming the uid, or a view that it lacks."""
    by_view = build_prompts(sample, config.prompts)
    image_cache = encoder.image_cache()
    prompts: dict[ViewName, EncodedPrompt] = {
        view: encode_prompt(
            encoder,
            by_view.view(view),
            uid=sample.uid,
            template_kwargs=config.chat.template_kwargs,
            image_cache=image_cache,
        )
        for view in views
    }
    longest, limit = max(len(p.input_ids) for p in prompts.values()), config.chat.max_prompt_length
    if limit is not None and longest > limit:
        raise ValueError(
            f"sample {sample.uid!r}: a prompt of {longest} tokens, chat.max_prompt_length is {limit}"
        )
    return prompts


def encode_row(
    config: RunConfig,
    encoder: Encoder,
    samples: Sequence[Sample],
    row: int,
    views: Sequence[ViewName] = VIEWS,
) -> "EncodedSample | BadRow":
    """The row's sample with its prompts, or why there is none, with the row's uid and file."""
    try:
        sample = samples[row]
    except ValueError as error:
        return BadRow(row=row, reason=str(error))
    try:
        prompts = encoded_views(config, encoder, sample, views)
        return EncodedSample(sample=sample, prompts=prompts)
    except ValueError as error:
        return BadRow(row=row, reason=f"{error}{sample.place}")


def stand_ins(num_rows: int, seed: int, place: int) -> Iterator[int]:
    """Every row once, in an order of its own for each place: which rows may stand in for a bad one.

    A function of seed and place alone, so that a resumed run takes the same ones. Steps of a stride
    that shares no divisor with the number of rows come by all of them.
    """
    random = Random(seed * 1_000_003 + place)
    start, stride = random.randrange(num_rows), random.randrange(num_rows) + 1
    while gcd(stride, num_rows) > 1:
        stride += 1
    return ((start + count * stride) % num_rows for count in range(num_rows))


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that gave no encoded sample."""

    row: int
    reason: str


class EncodedStream:
    """The encoded samples of `order`, `ahead` of them made before they are asked for.

    With `workers` = 0 each is made when it is asked for, by this process.
    """

    def __init__(
        self,
        config: RunConfig,
        encoder: Encoder,
        samples: Sequence[Sample],
        order: Iterable[int],
        *,
        workers: int,
        ahead: int,
        views: Sequence[ViewName] = VIEWS,
    ) -> None:
        options: dict[str, Any] = {}
        if workers:
            start_server(samples)
            options = {
                "multiprocessing_context": "forkserver",
                "prefetch_factor": -(-ahead // workers),
                "worker_init_fn": _start_worker,
            }
        loader = DataLoader(
            _EncodedRows(config, encoder, samples, views),
            batch_size=None,
            sampler=order,
            num_workers=workers,
            # Of its own: a DataLoader draws from it, and the run's random numbers must not change.
            generator=torch.Generator(),
            **options,
        )
        try:
            self._items = iter(loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"data.workers={workers}: the samples cannot be sent to worker processes ({error}); "
                "define what they are made with at the top of a module, or set data.workers=0"
            ) from error

    def take(self, count: int) -> list[EncodedSample | BadRow]:
        """The next `count` of them."""
        items = (next(self._items) for _ in range(count))
        return [unpack(item) if isinstance(item, Parcel) else item for item in items]

    def close(self) -> None:
        """Ends the workers."""
        del self._items


def start_server(samples: Sequence[Sample]) -> None:
    """Starts a process with the imports that all workers share; a second call does nothing.

    Workers are forked from this server, which has neither models nor threads: a fork of the
    trainer would copy both in whatever state they are.
    """
    forkserver.set_forkserver_preload([__name__, type(samples).__module__])
    forkserver.ensure_running()


def num_workers(config: RunConfig, device: torch.device) -> int:
    """Worker processes of each training process; on CPU the model itself has use for all cores."""
    workers = config.data.workers
    return (GPU_WORKERS if device.type != "cpu" else 0) if workers is None else workers


class _EncodedRows(Dataset):
    """Row number -> encoded sample or BadRow; a worker packs it."""

    def __init__(
        self,
        config: RunConfig,
        encoder: Encoder,
        samples: Sequence[Sample],
        views: Sequence[ViewName],
    ) -> None:
        self._config, self._samples, self._encoder, self._views = config, samples, encoder, views

    def __getitem__(self, row: int) -> EncodedSample | BadRow | Parcel:
        item = encode_row(self._config, self._encoder, self._samples, row, self._views)
        return item if get_worker_info() is None else pack(item)


def _start_worker(_: int) -> None:
    """A worker outlives Ctrl-C, which reaches it too, and never its trainer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A DataLoader's own watch looks at the parent id, which here is the server's.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
