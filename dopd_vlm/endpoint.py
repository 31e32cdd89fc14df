"""Chat requests to OpenAI-compatible endpoints: many at once, paced, repeated when that can help.

Errors fall in three classes: what passes by itself is repeated (429, 5xx, time-outs, refused and
broken connections, bodies that are no chat completion), what is wrong with one request concerns
that request (400, 413, 422), and what is wrong with the set-up stops everything (401, 403, 404).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

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
    more_urls: tuple[str, ...] = ()
    """Further servers of the same model; each request goes to the one with the fewest under way."""
    api_key: str | None = field(default=None, repr=False)
    max_concurrent: int = 16
    """Requests under way at once, on all servers together."""
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
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"endpoint {url!r} must start with http:// or https://")
        for name in ("max_concurrent", "timeout_s", "max_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            raise ValueError(f"requests_per_minute must be above 0, got {self.requests_per_minute}")

    @property
    def urls(self) -> tuple[str, ...]:
        """Every server's address."""
        return (self.url, *self.more_urls)


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


class PassingError(Exception):
    """One try failed in a way that may pass; `wait_s` is the pause that the endpoint asked for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass
class _Server:
    url: str
    under_way: int = 0
    failures: int = 0
    """Tries without a connection since the last one with it."""


class Client:
    """Asks an endpoint; to be used as `async with Client(endpoint) as client`."""

    def __init__(self, endpoint: Endpoint, seed: int = 0) -> None:
        self.endpoint = endpoint
        self.num_repeats = 0
        self._random = random.Random(seed)
        self._places = asyncio.Semaphore(endpoint.max_concurrent)
        self._next_start = 0.0
        self._servers = [_Server(url) for url in endpoint.urls]
        key = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        limits = httpx.Limits(max_connections=endpoint.max_concurrent)
        self._http = httpx.AsyncClient(headers=key, timeout=endpoint.timeout_s, limits=limits)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def ask(
        self,
        messages: Sequence[Message],
        *,
        prepare: Callable[[Sequence[Message]], Awaitable[Sequence[Message]]] | None = None,
        **fields: Any,
    ) -> Reply:
        """The model's reply; `fields` go into the request's body, in place of the endpoint's own.

        A request has one of the `max_concurrent` places while it is prepared and answered, not while
        it waits to be repeated. `prepare` makes the messages as they travel; what it makes is held
        no longer than a try takes.

        Raises:
            GaveUpError: it failed `max_repeats` + 1 times; the message has the last reason.
            RejectedError: the endpoint refuses this request.
            SetupError: the endpoint refuses every request.
        """
        tries = self.endpoint.max_repeats + 1
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(PassingError),
            stop=stop_after_attempt(tries),
            wait=self._wait_s,
            before_sleep=self._count_repeat,
            reraise=True,
        )
        try:
            return await retrying(self._ask_once, messages, prepare, fields)
        except PassingError as error:
            raise GaveUpError(f"{self.endpoint.url}: {error} ({tries} times)") from error

    async def _ask_once(
        self,
        messages: Sequence[Message],
        prepare: Callable[[Sequence[Message]], Awaitable[Sequence[Message]]] | None,
        fields: Mapping[str, Any],
    ) -> Reply:
        async with self._places:
            turns = await prepare(messages) if prepare else messages
            body = {
                "model": self.endpoint.model,
                "messages": list(turns),
                "max_tokens": self.endpoint.max_tokens,
                "temperature": self.endpoint.temperature,
                "stream": False,
                **fields,
            }
            await self._pace()
            server = min(self._servers, key=lambda one: (one.failures, one.under_way))
            server.under_way += 1
            try:
                return await self._post(server, body)
            finally:
                server.under_way -= 1

    async def _post(self, server: _Server, body: Mapping[str, Any]) -> Reply:
        try:
            response = await self._http.post(f"{server.url}/chat/completions", json=body)
        except httpx.TimeoutException as error:
            raise PassingError(f"no answer within {self.endpoint.timeout_s:g} s") from error
        except httpx.TransportError as error:
            server.failures += 1
            raise PassingError(f"no connection: {error or type(error).__name__}") from error
        server.failures = 0
        status = response.status_code
        if status == 200:
            return _reply(response)
        reason = f"status {status}: {response.text[:300].strip()}"
        if status in SETUP_ERRORS:
            raise SetupError(
                f"{server.url} refuses model {self.endpoint.model!r}: {reason}; "
                "check the address (up to /v1), the key and the model's name"
            )
        if status in REQUEST_ERRORS:
            raise RejectedError(reason)
        raise PassingError(reason, _retry_after(response))

    def _count_repeat(self, _: RetryCallState) -> None:
        self.num_repeats += 1

    async def _pace(self) -> None:
        """Waits for this request's turn under `requests_per_minute`."""
        if self.endpoint.requests_per_minute is None:
            return
        now = asyncio.get_running_loop().time()
        start = max(now, self._next_start)
        self._next_start = start + 60 / self.endpoint.requests_per_minute
        await asyncio.sleep(start - now)

    def _wait_s(self, state: RetryCallState) -> float:
        """The pause that the endpoint asks for, else a random one that doubles with each repeat."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, PassingError) and error.wait_s:
            return error.wait_s
        longest = min(MAX_WAIT_S, self.endpoint.first_wait_s * 2 ** (state.attempt_number - 1))
        return longest * self._random.uniform(0.5, 1)


def _reply(response: httpx.Response) -> Reply:
    """The reply in a chat completion.

    Raises:
        PassingError: the body is none, as a proxy's page is.
    """
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
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"the body is no chat completion: {response.text[:200]!r}"
        raise PassingError(reason) from error


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of the Retry-After header; its date form and nonsense count as absent."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(seconds, 10 * MAX_WAIT_S) if seconds > 0 else None
