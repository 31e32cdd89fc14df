"""lm-evaluation-harness: its numbers on our models are ours, on local YAML tasks, without a hub."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from dopd_vlm.config import ModelConfig
from dopd_vlm.data.embedded.sets import embedded_model, embedded_rows
from dopd_vlm.data.views import make_samples
from dopd_vlm.eval.benchmarks.benchmark import load_benchmark
from dopd_vlm.eval.bridges.decoding import decoding
from dopd_vlm.eval.bridges.lm_eval import PolicyLM
from dopd_vlm.eval.bridges.lm_eval_run import run_tasks
from dopd_vlm.eval.completions.generators import complete_encoded
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.models.encoder import encode_text
from dopd_vlm.models.policy import Policy, load_policy
from dopd_vlm.rollout import OwnEngine
from dopd_vlm.types import Sampling

LAST_NUMBER = {"function": "regex", "regex_pattern": r"(-?\d+)", "group_select": -1}
FILTERS = [{"name": "last", "filter": [LAST_NUMBER, {"function": "take_first"}]}]


def write_task(folder: Path, name: str, **settings) -> Path:
    """A local lm-eval task; returns the folder that holds it."""
    (folder / "tasks").mkdir(exist_ok=True)
    tree = {
        "task": name,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 64},
        "filter_list": FILTERS,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 0.1},
        **settings,
    }
    (folder / "tasks" / f"{name}.yaml").write_text(
        yaml.safe_dump({key: value for key, value in tree.items() if value is not None})
    )
    return folder / "tasks"


def text_task(folder: Path, rows: list[dict], name: str = "local_lists", **settings) -> Path:
    """The rows as a JSONL file and a task on it."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data_files": {"test": str(path)}}
    return write_task(folder, name, dataset_path="json", dataset_kwargs=files, **settings)


def embedded(name: str) -> Policy:
    path = str(embedded_model(name))
    return load_policy(ModelConfig(path=path), device="cpu", trainable=False)


def ours(policy: Policy, task: str, count: int, out: Path) -> tuple[float, list[str]]:
    """(accuracy, completions) of our harness."""
    rows = embedded_rows(f"embedded:{task}/test")[:count]
    samples, _ = make_samples(rows, [])
    found = evaluate(policy, load_benchmark(task), samples=samples, out=out)
    lines = (out / f"samples_{task}__plain.jsonl").read_text().splitlines()
    return found.accuracy, [json.loads(line)["resps"][0][0] for line in lines]


def theirs(found: dict, task: str) -> tuple[float, list[str]]:
    """(accuracy, completions) in lm-eval's tree."""
    lines = sorted(found["samples"][task], key=lambda line: line["doc_id"])
    return found["results"][task]["exact_match,last"], [line["resps"][0][0] for line in lines]


def test_our_accuracy_is_lm_evals_on_the_same_rows(tmp_path: Path) -> None:
    policy = embedded("embedded:student_text")
    rows = embedded_rows("embedded:lists/test")[:32]
    folder = text_task(tmp_path, [{"question": r["question"], "answer": r["answer"]} for r in rows])
    expected = ours(policy, "lists", 32, tmp_path / "ours")
    lm = PolicyLM(policy=policy, batch_size=8)
    found = run_tasks(lm, ["local_lists"], include_path=folder, out=tmp_path / "theirs")
    assert found is not None
    assert theirs(found, "local_lists") == expected
    assert 0.0 < expected[0] < 1.0
    assert list((tmp_path / "theirs").rglob("results_*.json"))
    assert list((tmp_path / "theirs").rglob("samples_local_lists_*.jsonl"))
    hf = simple_evaluate(
        model="hf",
        model_args={"pretrained": policy.path, "dtype": "float32"},
        tasks=["local_lists"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=True,
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
    )
    assert theirs(hf, "local_lists")[0] == expected[0]


@pytest.mark.slow
def test_image_tasks_agree_with_ours_and_with_hf_multimodal(tmp_path: Path) -> None:
    policy = embedded("embedded:student_vl")
    rows = embedded_rows("embedded:shapes/test")[:24]
    images = tmp_path / "images" / "test"
    images.mkdir(parents=True)
    with (images / "metadata.jsonl").open("w") as file:
        for row in rows:
            source = Path(row["origin"]["root"]) / row["images"][0]
            (images / source.name).write_bytes(source.read_bytes())
            line = {"file_name": source.name, "question": row["question"], "answer": row["answer"]}
            file.write(json.dumps(line) + "\n")
    folder = write_task(
        tmp_path,
        "local_shapes",
        dataset_path="imagefolder",
        dataset_kwargs={"data_dir": str(images.parent)},
        doc_to_image=["image"],
        doc_to_text="<image>{{question}}",
    )
    expected = ours(policy, "shapes", 24, tmp_path / "ours")
    found = run_tasks(PolicyLM(policy=policy), ["local_shapes"], include_path=folder)
    assert found is not None and theirs(found, "local_shapes") == expected
    hf = simple_evaluate(
        model="hf-multimodal",
        model_args={"pretrained": policy.path, "dtype": "float32"},
        tasks=["local_shapes"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=True,
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
    )
    assert theirs(hf, "local_shapes")[0] == expected[0]


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=args, idx=0)  # type: ignore[arg-type]
        for args in arguments
    ]


def test_log_likelihoods_are_hfs(tmp_path: Path) -> None:
    policy = tiny.text_policy()
    lm = PolicyLM(policy=policy, batch_size=2)
    hf = HFLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size=1, device="cpu")  # type: ignore[arg-type]
    asked = requests(
        "loglikelihood", ("what is 2?", " two"), ("", "a text"), ("a b ", "c"), ("x", "y")
    )
    mine, other = lm.loglikelihood(asked, disable_tqdm=True), hf.loglikelihood(asked)
    assert [logp for logp, _ in mine] == pytest.approx([logp for logp, _ in other], rel=1e-5)
    assert [best for _, best in mine] == [best for _, best in other]
    texts = requests("loglikelihood_rolling", ("a first text",), ("b" * 40,))
    mine, other = lm.loglikelihood_rolling(texts), hf.loglikelihood_rolling(texts)
    assert mine == pytest.approx(other, rel=1e-5)


def test_the_most_probable_continuation_is_greedy() -> None:
    policy = tiny.text_policy()
    lm = PolicyLM(policy=policy)
    ids = torch.tensor([lm.tok_encode("what is 2?")])
    best = policy.tokenizer.decode(policy.model(input_ids=ids).logits[0, -1, :95].argmax())
    (logp, is_greedy), (other, is_other) = lm.loglikelihood(
        requests(
            "loglikelihood", ("what is 2?", best), ("what is 2?", "@" if best != "@" else "#")
        ),
        disable_tqdm=True,
    )
    assert logp > other and not is_other
    assert is_greedy == (policy.model(input_ids=ids).logits[0, -1].argmax() < 95)


def test_choices_are_weighed_by_a_local_multiple_choice_task(tmp_path: Path) -> None:
    folder = text_task(
        tmp_path,
        [{"question": "which?", "choices": ["a", "b"], "label": i % 2} for i in range(4)],
        "local_choice",
        output_type="multiple_choice",
        doc_to_choice="{{choices}}",
        doc_to_target="{{label}}",
        filter_list=None,
        generation_kwargs=None,
        metric_list=[{"metric": "acc"}],
    )
    lm = PolicyLM(policy=tiny.text_policy())
    found = run_tasks(lm, ["local_choice"], include_path=folder, limit=4)
    assert found is not None and found["results"]["local_choice"]["acc,none"] == 0.5


def test_stop_texts_and_decoding_arguments() -> None:
    generation = decoding({"until": ["\n\n", ""], "do_sample": True, "temperature": 0.7})
    assert (generation.temperature, generation.stop) == (0.7, ("\n\n",))
    assert decoding({"max_new_tokens": 5, "num_beams": 1}).max_completion_length == 5
    off = decoding({"do_sample": False, "temperature": 0.7, "top_p": 0.9})
    assert (off.temperature, off.top_p) == (0.0, 1.0)
    assert decoding({"temperature": 0.5}).temperature == 0.5
    assert decoding({"do_sample": True}).temperature == 1.0
    with pytest.raises(ValueError, match="num_beams"):
        decoding({"num_beams": 4})
    lm = PolicyLM(policy=tiny.text_policy())
    (whole,) = lm.generate_until(requests("generate_until", ("ab", {"max_gen_toks": 9})))
    stop = whole[3]
    cut = lm.generate_until(requests("generate_until", ("ab", {"until": stop, "max_gen_toks": 9})))
    assert cut == [whole.split(stop)[0]]


def test_a_stop_text_ends_the_work_too() -> None:
    policy = tiny.text_policy()
    prompts = [encode_text(policy.encoder, text) for text in ("ab", "what is 3?", "c")]
    free = Sampling(max_completion_length=60)
    whole = complete_encoded(OwnEngine(policy), policy.encoder, prompts, free)
    assert all(one.num_tokens == 60 for one in whole)
    stop = whole[1].text[20]
    cut = complete_encoded(OwnEngine(policy), policy.encoder, prompts, replace(free, stop=(stop,)))
    assert [one.text for one in cut] == [one.text.split(stop)[0] for one in whole]
    for one, other in zip(cut, whole, strict=True):
        assert one.finish_reason == ("stop" if stop in other.text else "length")
        assert one.finish_reason == "stop" or one.num_tokens == 60
    assert cut[1].num_tokens < 60
    with pytest.raises(ValueError, match=r"stop='a' must be a list"):
        Sampling(stop="a")  # type: ignore[arg-type]


def test_mistakes_are_named(tmp_path: Path) -> None:
    folder = text_task(tmp_path, [{"question": "a", "answer": "1"}])
    lm = PolicyLM(policy=tiny.text_policy())
    with pytest.raises(ValueError, match="unknown lm-eval task 'local_list'; near: local_lists"):
        run_tasks(lm, ["local_list"], include_path=folder)
    (tmp_path / "local_lists.jsonl").unlink()
    with pytest.raises(ValueError, match="cannot read the data of local_lists"):
        run_tasks(lm, ["local_lists"], include_path=folder)
    with pytest.raises(ValueError, match="unknown model arguments"):
        PolicyLM(policy=tiny.text_policy(), peft="x")
    with pytest.raises(NotImplementedError, match="generate_until"):
        lm.loglikelihood(requests("loglikelihood", ("a", "b", {"visual": [tiny.image(8, 8)]})))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.instance", None)
    monkeypatch.delitem(sys.modules, "dopd_vlm.eval.bridges.lm_eval")
    with pytest.raises(ImportError, match=r"pip install 'dopd-vlm\[lm-eval\]'"):
        importlib.import_module("dopd_vlm.eval.bridges.lm_eval")


SHARED = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tiny
from dopd_vlm.eval.bridges.lm_eval import PolicyLM
from dopd_vlm.eval.bridges.lm_eval_run import run_tasks
from dopd_vlm.distributed import end_processes
lm = PolicyLM(policy=tiny.text_policy())
assert lm.world_size == 2
found = run_tasks(lm, ["local_lists"], include_path=Path(sys.argv[2]))
assert (found is not None) == (lm.rank == 0)
if found:
    assert sorted(s["doc_id"] for s in found["samples"]["local_lists"]) == [0, 1, 2]
    print("shared", found["results"]["local_lists"]["exact_match,last"])
end_processes()
"""


@pytest.mark.slow
def test_two_processes_share_the_documents(tmp_path: Path) -> None:
    rows = [{"question": f"what is {i}?", "answer": str(i)} for i in range(3)]
    folder = text_task(tmp_path, rows)
    (tmp_path / "shared.py").write_text(SHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    done = subprocess.run(
        [*command, "2", str(tmp_path / "shared.py"), str(Path(__file__).parent), str(folder)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "shared " in done.stdout, done.stderr[-3000:]
