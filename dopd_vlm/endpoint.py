"""Chat requests to an OpenAI-compatible endpoint: many at once, paced, repeated when that can help.

Errors fall in three classes: what passes by itself is repeated (429, 5xx, time-outs, refused and
broken connections, bodies that are no chat completion), what is wrong with one request concerns
that request (400, 413, 422), and what is wrong with the set-up stops everything (401, 403, 404).
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from dopd_vlm.types import Message

MAX_WAIT_S = 60.0
"""Longest pause before a repeat; a longer Retry-After is honoured up to ten times this."""
REQUEST_ERRORS = (400, 413, 422)
SETUP_ERRORS = (401, 403, 404, 405)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask, whom, and how hard to try."""

    url: str
    """Base address, up to and including `/v1`."""
    model: str
    api_key: str | None = field(default=None, repr=False)
    max_concurrent: int = 16
    """Requests under way at once."""
    requests_per_minute: float | None = None
    """Requests started per minute, repeats included; None is no limit."""
    timeout_s: float = 120.0
    max_repeats: int = 6
    """How often a request is repeated before it is given up."""
    first_wait_s: float = 1.0
    """Pause before the first repeat; doubles each time, times a random factor in [0.5, 1]."""
    max_tokens: int = 1024
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {self.url!r} must start with http:// or https://")
        for name in ("max_concurrent", "timeout_s", "max_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            raise ValueError(f"requests_per_minute must be above 0, got {self.requests_per_minute}")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model said, and what it cost."""

    text: str
    finish_reason: str
    """`stop`, `length` (cut at max_tokens) or what else the endpoint says."""
    prompt_tokens: int
    completion_tokens: int


class GaveUpError(Exception):
    """A request failed as often as it was to be repeated."""


class RejectedError(Exception):
    """The endpoint does not take this request; others may be fine."""


class SetupError(ValueError):
    """Address, key or model name is wrong: no request can succeed."""


class Client:
    """Asks an endpoint; to be used as `async with Client(endpoint) as client`."""

    def __init__(self, endpoint: Endpoint, seed: int = 0) -> None:
        self.endpoint = endpoint
        self.num_repeats = 0
        self._random = random.Random(seed)
        self._places = asyncio.Semaphore(endpoint.max_concurrent)
        self._next_start = 0.0
        key = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        limits = httpx.Limits(max_connections=endpoint.max_concurrent)
        self._http = httpx.AsyncClient(headers=key, timeout=endpoint.timeout_s, limits=limits)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def ask(self, messages: Sequence[Message], **fields: Any) -> Reply:
        """The model's reply; `fields` go into the request's body, in place of the endpoint's own.

        Raises:
            GaveUpError: it failed `max_repeats` + 1 times; the message has the last reason.
            RejectedError: the endpoint refuses this request.
            SetupError: the endpoint refuses every request.
        """
        body = {
            "model": self.endpoint.model,
            "messages": list(messages),
            "max_tokens": self.endpoint.max_tokens,
            "temperature": self.endpoint.temperature,
            "stream": False,
            **fields,
        }
        found: Reply | str = ""
        async with self._places:
            for repeat in range(self.endpoint.max_repeats + 1):
                found, wait_s = await self._try(body)
                if isinstance(found, Reply):
                    return found
                if repeat < self.endpoint.max_repeats:
                    self.num_repeats += 1
                    await asyncio.sleep(wait_s or self._wait_s(repeat))
        raise GaveUpError(f"{self.endpoint.url}: {found} ({self.endpoint.max_repeats + 1} times)")

    async def _try(self, body: Mapping[str, Any]) -> tuple[Reply | str, float | None]:
        """(the reply or why there is none, the pause the endpoint asks for)."""
        await self._pace()
        try:
            response = await self._http.post(f"{self.endpoint.url}/chat/completions", json=body)
        except httpx.TimeoutException:
            return f"no answer within {self.endpoint.timeout_s:g} s", None
        except httpx.TransportError as error:
            return f"no connection: {error or type(error).__name__}", None
        status = response.status_code
        if status == 200:
            return _reply(response), None
        reason = f"status {status}: {response.text[:300].strip()}"
        if status in SETUP_ERRORS:
            raise SetupError(
                f"{self.endpoint.url} refuses model {self.endpoint.model!r}: {reason}; "
                "check the address (up to /v1), the key and the model's name"
            )
        if status in REQUEST_ERRORS:
            raise RejectedError(reason)
        return reason, _retry_after(response)

    async def _pace(self) -> None:
        """Waits for this request's turn under `requests_per_minute`."""
        if self.endpoint.requests_per_minute is None:
            return
        now = asyncio.get_running_loop().time()
        start = max(now, self._next_start)
        self._next_start = start + 60 / self.endpoint.requests_per_minute
        await asyncio.sleep(start - now)

    def _wait_s(self, repeat: int) -> float:
        longest = min(MAX_WAIT_S, self.endpoint.first_wait_s * 2**repeat)
        return longest * self._random.uniform(0.5, 1)


def _reply(response: httpx.Response) -> Reply | str:
    """The reply in a chat completion; a reason when the body is none, as a proxy's page is."""
    try:
        data = response.json()
        choice, usage = data["choices"][0], data.get("usage") or {}
        message = choice["message"]
        text = message.get("content") or message.get("refusal") or ""
        return Reply(
            # A lone surrogate, which JSON can escape, fits into no UTF-8 file.
            text=text.encode("utf-8", "replace").decode(),
            finish_reason=str(choice.get("finish_reason") or "stop"),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return f"the body is no chat completion: {response.text[:200]!r}"


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of the Retry-After header; its date form and nonsense count as absent."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(seconds, 10 * MAX_WAIT_S) if seconds > 0 else None
