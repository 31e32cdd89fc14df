"""What vLLM's worker gets besides its own methods (`worker_extension_cls`): weights of a version, whole.

vLLM imports it in the process of its worker, by name; nothing here imports vLLM before that.
"""

from importlib import import_module
from typing import Any

EXTENSION = f"{__name__}.WeightLoader"
"""Value of vLLM's worker_extension_cls."""


class WeightLoader:
    """A mixin of vLLM's Worker, which has `reload_weights` and `model_runner`."""

    reload_weights: Any
    model_runner: Any

    def dopd_load(self, weights: Any = None, folder: str | None = None) -> None:
        """New weights: (name in the checkpoint, tensor) pairs, or the safetensors of a folder."""
        self.reload_weights(weights_iterator=weights, weights_path=folder)
        layers = import_module("vllm.model_executor.layers.vocab_parallel_embedding")
        # A head that shares the embedding's weights is not loaded again itself, and on CPU it
        # computes with a packed copy that was made of the old ones.
        for module in self.model_runner.get_model().modules():
            if isinstance(module, layers.VocabParallelEmbedding) and "cpu_linear" in vars(module):
                module.quant_method.process_weights_after_loading(module)
