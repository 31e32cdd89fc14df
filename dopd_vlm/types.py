"""The records that flow: Sample -> Prompts -> Rollout -> Regime, and the Route a regime takes.

Letters in shapes: B sequences, T completion tokens, V vocabulary, H hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from dopd_vlm.errors import unknown

if TYPE_CHECKING:  # a recipe and its help need no torch
    import torch

ViewName = str
"""`plain`, `privileged`, or a name in `Sample.views`."""
Message = dict[str, Any]
"""One chat turn: {"role": str, "content": str or a list of {"type": "image", "image": PIL} and
{"type": "text", "text": str}}."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What a model sees besides the question."""

    images: tuple[Image.Image, ...] = ()
    """RGB images, EXIF-upright, alpha already composited."""
    context: str = ""
    """Privileged text; empty in the plain view."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question in both views. The core never learns what made the privileged one."""

    uid: str
    question: str
    """May hold `<image>` placeholders, as many as `plain.images`; without any, images go first."""
    answer: str
    plain: View
    privileged: View
    views: Mapping[str, View] = field(default_factory=dict)
    """Further views by name."""
    choices: Mapping[str, str] | None = None
    """{letter: option text}, or None for open questions."""
    answer_type: str = "text"
    """text, choice, number, math, box or code: chooses the scorer."""
    system: str | None = None
    history: tuple[Message, ...] = ()
    """Earlier text turns of a conversation, oldest first."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Where the row came from: `file`, `licence`, `split` and whatever `meta` held."""

    def __post_init__(self) -> None:
        if self.plain.context:
            raise ValueError(
                f"sample {self.uid!r}: the plain view must carry no privileged context"
            )

    @property
    def place(self) -> str:
        """Where the row is, as ` (FILE line N)` after a message; empty for a sample of no file."""
        file, line = self.source.get("file"), self.source.get("line")
        return f" ({file}{f' line {line}' if line else ''})" if file else ""

    def view(self, name: ViewName) -> View:
        """The view of that name. Raises ValueError for a name that the sample lacks."""
        return _named({"plain": self.plain, "privileged": self.privileged, **self.views}, name)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Chat messages of each view: rollouts come from `plain`, targets score under the others."""

    uid: str
    plain: list[Message]
    privileged: list[Message]
    more: Mapping[str, list[Message]] = field(default_factory=dict)
    """Those of `Sample.views`."""

    def view(self, name: ViewName) -> list[Message]:
        """The messages of that view. Raises ValueError for a name that is not there."""
        return _named({"plain": self.plain, "privileged": self.privileged, **self.more}, name)


PromptPair = Prompts
"""The older name, of when there were two views."""


def _named(views: Mapping[str, Any], name: str) -> Any:
    if name not in views:
        raise unknown("view", name, views)
    return views[name]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn, in training, probes and evaluation; the defaults are one greedy one.

    The distribution changes in vLLM's order, so that engines agree: penalties, temperature, min_p, top_k,
    top_p. Names are TRL's.
    """

    num_generations: int = 1
    """Completions per prompt (n)."""
    max_completion_length: int = 1024
    """New tokens after which a completion is cut."""
    temperature: float = 0.0
    """Logits are divided by it; 0 takes the most probable token."""
    top_p: float = 1.0
    """Smallest set of tokens whose probabilities reach it; 1 is off."""
    top_k: int = 0
    """The k most probable tokens; 0 is off. Not the divergence's top-K."""
    min_p: float = 0.0
    """Tokens of at least this share of the greatest probability; 0 is off."""
    presence_penalty: float = 0.0
    """Taken from the logit of a token that the completion holds; 0 is off."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token once for each time that the completion holds it; 0 is off."""
    repetition_penalty: float = 1.0
    """A token of prompt or completion: its logit divided by this, or times it below 0; 1 is off."""
    stop: tuple[str, ...] = ()
    """Texts at the first of which a completion ends."""
    seed: int = 0
    """Of the draws, together with each prompt's uid and number and the place among its completions."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(t, str) and t for t in self.stop):
            raise ValueError(f"stop={self.stop!r} must be a list of texts, none empty")
        object.__setattr__(self, "stop", tuple(self.stop))  # a list in YAML
        for name, is_allowed, allowed in (
            ("num_generations", self.num_generations >= 1, "at least 1"),
            ("max_completion_length", self.max_completion_length >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "must not be negative"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("presence_penalty", abs(self.presence_penalty) <= 2, "in [-2, 2]"),
            ("frequency_penalty", abs(self.frequency_penalty) <= 2, "in [-2, 2]"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("seed", self.seed >= 0, "at least 0"),
        ):
            if not is_allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not allowed: {allowed}")
        if self.num_generations > 1 and self.temperature == 0:
            raise ValueError(
                f"num_generations={self.num_generations} greedy completions would all be the same: "
                "set a temperature above 0"
            )

    @property
    def has_penalties(self) -> bool:
        """Whether what was generated changes the distribution of what follows."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        return penalties != (0.0, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled completion; its ids travel as sampled and are never decoded and encoded again."""

    uid: str
    completion_ids: "torch.Tensor"
    """int64 [T], EOS kept."""
    sampler_logp: "torch.Tensor"
    """fp32 [T], log-prob in nats of each token under the distribution that was sampled from."""
    finish_reason: Literal["stop", "length"]
    source: "CompletionSource" = "student"
    """Who wrote it; the student's alone count as its accuracy."""
    policy_version: int = 0
    """Optimizer steps that made the weights it was sampled from."""


class Regime(IntEnum):
    """A token's place in DOPD's routing (paper section 1.4); masked tokens carry -1."""

    LH = 0
    """Low gap, both confident: light teaching."""
    LL = 1
    """Low gap, neither confident: weak anchor to the self-target."""
    HT = 2
    """High gap, teacher at least as confident: deep teaching."""
    HS = 3
    """High gap, self-target more confident: light anchor to it."""


POLICIES = ("teacher", "self_target", "student", "base")
"""Who can score a completion: the teacher; the student's weights as `Method.self_target` says (live, EMA or
frozen); the student as it is; the student as it was before the run (with LoRA: without adapters).

None gets a gradient. Each is a target of its own name too, under the view of the routes that use it."""
TOKENS = "tokens"
"""The target with all its mass on the completion's own token; it costs no forward."""
CompletionSource = str
"""One of SOURCES."""
SOURCES = ("student", "teacher", "answer")
"""Who writes completions: `answer` is the row's own."""


def check_completions(where: str, shares: Mapping[Any, float]) -> None:
    """Raises ValueError unless `shares` gives known sources finite shares, none negative and some positive."""
    for source in shares:
        if source not in SOURCES:
            raise unknown(f"{where}: source", source, SOURCES)
    if not all(0 <= share < float("inf") for share in shares.values()) or not any(shares.values()):
        raise ValueError(
            f"{where}={dict(shares)!r}: shares must be >= 0 and finite, and one above 0"
        )


SelfTarget = Literal["live", "ema", "frozen"]
Tail = Literal["bucket", "renormalise", "truncate"]
Reduction = Literal["sequence-mean", "token-mean"]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of a target's log-probs, coefficient x log p(policy under view)."""

    policy: str
    """One of POLICIES."""
    view: ViewName = "privileged"
    coefficient: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Route:
    """How one regime's tokens are taught."""

    target: str
    """One of POLICIES under `target_view`, a name in `Method.targets`, or `tokens`.

    Forward KL to `tokens` is the likelihood loss -log p(token); weighted, a policy gradient."""
    target_view: ViewName = "privileged"
    """Unused where `target` is a name in `Method.targets`, whose terms name their views, or `tokens`."""
    divergence: str
    """A name in `divergences.DIVERGENCES`."""
    top_k: int | None = None
    """Support size; None is the full vocabulary."""
    weight: float = 1.0
    beta: float = 0.5
    """Mixture weight of `jsd` only: 0 forward KL, 1 reverse KL, 0.5 the paper's JS."""
    support: Literal["target", "student", "sampled"] = "target"
    """Whose K most probable tokens make the support; `sampled` estimates the divergence from the
    sampled token alone (`top_k` and `tail` are then unused)."""
    tail: Tail = "bucket"
