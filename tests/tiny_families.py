"""Random tiny models of every family behind the real processor classes; tokenizers with the family's marks."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tiny
import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from dopd_vlm.models.policy import Policy

IMAGE_SIZE, PATCH = 32, 8
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    head_dim=16, max_position_embeddings=4096, initializer_range=0.2,
)  # fmt: skip
TOWER = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    image_size=IMAGE_SIZE, patch_size=PATCH,
)  # fmt: skip


def template(
    user: str, image: str, end: str, assistant: str, begin: str = "", then: str = ""
) -> str:
    """A chat template: turns between the family's marks, images where they stand."""
    return (
        f"{begin}{{% for m in messages %}}{{{{ '{user}' if m.role != 'assistant' else '{assistant}' }}}}"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content %}"
        f"{{% if b.type == 'image' %}}{image}{then}{{% else %}}{{{{ b.text }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
        f"{end}{{% endfor %}}{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


def tokenizer(
    chat_template: str,
    *,
    eos: str,
    pad: str,
    named: Mapping[str, str] | None = None,
    more: tuple[str, ...] = (),
) -> hf.PreTrainedTokenizerFast:
    """One token per printable character and mark; `named` marks are attributes, as processors read them."""
    alphabet = ["<unk>", "\n", *(chr(code) for code in range(32, 127))]
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(alphabet)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tok = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token=eos, pad_token=pad,
        chat_template=chat_template, extra_special_tokens=dict(named or {}),
    )  # fmt: skip
    tok.add_special_tokens(
        {"additional_special_tokens": list(more)}, replace_extra_special_tokens=False
    )
    return tok


def policy_of(kind: Callable[[Any], Any], config: Any, processor: Any, seed: int) -> Policy:
    """A random model in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).eval()
    tok = processor if isinstance(processor, hf.PreTrainedTokenizerBase) else processor.tokenizer
    model.generation_config.eos_token_id = tok.eos_token_id
    model.generation_config.pad_token_id = tok.pad_token_id
    return Policy(model=model, processor=processor, path=f"tiny-{config.model_type}-{seed}")


CHATML = "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"


def qwen_vl(version: str) -> Callable[[int], Policy]:
    """Qwen2-VL or Qwen2.5-VL; Qwen3-VL is tiny.vl_policy."""

    def make(seed: int) -> Policy:
        tok = tiny.tokenizer()
        ids = tok.convert_tokens_to_ids
        config_class, model_class, processor_class = {
            "2": (hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLProcessor),
            "2.5": (hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLProcessor),
        }[version]  # fmt: skip
        vision = dict(depth=2, patch_size=PATCH, spatial_merge_size=2, temporal_patch_size=2)
        vision |= (
            dict(embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2)
            if version == "2"
            else dict(
                hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=32, window_size=32,
                fullatt_block_indexes=[1],
            )
        )  # fmt: skip
        config = config_class(
            text_config=TEXT | dict(
                vocab_size=len(tok), eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, bos_token_id=None,
                rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
            ),
            vision_config=vision,
            image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
        )  # fmt: skip
        size = {"shortest_edge": 16 * 16, "longest_edge": 256 * 256}
        processor = processor_class(
            image_processor=hf.Qwen2VLImageProcessor(patch_size=PATCH, merge_size=2, size=size),
            tokenizer=tok, video_processor=hf.Qwen2VLVideoProcessor(), chat_template=tiny.TEMPLATE,
        )  # fmt: skip
        return policy_of(model_class, config, processor, seed)

    return make


def internvl(seed: int) -> Policy:
    """InternVL3: up to four tiles of 32 pixels and a thumbnail, four tokens each."""
    user, end, assistant = CHATML
    chat = template(user, "<IMG_CONTEXT>", end, assistant, then="\n")
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tok = tokenizer(
        chat, eos="<|im_end|>", pad="<|endoftext|>", named=named, more=("<|im_start|>",)
    )
    config = hf.InternVLConfig(
        text_config=TEXT | dict(model_type="qwen2", vocab_size=len(tok), bos_token_id=None),
        vision_config=TOWER | dict(image_size=[IMAGE_SIZE] * 2, patch_size=[PATCH] * 2),
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tok, video_processor=hf.InternVLVideoProcessor(size=size), image_seq_length=4, chat_template=chat,
    )  # fmt: skip
    return policy_of(hf.InternVLForConditionalGeneration, config, processor, seed)


GEMMA = TEXT | dict(
    num_hidden_layers=3, sliding_window=16, query_pre_attn_scalar=16, bos_token_id=None,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
)  # fmt: skip


def gemma_tokenizer() -> hf.PreTrainedTokenizerFast:
    chat = template(
        "<start_of_turn>user\n",
        "<start_of_image>",
        "<end_of_turn>\n",
        "<start_of_turn>model\n",
        begin="<bos>",
    )
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    more = ("<bos>", "<start_of_turn>")
    return tokenizer(chat, eos="<end_of_turn>", pad="<pad>", named=named, more=more)


def gemma3(seed: int) -> Policy:
    """Gemma 3 with a tower: four tokens an image that see each other, a sliding window of 16."""
    tok = gemma_tokenizer()
    ids = tok.convert_tokens_to_ids
    config = hf.Gemma3Config(
        text_config=GEMMA | dict(vocab_size=len(tok)),
        vision_config=TOWER, mm_tokens_per_image=4, image_token_id=ids("<image_soft_token>"),
        boi_token_id=ids("<start_of_image>"), eoi_token_id=ids("<end_of_image>"),
    )  # fmt: skip
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=tok, image_seq_length=4, chat_template=tok.chat_template,
    )  # fmt: skip
    return policy_of(hf.Gemma3ForConditionalGeneration, config, processor, seed)


# The two that read blocks alone, as their checkpoints have them: of a string nothing is rendered.
LLAVA_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SMOLVLM_CHAT = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def llava_onevision(seed: int) -> Policy:
    """LLaVA-OneVision: one image in tiles of 32 pixels, several at 32 pixels each."""
    named = {"image_token": "<image>", "video_token": "<video>"}
    chat = LLAVA_CHAT
    tok = tokenizer(
        chat, eos="<|im_end|>", pad="<|endoftext|>", named=named, more=("<|im_start|>",)
    )
    pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = hf.LlavaOnevisionConfig(
        text_config=TEXT | dict(model_type="qwen2", vocab_size=len(tok), bos_token_id=None),
        vision_config=TOWER | dict(model_type="siglip_vision_model", vision_use_head=False),
        image_token_id=tok.convert_tokens_to_ids("<image>"), video_token_id=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints, vision_feature_select_strategy="full", vision_feature_layer=-1,
    )  # fmt: skip
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer=tok, video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(IMAGE_SIZE // PATCH) ** 2, vision_feature_select_strategy="full", chat_template=chat,
    )  # fmt: skip
    return policy_of(hf.LlavaOnevisionForConditionalGeneration, config, processor, seed)


def smolvlm(seed: int) -> Policy:
    """SmolVLM: tiles of 32 pixels and the whole image, four tokens each."""
    named = {
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "video_token": "<video>",
        "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
    }  # fmt: skip
    places = tuple(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4))
    chat = SMOLVLM_CHAT
    tok = tokenizer(
        chat, eos="<end_of_utterance>", pad="<pad>", named=named, more=("<|im_start|>", *places)
    )
    config = hf.SmolVLMConfig(
        text_config=TEXT | dict(model_type="llama", vocab_size=len(tok), pad_token_id=tok.pad_token_id),
        vision_config=TOWER, scale_factor=2, image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(
            size={"longest_edge": 2 * IMAGE_SIZE}, max_image_size={"longest_edge": IMAGE_SIZE}
        ),
        tokenizer=tok, video_processor=hf.SmolVLMVideoProcessor(), image_seq_len=4, chat_template=chat,
    )  # fmt: skip
    return policy_of(hf.SmolVLMForConditionalGeneration, config, processor, seed)


def text_model(kind: str) -> Callable[[int], Policy]:
    """A text model of transformers' class for `kind`."""

    def make(seed: int) -> Policy:
        user, end, assistant = CHATML
        if kind == "gemma3":
            tok = gemma_tokenizer()
            config = hf.Gemma3TextConfig(**GEMMA, vocab_size=len(tok), final_logit_softcapping=5.0)
            return policy_of(hf.Gemma3ForCausalLM, config, tok, seed)
        if kind == "llama3":
            user, end, assistant = (
                "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>",
                "<|start_header_id|>assistant<|end_header_id|>\n\n",
            )  # fmt: skip
            marks = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
            chat = template(user, "", end, assistant, begin="<|begin_of_text|>")
            tok = tokenizer(chat, eos="<|eot_id|>", pad="<|end_of_text|>", more=marks)
            rope = {
                "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
            }  # fmt: skip
            config = hf.LlamaConfig(**TEXT, vocab_size=len(tok), rope_parameters=rope)
            return policy_of(hf.LlamaForCausalLM, config, tok, seed)
        chat = template(user, "", end, assistant)
        tok = tokenizer(chat, eos="<|im_end|>", pad="<|endoftext|>", more=("<|im_start|>",))
        # SmolLM2 is a Llama with tied embeddings.
        config = hf.LlamaConfig(**TEXT, vocab_size=len(tok), tie_word_embeddings=True)
        return policy_of(hf.LlamaForCausalLM, config, tok, seed)

    return make


@dataclass(frozen=True)
class TinyFamily:
    """One family of the tests."""

    make: Callable[[int], Policy]
    is_visual: bool
    shares: bool
    """Whether completions read their prompt's keys and values."""


FAMILIES = {
    "qwen2_vl": TinyFamily(qwen_vl("2"), True, True),
    "qwen2_5_vl": TinyFamily(qwen_vl("2.5"), True, True),
    "qwen3_vl": TinyFamily(tiny.vl_policy, True, True),
    "internvl3": TinyFamily(internvl, True, True),
    "gemma3": TinyFamily(gemma3, True, False),
    "llava_onevision": TinyFamily(llava_onevision, True, True),
    "smolvlm": TinyFamily(smolvlm, True, True),
    "qwen3_text": TinyFamily(tiny.text_policy, False, True),
    "llama3_text": TinyFamily(text_model("llama3"), False, True),
    "gemma3_text": TinyFamily(text_model("gemma3"), False, False),
    "smollm2_text": TinyFamily(text_model("smollm2"), False, True),
}


@functools.cache
def policy(name: str, seed: int = 0) -> Policy:
    """The family's random model, once a process."""
    return FAMILIES[name].make(seed)
