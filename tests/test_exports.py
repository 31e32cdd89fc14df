"""Files for other evaluation programs, from fixture rows through the harness."""

import ast
import base64
import importlib.util
import io
import json
from pathlib import Path

import datasets
import pandas
import pytest
import yaml
from PIL import Image
from test_tasks import gold_of, prompt_key, samples_of

from dopd_vlm.eval.benchmarks.benchmark import load_benchmark
from dopd_vlm.eval.bridges.export_questions import Export
from dopd_vlm.eval.bridges.exports import export
from dopd_vlm.eval.completions.generators import Completion
from dopd_vlm.eval.completions.store import SampleStore
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.prompts import build_prompts


def exported(kind: str, name: str, folder: Path, *, is_answered: bool = False) -> list[Path]:
    task = load_benchmark(name)
    samples = samples_of(task, folder)
    records = []
    if is_answered:
        prompts = [prompt_key(build_prompts(sample, task.prompts).plain) for sample in samples]
        texts = dict(zip(prompts, gold_of(name, samples), strict=True))

        def complete(prompts, sampling, numbers):
            return [
                Completion(text=texts[prompt_key(p)], finish_reason="stop", num_tokens=7)
                for p in prompts
            ]

        evaluate("owner/small", task, samples=samples, generate=complete, out=folder)
        records = list(SampleStore(folder, name, "plain", 0).finished().values())
    given = Export(task=task, samples=samples, records=records, out=folder, model="owner/small")
    return export(kind, given)


def test_vlmevalkit_reads_the_tables_back(tmp_path: Path) -> None:
    choice, openended = exported("vlmevalkit", "mmmu", tmp_path)
    assert (choice.name, openended.name) == ("mmmu.tsv", "mmmu_openended.tsv")
    table = pandas.read_csv(choice, sep="\t")
    assert list(table.columns) == ["index", "image", "question", "A", "B", "answer"]
    assert table["answer"].tolist() == ["B"] and table["B"][0] == "second"
    assert table["question"][0].startswith("Compare <image 1> and <image 2>")
    rest = pandas.read_csv(openended, sep="\t")
    assert rest["index"].tolist() == [1, 2] and rest["answer"][0] == "5"
    several = ast.literal_eval(table["image"][0])
    for text in (*several, rest["image"][0]):
        assert Image.open(io.BytesIO(base64.b64decode(text))).size == (40, 30)
    assert len(several) == 2


def test_vlmevalkit_gets_categories_and_questions_without_images(tmp_path: Path) -> None:
    (path,) = exported("vlmevalkit", "mmstar", tmp_path)
    assert pandas.read_csv(path, sep="\t")["category"].notna().all()
    (path,) = exported("vlmevalkit", "gpqa_diamond", tmp_path)
    assert path.name == "gpqa_diamond_text.tsv"
    assert "image" not in pandas.read_csv(path, sep="\t").columns


def test_lmms_eval_task_loads_and_scores(tmp_path: Path) -> None:
    paths = exported("lmms-eval", "mmmu", tmp_path)
    folder = tmp_path / "dopd_mmmu"
    text = (folder / "dopd_mmmu.yaml").read_text()
    assert "process_results: !function utils.process_results" in text
    tree = yaml.safe_load(text.replace("!function ", ""))
    assert tree["generation_kwargs"]["max_new_tokens"] == 128
    docs = datasets.load_dataset(
        tree["dataset_path"], **tree["dataset_kwargs"], cache_dir=str(tmp_path / "cache")
    )[tree["test_split"]]
    spec = importlib.util.spec_from_file_location("exported_utils", folder / "utils.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [len(module.doc_to_visual(doc)) for doc in docs] == [2, 1, 1]
    assert module.doc_to_text(docs[0]).endswith(
        "Answer with the option's letter from the given choices directly."
    )
    assert [module.process_results(doc, ["B"])["accuracy"] for doc in docs] == [1.0, 0.0, 0.0]
    assert module.process_results(docs[1], ["5"]) == {"accuracy": 1.0}
    assert "--model dopd --model_args pretrained=owner/small" in paths[-1].read_text()


def test_bfcl_results_are_grouped_by_category(tmp_path: Path) -> None:
    paths = exported("bfcl", "bfclv3", tmp_path, is_answered=True)
    folder = tmp_path / "result" / "owner_small"
    assert paths == [folder / f"BFCL_v3_{name}_result.json" for name in ("simple", "irrelevance")]
    assert json.loads(paths[0].read_text()) == {
        "id": "simple_0",
        "result": "[rect.area(width=3, height=4.5)]",
        "output_token_count": 7,
    }


def test_livebench_answers_lie_by_task(tmp_path: Path) -> None:
    paths = exported("livebench", "livebench", tmp_path, is_answered=True)
    folder = tmp_path / "data" / "live_bench"
    assert paths[0] == folder / "reasoning/web_of_lies_v2/model_answer/owner_small.jsonl"
    (line,) = paths[1].read_text().splitlines()
    entry = json.loads(line)
    assert (entry["question_id"], entry["model_id"]) == ("q2", "owner/small")
    assert entry["choices"] == [{"index": 0, "turns": ["$\\boxed{2x}$"]}]


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown export 'lmmseval'; near: lmms-eval"):
        exported("lmmseval", "mmmu", tmp_path)
    with pytest.raises(
        ValueError, match=r"2 of 2 questions have no answer.*bfclv3-simple_0.*--out"
    ):
        exported("bfcl", "bfclv3", tmp_path)
    nameless = Export(
        task=load_benchmark("mmmu"),
        samples=samples_of(load_benchmark("mmmu"), tmp_path),
        records=[],
        out=tmp_path,
        model="",
    )
    assert export("vlmevalkit", nameless)
    with pytest.raises(ValueError, match="lmms-eval names the model: give CHECKPOINT or --model"):
        export("lmms-eval", nameless)
    with pytest.raises(ValueError, match=r"answer_type livebench.*not 'mmmu'"):
        exported("livebench", "mmmu", tmp_path)
