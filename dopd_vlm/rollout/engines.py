"""The engines by name, and how a run opens its own."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dopd_vlm import plugins
from dopd_vlm.config import RolloutConfig
from dopd_vlm.models.policy import Policy
from dopd_vlm.rollout.engine import RolloutEngine
from dopd_vlm.rollout.own import OwnEngine

Autocast = Callable[..., AbstractContextManager[Any]]
OpenEngine = Callable[[RolloutConfig, Policy, Autocast], RolloutEngine]
"""(the recipe's rollout section, the student, the forwards' precision) -> an engine with its weights."""


def open_own(config: RolloutConfig, policy: Policy, autocast: Autocast) -> RolloutEngine:
    """The sampling loop of this package, on the student itself."""
    return OwnEngine(policy, batch_size=config.batch_size, autocast=autocast)


def open_in_process(config: RolloutConfig, policy: Policy, autocast: Autocast) -> RolloutEngine:
    """vLLM in this process; what it needs is imported here."""
    from dopd_vlm.rollout.vllm import open_vllm

    return open_vllm(config, policy, autocast)


ENGINES: dict[str, OpenEngine] = {"own": open_own, "vllm": open_in_process}
"""Values of `rollout.engine`."""


def register(name: str, open_engine: OpenEngine) -> None:
    """Makes an engine known under a name (ADD_AN_ENGINE.md).

    Raises:
        ValueError: the name is taken by another engine.
    """
    plugins.add("engine", ENGINES, name, open_engine)


def open_engine(
    config: RolloutConfig, policy: Policy, autocast: Autocast = nullcontext
) -> RolloutEngine:
    """The engine that `rollout.engine` names.

    Raises:
        ValueError: no engine has the name.
        EngineError: the engine cannot start.
    """
    return plugins.look_up("rollout.engine", ENGINES, config.engine)(config, policy, autocast)
