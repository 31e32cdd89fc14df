"""lm-evaluation-harness on a model of ours: its tasks, our prompts' encoding and our decoding.

    import dopd_vlm.eval.bridges.lm_eval
    lm_eval.simple_evaluate(model="dopd", model_args="pretrained=CHECKPOINT", tasks=["my_task"])

The class is registered as `dopd`. Checkpoints also load with lm-eval's own `hf` and `hf-multimodal`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dopd_vlm.config import ModelConfig
from dopd_vlm.distributed import process_state
from dopd_vlm.models.chat import render
from dopd_vlm.models.encoder import EncodedPrompt, collate, encode_text
from dopd_vlm.models.forward import completion_hidden
from dopd_vlm.models.policy import Policy, load_policy, output_head
from dopd_vlm.rollout import OwnEngine
from dopd_vlm.routed_loss.target_scores import target_scores
from dopd_vlm.types import Sampling

from ..completions.generators import Completion, complete_encoded, halving
from .decoding import batches, by_settings, decoding, refuse_unknown

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError(
        "the lm-eval harness needs the extra `lm-eval`: pip install 'dopd-vlm[lm-eval]'"
    ) from error

PLACEHOLDER = "<image>"
"""How lm-eval's tasks mark the place of an image in the text."""
MAX_LENGTH = 4096
"""Window of rolling log-likelihoods where the model's config names no length."""
log = logging.getLogger(__name__)


@register_model("dopd")
class PolicyLM(TemplateLM):
    """A Policy as lm-eval sees it; text and image tasks by generation, text tasks by log-likelihood."""

    MULTIMODAL = True

    def __init__(
        self,
        pretrained: str = "",
        *,
        policy: Policy | None = None,
        batch_size: int | str = 32,
        device: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        """`pretrained` is a folder or hub id, `policy` a loaded model in its place.

        Raises:
            ValueError: neither or both are given, or an unknown model argument.
        """
        super().__init__()
        if bool(pretrained) == (policy is not None):
            raise ValueError("give either pretrained=PATH or a loaded policy")
        refuse_unknown(unknown)
        state = process_state()
        self._rank, self._world_size = state.process_index, state.num_processes
        where = device or state.device or "cpu"
        self.policy = policy or load_policy(
            ModelConfig(path=pretrained), device=where, trainable=False
        )
        self._device = self.policy.device
        self.batch_size = 32 if batch_size == "auto" else int(batch_size)
        self.template_kwargs = dict(template_kwargs or {})
        self.tokenizer = self.policy.tokenizer
        self._engine = OwnEngine(self.policy, batch_size=self.batch_size)
        self._complete = halving(self._complete_batch)
        self._is_rendered = False
        self._token_inputs = tuple(encode_text(self.policy.encoder, "a").token_inputs)

    @property
    def eot_token_id(self) -> int:
        """Ends a text, and begins one that has no context."""
        return self.policy.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text without context: BOS, or EOS where there is none."""
        bos = self.policy.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)  # type: ignore[arg-type]

    @property
    def max_length(self) -> int:
        """Tokens of context and continuation together."""
        text = self.policy.model.config.get_text_config()
        return int(getattr(text, "max_position_embeddings", None) or MAX_LENGTH)

    @property
    def tokenizer_name(self) -> str:
        """Names the cache of rendered requests."""
        return self.policy.path.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Goes into lm-eval's results under `config`."""
        model = self.policy.model
        return {
            "model_num_parameters": model.num_parameters(),
            "model_dtype": str(model.dtype),
            "model_path": self.policy.path,
        }

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The processor's template, which lm-eval writes into its results."""
        return self.policy.processor.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The rendered turns; each `<image>` in a text becomes an image block."""
        self._is_rendered = True
        turns = [{**turn, "content": _blocks(turn["content"])} for turn in chat_history]
        return render(
            self.policy.processor,
            turns,
            template_kwargs=self.template_kwargs,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; special tokens are those of the text unless asked for otherwise.

        A text that does not begin with BOS gets it where the tokenizer adds one.
        """
        bos = self.policy.tokenizer.bos_token
        if add_special_tokens is None:
            add_special_tokens = not (bos and string.startswith(str(bos)))
        return self.policy.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completions cut before the first of the request's stop texts."""
        answers: dict[int, str] = {}
        bar = self._bar("generate_until", len(requests), disable_tqdm)
        for settings, places in by_settings([_arguments(r) for r in requests]):
            sampling = decoding(settings)
            for part in batches(places, self.batch_size, lambda i: len(requests[i].args[0])):
                completions = self._complete([requests[i] for i in part], sampling, part)
                for place, completion in zip(part, completions, strict=True):
                    answers[place] = completion.text
                    self.cache_hook.add_partial(
                        "generate_until", requests[place].args, answers[place]
                    )
                bar.update(len(part))
        bar.close()
        return [answers[i] for i in range(len(requests))]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(sum of log-probabilities of the continuation in nats, whether greedy decoding gives it).

        Raises:
            NotImplementedError: the task has images.
        """
        if any(_images(request) for request in requests):
            raise NotImplementedError(
                "log-likelihoods are for text tasks; give the image task output_type: generate_until"
            )
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each whole text, in disjoint windows of `max_length`."""
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [(("", ""), *make_disjoint_window(window)) for window in windows]
            scores = self._loglikelihood_tokens(pairs, disable_tqdm=True)
            totals.append(sum(logp for logp, _ in scores))
        return totals

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        by_place: dict[int, tuple[float, bool]] = {}
        places = range(len(requests))
        bar = self._bar("loglikelihood", len(requests), disable_tqdm)
        for part in batches(places, self.batch_size, lambda i: len(requests[i][1])):
            scores = self._score([requests[i][1:] for i in part])
            by_place |= dict(zip(part, scores, strict=True))
            bar.update(len(part))
        bar.close()
        return [by_place[i] for i in places]

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        prompts, completions = [], []
        for context, continuation in pairs:
            room = self.max_length - len(continuation)
            prompts.append(self._prompt(context[-room:]))
            completions.append(torch.tensor(continuation))
        batch = collate(prompts, completions, pad_id=self.policy.pad_id).to(self.policy.device)
        with torch.no_grad():
            hidden = completion_hidden(self.policy, batch)
        head = output_head(self.policy)
        scores = target_scores(hidden, head, batch.completion_ids, batch.mask, top_k=1)
        assert scores.top_ids is not None
        is_best = torch.ones_like(batch.mask)
        is_best[batch.mask] = scores.top_ids[:, 0] == batch.completion_ids[batch.mask]
        sums = scores.logp.double().sum(-1)
        return [
            (float(total), bool(best)) for total, best in zip(sums, is_best.all(-1), strict=True)
        ]

    def _prompt(self, ids: list[int]) -> EncodedPrompt:
        tokens = torch.tensor(ids)
        inputs = dict.fromkeys(self._token_inputs, torch.zeros_like(tokens))
        return EncodedPrompt(uid="", text="", input_ids=tokens, token_inputs=inputs)

    def _encode(self, request: Instance, room: int) -> EncodedPrompt:
        """The context with its images; a longer text loses its beginning."""
        text, images = request.args[0], _images(request)
        if images and not self._is_rendered:
            text = text.replace(PLACEHOLDER, self.policy.processor.image_token)
        bos = self.policy.tokenizer.bos_token
        is_begun = self._is_rendered or (bos and text.startswith(str(bos)))
        prompt = encode_text(self.policy.encoder, text, images, add_special_tokens=not is_begun)
        if images or len(prompt.input_ids) <= room:
            return prompt
        log.warning("a context of %d tokens is cut to its last %d", len(prompt.input_ids), room)
        inputs = {name: values[-room:] for name, values in prompt.token_inputs.items()}
        return replace(prompt, input_ids=prompt.input_ids[-room:], token_inputs=inputs)

    def _complete_batch(
        self, requests: Sequence[Instance], sampling: Sampling, numbers: Sequence[int]
    ) -> list[Completion]:
        room = max(1, self.max_length - sampling.max_completion_length)
        prompts = [
            replace(self._encode(request, room), number=number)
            for request, number in zip(requests, numbers, strict=True)
        ]
        return complete_encoded(self._engine, self.policy.encoder, prompts, sampling)

    def _bar(self, title: str, total: int, is_off: bool) -> tqdm:
        return tqdm(total=total, desc=title, disable=is_off or self.rank > 0)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one after the other."""
        return gather(tensor)  # type: ignore[return-value]

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any]:
        """The objects of all processes, on every one of them."""
        return gather_object([obj])

    def barrier(self) -> None:
        """Waits for all processes."""
        process_state().wait_for_everyone()


def _arguments(request: Instance) -> Mapping[str, Any]:
    return request.args[1]  # type: ignore[misc]


def _images(request: Instance) -> list[Image.Image]:
    extra = request.args[2] if len(request.args) > 2 else {}
    images = extra.get("visual") or []
    return [image.convert("RGB") for image in (images if isinstance(images, list) else [images])]


def _blocks(text: str) -> str | list[dict[str, Any]]:
    """A text without images as it is: text-only chat templates accept a string only."""
    pieces = text.split(PLACEHOLDER)
    if len(pieces) == 1:
        return text
    blocks: list[dict[str, Any]] = []
    for index, piece in enumerate(pieces):
        blocks += [{"type": "image"}] if index else []
        blocks += [{"type": "text", "text": piece}] if piece else []
    return blocks
