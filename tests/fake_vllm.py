"""A module in vLLM's place, as `rollout/vllm.py` uses it: a copy of the model behind vLLM's names."""

import sys
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from dopd_vlm.config import ModelConfig
from dopd_vlm.models.encoder import encode_text
from dopd_vlm.models.policy import load_policy
from dopd_vlm.rollout.own import generate
from dopd_vlm.types import Sampling


@dataclass
class Logprob:
    logprob: float


class SamplingParams:
    """Holds what it is given."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class LLM:
    """Samples with the own loop from the folder's weights, under vLLM's interface."""

    last: "LLM"

    def __init__(self, **arguments: Any) -> None:
        LLM.last, self.arguments, self.calls = self, arguments, []
        self.policy = load_policy(
            ModelConfig(path=arguments["model"], dtype=arguments["dtype"]),
            device="cpu",
            trainable=False,
        )
        note = lambda name: lambda **options: self.calls.append(name)  # noqa: E731
        self.reset_prefix_cache = note("reset_prefix_cache")
        self.reset_mm_cache = note("reset_mm_cache")
        self.sleep, self.wake_up = note("sleep"), note("wake_up")
        self.llm_engine = SimpleNamespace(
            reset_encoder_cache=note("reset_encoder_cache"),
            engine_core=SimpleNamespace(shutdown=note("shutdown")),
        )

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "dopd_load"
        ours = dict(self.policy.model.named_parameters())
        with torch.no_grad():
            for name, tensor in kwargs["weights"]:
                ours[name].copy_(tensor)
        self.calls.append(method)

    def generate(self, inputs: list[Any], settings: list[Any], use_tqdm: bool) -> list[Any]:
        return [self.one(prompt, asked) for prompt, asked in zip(inputs, settings, strict=True)]

    def one(self, given: dict[str, Any], asked: SamplingParams) -> Any:
        """One prompt's completions, image marks widened as the processor does."""
        images = given.get("multi_modal_data", {}).get("image", [])
        text = self.policy.tokenizer.decode(given["prompt_token_ids"])
        prompt = encode_text(self.policy.encoder, text, images)
        names = "temperature top_p top_k min_p presence_penalty frequency_penalty repetition_penalty stop seed"
        sampling = Sampling(
            num_generations=asked.n,
            max_completion_length=asked.max_tokens,
            **{name: vars(asked)[name] for name in names.split()},
        )
        rollouts = generate(self.policy, [replace(prompt, uid="fake")], sampling)
        outputs = [
            SimpleNamespace(
                index=index,
                token_ids=rollout.completion_ids.tolist(),
                logprobs=[
                    {token: Logprob(logp)}
                    for token, logp in zip(
                        rollout.completion_ids.tolist(), rollout.sampler_logp.tolist(), strict=True
                    )
                ],
            )
            for index, rollout in enumerate(rollouts)
        ]
        return SimpleNamespace(prompt_token_ids=prompt.input_ids.tolist(), outputs=outputs[::-1])


def install(monkeypatch: Any) -> type[LLM]:
    """Puts it in vLLM's place for one test."""
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    vars(module).update(LLM=LLM, SamplingParams=SamplingParams)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return LLM
