"""`RolloutEngine`: what samples completions, for training, probes and evaluation.

A version is the number of optimizer steps that made the weights. An engine says under which version each
completion was drawn, and refuses to draw under another than it is asked for.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from dopd_vlm.models.encoder import EncodedPrompt
from dopd_vlm.models.image_features import StepFeatures
from dopd_vlm.types import Rollout, Sampling

Weights = Iterable[tuple[str, Tensor]]
"""(name in the Hugging Face checkpoint, whole tensor), one after the other."""


class StalePolicyError(RuntimeError):
    """Completions of other weights than those asked for; load the weights first."""


class EngineError(RuntimeError):
    """An engine cannot do what it was asked for; the message says what failed and what to do."""


class RolloutEngine(Protocol):
    """Samples completions of the weights it was last given.

    `generate` and `load` are collective: every process calls them, with the same version.
    """

    @property
    def version(self) -> int:
        """The version of the weights that the next completions come from."""
        ...

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        sampling: Sampling,
        *,
        version: int,
        features: StepFeatures | None = None,
    ) -> list[Rollout]:
        """`num_generations` Rollouts a prompt, in the order of the prompts.

        What is drawn is a function of weights, prompt (ids, images, uid, number), sampling and the
        place among the prompt's completions; never of the other prompts, their order or the process.
        Image and video markers are never drawn; EOS is kept. `features` are what the step's images
        became under these weights: an engine that shares the trainer's memory may use them.

        Raises:
            StalePolicyError: the engine holds weights of another version.
            ValueError: a field of `sampling` that the engine cannot honour, by name.
            EngineError: the engine failed.
        """
        ...

    def load(self, weights: Weights, *, version: int) -> None:
        """New weights: all completions from here on are theirs."""
        ...

    def rest(self) -> None:
        """Gives up memory that only sampling needs, until `wake`."""
        ...

    def wake(self) -> None:
        """Takes the memory back; the weights are those of before."""
        ...

    def close(self) -> None:
        """Ends the engine; nothing can be asked of it afterwards."""
        ...


def check_version(held: int, asked: int, staleness: int = 0) -> None:
    """Raise StalePolicyError unless `held` is `asked` or at most `staleness` steps older."""
    if not 0 <= asked - held <= staleness:
        raise StalePolicyError(
            f"the engine holds weights of version {held}, completions of version {asked} were asked "
            f"for and rollout.staleness is {staleness}: load the weights first"
        )


def refuse_fields(engine: str, sampling: Sampling, fields: Sequence[str]) -> None:
    """Raise ValueError that names the first of `fields` that is set to more than its default."""
    for name in fields:
        if getattr(sampling, name) != getattr(Sampling, name):
            raise ValueError(
                f"rollout.engine={engine} cannot honour {name}={getattr(sampling, name)!r}: "
                "leave it out, or use rollout.engine=own"
            )
