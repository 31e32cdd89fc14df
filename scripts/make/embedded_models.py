"""Tokenizer, processor and untrained tiny models of the embedded sets."""

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from dopd_vlm.data.embedded.lists import NAMES, THINGS, VERBS
from dopd_vlm.data.embedded.shapes import COLOURS, SHAPES

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
LARGEST_NUMBER = 1000
"""Places in text are 0 .. 1000 (Qwen3-VL), one token each."""
PUNCTUATION = ".,:;?!()[]{}'\"-+=*/"
WORDS = (
    "system user assistant Reference Answer with the option s letter from given choices you are a "
    "helpful captions hints boxes answer image bbox_2d label how many objects object has step row "
    "holds and count add take top bottom left middle right A B C D"
)
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for block in message.content %}
{%- if block.type == 'image' %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif block.type == 'video' %}
{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else %}
{{- block.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
TEXT_SIZES = {
    "teacher": {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 320},
    "student": {"hidden_size": 96, "num_hidden_layers": 3, "intermediate_size": 192},
}
VISION_SIZES = {
    "teacher": {"hidden_size": 96, "depth": 3, "intermediate_size": 192, "num_heads": 3},
    "student": {"hidden_size": 48, "depth": 2, "intermediate_size": 128, "num_heads": 2},
}


def tokenizer(more: Sequence[str] = (), whole: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token per word, number 0 .. 1000 and punctuation mark; white space separates only.

    Args:
        more: further words; the ids of the others stay.
        whole: texts that are one token each, signs and spaces inside included.
    """
    numbers = [str(number) for number in range(LARGEST_NUMBER + 1)]
    words = [*WORDS.split(), *COLOURS, *SHAPES, *NAMES, *THINGS, *VERBS]
    vocabulary = dict.fromkeys(["<unk>", *SPECIAL, *PUNCTUATION, *words, *numbers, *more])
    ids = {token: index for index, token in enumerate(vocabulary)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.add_tokens([AddedToken(text, single_word=True, normalized=False) for text in whole])
    return fast


def vl_processor(words: PreTrainedTokenizerFast | None = None) -> Qwen3VLProcessor:
    """The real processor class: patches of 8 pixels, merged 2 x 2, images of 32 x 32 and up."""
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=8, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 256 * 256}
        ),
        tokenizer=words or tokenizer(),
        video_processor=Qwen3VLVideoProcessor(patch_size=8, merge_size=2),
        chat_template=CHAT_TEMPLATE,
    )


def text_model(size: str) -> Qwen3ForCausalLM:
    """An untrained `teacher` or `student` that reads text."""
    model = Qwen3ForCausalLM(Qwen3Config(**_text_config(size)))
    return _with_generation_config(model)


def vl_model(size: str) -> Qwen3VLForConditionalGeneration:
    """An untrained `teacher` or `student` that reads text and images."""
    ids = tokenizer().get_vocab()
    text = _text_config(size)
    text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": [6, 5, 5]}
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=dict(
            **VISION_SIZES[size],
            patch_size=8,
            spatial_merge_size=2,
            temporal_patch_size=2,
            out_hidden_size=text["hidden_size"],
            num_position_embeddings=64,
            deepstack_visual_indexes=[0],
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return _with_generation_config(Qwen3VLForConditionalGeneration(config))


def _text_config(size: str) -> dict:
    tok = tokenizer()
    return dict(
        **TEXT_SIZES[size],
        vocab_size=len(tok),
        num_attention_heads=TEXT_SIZES[size]["hidden_size"] // 32,
        num_key_value_heads=TEXT_SIZES[size]["hidden_size"] // 32,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )


def _with_generation_config(model):
    tok = tokenizer()
    model.generation_config = GenerationConfig(
        eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, do_sample=True
    )
    return model
