"""Completions of a model behind an OpenAI-compatible chat endpoint, evaluated like a local one.

What a request cannot get after all repeats is a failed completion: counted, kept out of the
rates of unread answers, and asked for again by a second run in the same folder.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from dopd_vlm.data_uri import image_uri
from dopd_vlm.endpoint import Client, Endpoint, GaveUpError, RejectedError
from dopd_vlm.types import Message

from ..benchmarks.benchmark import Generation
from .generators import FAILED, Completion, Generate


def endpoint_generator(
    endpoint: Endpoint, template_kwargs: Mapping[str, Any] | None = None
) -> Generate:
    """Completions of the endpoint's model; a batch is asked for at once, as far as it allows.

    `template_kwargs` travel as `chat_template_kwargs`, which vLLM, SGLang and transformers know.

    The server renders the prompts, so `Completion.prompt` is empty. Sampled completions carry the
    seed of the batch plus their place in it, which servers honour as well as they can.

    Raises (when called):
        ValueError: address, key or model name is wrong, or a whole batch found no connection.
    """

    def complete(
        prompts: Sequence[list[Message]], generation: Generation, seed: int
    ) -> list[Completion]:
        fields = decoding_fields(generation)
        if template_kwargs:
            fields["chat_template_kwargs"] = dict(template_kwargs)
        made = asyncio.run(_ask_all(endpoint, prompts, fields, seed))
        lost = [one for one in made if "no connection" in one.failure]
        if lost and len(lost) == len(made):
            raise ValueError(
                f"{lost[0].failure}; is the server running? What is done is kept: run again to go on"
            )
        return made

    return complete


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
    endpoint: Endpoint, prompts: Sequence[list[Message]], fields: dict[str, Any], seed: int
) -> list[Completion]:
    async with Client(endpoint, seed) as client:
        tasks = [
            _ask(client, messages, fields, (seed + place) % 2**31)
            for place, messages in enumerate(prompts)
        ]
        return list(await asyncio.gather(*tasks))


async def _ask(
    client: Client, messages: Sequence[Message], fields: dict[str, Any], seed: int
) -> Completion:
    seeded = {"seed": seed} if fields["temperature"] else {}
    try:
        reply = await client.ask(wire_messages(messages), **fields, **seeded)
    except (GaveUpError, RejectedError) as error:
        return Completion(text="", finish_reason=FAILED, num_tokens=0, failure=str(error))
    return Completion(
        text=reply.text,
        finish_reason="length" if reply.finish_reason == "length" else "stop",
        num_tokens=reply.completion_tokens,
    )


def decoding_fields(generation: Generation) -> dict[str, Any]:
    """The request's decoding fields; what is off is left out, since some servers reject it."""
    fields: dict[str, Any] = {
        "max_tokens": generation.max_completion_length,
        "temperature": generation.temperature,
    }
    if generation.top_p < 1:
        fields["top_p"] = generation.top_p
    if generation.stop:
        fields["stop"] = list(generation.stop)
    if generation.top_k:
        fields["top_k"] = generation.top_k  # not OpenAI's own, but vLLM's and SGLang's
    return fields


def wire_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the endpoint takes them: pictures as PNG data URIs, every pixel kept."""
    return [{**turn, "content": _content(turn["content"])} for turn in messages]


def _content(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [
        {"type": "image_url", "image_url": {"url": image_uri(block["image"])}}
        if block["type"] == "image"
        else block
        for block in content
    ]
