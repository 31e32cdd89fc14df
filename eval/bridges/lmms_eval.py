"""lmms-eval on a model of ours, through its entry-point group `lmms_eval.models`.

    python -m lmms_eval --model dopd --model_args pretrained=CHECKPOINT --tasks mmstar --batch_size 8

lmms-eval lives in an environment of its own (its antlr4 is not math-verify's):
scripts/checks/lmms.py makes one and checks that the numbers are ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]
from lmms_eval.protocol import ChatMessages  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from dopd_vlm.config import ModelConfig
from dopd_vlm.distributed import process_state
from dopd_vlm.models.policy import load_policy
from dopd_vlm.rollout import OwnEngine
from dopd_vlm.types import Message

from ..completions.generators import engine_generator, halving
from .decoding import batches, by_settings, decoding, refuse_unknown


def manifest() -> Any:
    """What the entry point gives lmms-eval."""
    return ModelManifest(
        model_id="dopd", chat_class_path="dopd_vlm.eval.bridges.lmms_eval.PolicyChat"
    )


class PolicyChat(lmms):
    """A Policy as lmms-eval's chat model: text and images, by generation."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        *,
        batch_size: int | str = 1,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        """`pretrained` is a folder or hub id.

        Raises:
            ValueError: an unknown model argument.
        """
        super().__init__()
        refuse_unknown(unknown)
        state = process_state()
        self._rank, self._world_size = state.process_index, state.num_processes
        where = device or state.device or "cpu"
        self.policy = load_policy(ModelConfig(path=pretrained), device=where, trainable=False)
        self.batch_size = int(batch_size)
        engine = OwnEngine(self.policy, batch_size=self.batch_size)
        self._complete = halving(engine_generator(engine, self.policy.encoder))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Completions cut before the first of the request's stop texts."""
        answers: dict[int, str] = {}
        prompts = [self._messages(request) for request in requests]
        bar = tqdm(total=len(requests), desc="generate_until", disable=self._rank > 0)
        for settings, places in by_settings([request.args[2] for request in requests]):
            sampling = decoding(settings)
            for part in batches(places, self.batch_size, lambda i: _length(prompts[i])):
                completions = self._complete([prompts[i] for i in part], sampling, part)
                for place, completion in zip(part, completions, strict=True):
                    answers[place] = completion.text
                bar.update(len(part))
        bar.close()
        return [answers[i] for i in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not for image tasks; text tasks have it under lm-eval."""
        raise NotImplementedError("log-likelihoods: use lm-eval, or a task that generates")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported."""
        raise NotImplementedError("tasks of several rounds are not supported")

    def _messages(self, request: Instance) -> list[Message]:
        """The task's chat turns; a turn of text alone is a string, as text-only templates need it.

        Raises:
            ValueError: the task has videos or sound.
        """
        _, doc_to_messages, _, doc_id, task, split = request.args
        chat = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        _, videos, sounds = chat.extract_media()
        if videos or sounds:
            raise ValueError(f"task {task!r} has videos or sound; only images are supported")
        return [_turn(turn) for turn in chat.to_hf_messages()]


def _turn(turn: Mapping[str, Any]) -> Message:
    blocks = turn["content"]
    if all(block["type"] == "text" for block in blocks):
        return {"role": turn["role"], "content": "".join(block["text"] for block in blocks)}
    return {"role": turn["role"], "content": list(blocks)}


def _length(messages: Sequence[Message]) -> int:
    return sum(len(str(turn["content"])) for turn in messages)
