"""Tiny random models, tokenizer, images and samples: no download, no GPU."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from dopd_vlm.models.policy import Policy
from dopd_vlm.types import Sample, View

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content %}"
    "{% if b.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ b.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character."""
    alphabet = ["<unk>", "\n", *(chr(code) for code in range(32, 127))]
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(alphabet)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
        chat_template=TEMPLATE,
    )


def text_policy(
    seed: int = 0, *, hidden_size: int = 32, pad_vocab: int = 0, dtype=torch.float32
) -> Policy:
    """A random Qwen3."""
    tok = tokenizer()
    config = Qwen3Config(
        vocab_size=len(tok) + pad_vocab, hidden_size=hidden_size, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=2048,
        eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).to(dtype).eval()
    return Policy(model=model, processor=tok, path=f"tiny-text-{seed}")


def vl_policy(
    seed: int = 0, *, hidden_size: int = 32, pad_vocab: int = 0, dtype=torch.float32
) -> Policy:
    """A random Qwen3-VL: patches of 8, merged 2x2, so one image token per 16 x 16 pixels."""
    tok = tokenizer()
    ids = tok.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=len(tok) + pad_vocab, hidden_size=hidden_size, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=2048,
            initializer_range=0.2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
            eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
        ),
        vision_config=dict(
            depth=2, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=8, spatial_merge_size=2,
            temporal_patch_size=2, out_hidden_size=hidden_size, num_position_embeddings=64,
            deepstack_visual_indexes=[0],
            initializer_range=0.2,
        ),
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
        eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config).to(dtype).eval()
    return Policy(model=model, processor=processor(), path=f"tiny-vl-{seed}")


@functools.cache
def processor() -> Qwen3VLProcessor:
    """The real Qwen3-VL processor on the tiny tokenizer."""
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 256 * 256}
        ),
        tokenizer=tokenizer(),
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=TEMPLATE,
    )


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random pixels."""
    gen = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=gen, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def vl_sample(
    uid: str = "a", *, seed: int = 0, size=(48, 32), privileged_size=(64, 48), context="box 1 2 3"
) -> Sample:
    """An image question whose teacher sees another image size and more text."""
    return Sample(
        uid=uid, question=f"how many {uid}?", answer="2",
        plain=View(images=(image(*size, seed=seed),)),
        privileged=View(images=(image(*privileged_size, seed=seed + 1),), context=context),
    )  # fmt: skip


def text_sample(uid: str = "a", *, context: str = "add 3") -> Sample:
    """A text question with a hint."""
    return Sample(
        uid=uid,
        question=f"what is {uid}?",
        answer="5",
        plain=View(),
        privileged=View(context=context),
    )


def save_pair(folder: Path, make: Callable[..., Policy] = vl_policy) -> Path:
    """FOLDER/s and FOLDER/t: a random student and a random, wider teacher."""
    for name, policy in (("s", make(0)), ("t", make(1, hidden_size=48))):
        policy.model.save_pretrained(folder / name)
        policy.processor.save_pretrained(folder / name)
    return folder
