"""Completions of a model behind an OpenAI-compatible chat endpoint, evaluated like a local one.

What a request cannot get after all repeats is a failed completion: counted, kept out of the
rates of unread answers, and asked for again by a second run in the same folder.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import httpx
from PIL import Image

from dopd_vlm.data_uri import image_uri
from dopd_vlm.endpoint import Client, Endpoint, GaveUpError, RejectedError
from dopd_vlm.types import Message, Sampling

from .generators import FAILED, Completion
from .requests import Request

IMAGE_FORMATS: dict[str, dict[str, Any]] = {"png": {"compress_level": 1}, "jpeg": {"quality": 92}}
"""How images travel: Pillow's options of each format. PNG keeps every pixel; JPEG is seven times smaller."""
HELD_BYTES = 512 << 20
"""Encoded images kept for further questions about them."""
UNCHANGED = (
    "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"
)  # fmt: skip
"""Settings that are not sent while they are off, since some servers reject them."""
Ask = Callable[[Sequence[Request], Sampling, Callable[[Request, Completion], None]], None]
"""(requests, decoding settings, what is told each completion as it comes) -> when all have come."""


def endpoint_ask(
    endpoint: Endpoint,
    template_kwargs: Mapping[str, Any] | None = None,
    image_format: str = "png",
    pixels: tuple[int, int] | None = None,
) -> Ask:
    """Completions of the endpoint's model, `max_concurrent` requests at any time and no batches.

    `template_kwargs` travel as `chat_template_kwargs`, which vLLM, SGLang and transformers know;
    `pixels`, fewest and most of an image, as vLLM's `mm_processor_kwargs`.

    The server renders the prompts, so `Completion.prompt` is empty. Sampled completions carry a seed
    from their request's key, which servers honour as well as they can.

    Raises (when called):
        ValueError: address, key or model name is wrong, or as many requests in a row as may be under
            way at once found no connection.
    """

    def ask(
        requests: Sequence[Request],
        sampling: Sampling,
        on_completion: Callable[[Request, Completion], None],
    ) -> None:
        fields = decoding_fields(sampling)
        if template_kwargs:
            fields["chat_template_kwargs"] = dict(template_kwargs)
        if pixels:
            limits = {"min_pixels": pixels[0], "max_pixels": pixels[1]}
            fields["mm_processor_kwargs"] = limits
        asyncio.run(_ask_all(endpoint, requests, fields, image_format, on_completion))

    return ask


def endpoint_name(endpoint: Endpoint) -> str:
    """Names the model in results and cache keys: the same name elsewhere is another model."""
    return f"{endpoint.model} @ {endpoint.url}"


def only_model(endpoint: Endpoint) -> str:
    """The name of the one model that the endpoint serves.

    Raises:
        ValueError: it cannot be reached, or serves none or several.
    """
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    try:
        response = httpx.get(f"{endpoint.url}/models", headers=headers, timeout=30.0)
        names = [str(entry["id"]) for entry in response.json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{endpoint.url}/models does not list models ({error}): is the server running, does the "
            "address end in /v1? Otherwise give --model NAME"
        ) from error
    if len(names) != 1:
        raise ValueError(
            f"{endpoint.url} serves {len(names)} models, give --model: {', '.join(names[:20])}"
        )
    return names[0]


async def _ask_all(
    endpoint: Endpoint,
    requests: Sequence[Request],
    fields: Mapping[str, Any],
    image_format: str,
    on_completion: Callable[[Request, Completion], None],
) -> None:
    lost, most_lost = 0, min(endpoint.max_concurrent, len(requests))
    uris = ImageUris(image_format)
    async with Client(endpoint) as client:
        tasks = [asyncio.create_task(_ask(client, one, fields, uris)) for one in requests]
        try:
            for task in asyncio.as_completed(tasks):
                request, completion = await task
                on_completion(request, completion)
                lost = lost + 1 if "no connection" in completion.failure else 0
                if lost and lost >= most_lost:
                    raise ValueError(
                        f"{completion.failure}; is the server running? What is done is kept: run again "
                        "to go on"
                    )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            uris.close()


async def _ask(
    client: Client, request: Request, fields: Mapping[str, Any], uris: "ImageUris"
) -> tuple[Request, Completion]:
    seed = {"seed": request.number % 2**31} if fields["temperature"] else {}
    try:
        reply = await client.ask(request.messages, prepare=uris.wire_messages, **fields, **seed)
    except (GaveUpError, RejectedError) as error:
        failed = Completion(text="", finish_reason=FAILED, num_tokens=0, failure=str(error))
        return request, failed
    return request, Completion(
        text=reply.text,
        finish_reason="length" if reply.finish_reason == "length" else "stop",
        num_tokens=reply.completion_tokens,
    )


def decoding_fields(sampling: Sampling) -> dict[str, Any]:
    """The request's decoding fields; what is off is left out.

    top_k, min_p and repetition_penalty are not OpenAI's own, but vLLM's and SGLang's.
    """
    values = asdict(sampling)
    fields: dict[str, Any] = {
        "max_tokens": sampling.max_completion_length,
        "temperature": sampling.temperature,
    }
    fields |= {name: values[name] for name in UNCHANGED if values[name] != getattr(Sampling, name)}
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    return fields


class ImageUris:
    """Images as data URIs, encoded in threads so that requests go on, and once for all their questions."""

    def __init__(self, image_format: str = "png") -> None:
        self._format = image_format
        self._threads = ThreadPoolExecutor(os.cpu_count())
        # The image is kept with its URI: otherwise another image could get its id.
        self._uris: OrderedDict[int, tuple[Image.Image, asyncio.Future[str]]] = OrderedDict()
        self._held = 0

    async def wire_messages(self, messages: Sequence[Message]) -> list[Message]:
        """Messages as the endpoint takes them."""
        return [{**turn, "content": await self._content(turn["content"])} for turn in messages]

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _content(self, content: Any) -> Any:
        if isinstance(content, str):
            return content
        return [
            {"type": "image_url", "image_url": {"url": await self._uri(block["image"])}}
            if block["type"] == "image"
            else block
            for block in content
        ]

    async def _uri(self, image: Image.Image) -> str:
        key = id(image)
        if key not in self._uris:
            loop = asyncio.get_running_loop()
            coming = loop.run_in_executor(self._threads, _encoded, image, self._format)
            coming.add_done_callback(self._hold)
            self._uris[key] = (image, coming)
        self._uris.move_to_end(key)
        return await asyncio.shield(self._uris[key][1])

    def _hold(self, coming: "asyncio.Future[str]") -> None:
        """Counts a new URI, and lets go of those that were not used for longest."""
        if coming.cancelled() or coming.exception() is not None:
            return
        self._held += len(coming.result())
        while self._held > HELD_BYTES and len(self._uris) > 1:
            _, (_, oldest) = self._uris.popitem(last=False)
            if oldest.done() and not oldest.cancelled() and oldest.exception() is None:
                self._held -= len(oldest.result())


def _encoded(image: Image.Image, image_format: str) -> str:
    plain = image.convert("RGB") if image_format == "jpeg" else image
    return image_uri(plain, image_format, **IMAGE_FORMATS[image_format])
