"""`make demo` in a shortened form: the recipes, the embedded models, the table and the checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest

from dopd_vlm.config import ModelConfig
from dopd_vlm.data.embedded.sets import MODELS, embedded_model
from dopd_vlm.models.policy import load_policy
from dopd_vlm.scripts import evaluate

ROOT = Path(__file__).parent.parent
SHORT = [
    "optim.max_steps=2", "optim.batch_size=4", "data.limit=64", "evaluation.limit=8", "checkpoint_every=1",
]  # fmt: skip


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("recipe", ["demo"])
def test_the_demo_prints_its_table_and_leaves_a_checkpoint(recipe, tmp_path, capsys):
    few = tmp_path / "few.yaml"  # the first and the last evaluation take all questions of a task
    few.write_text(
        "description: some shapes\nrows: embedded:shapes/test?num=8\nanswer_type: number\n"
        "generation: {max_completion_length: 64}\n"
    )
    done = run(
        "scripts/train.py", f"scripts/recipes/{recipe}.yaml", f"output_dir={tmp_path}",
        f"evaluation.tasks=[{few}]", *SHORT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("student before", "teacher", "plain", "privileged", "run folder", "step 2/2"):
        assert text in done.stdout
    status = evaluate.main([
        str(tmp_path / recipe / "checkpoint"), "--tasks", str(few),
        "--annotations", "captions", "--view", "plain,privileged",
    ])  # fmt: skip
    assert status == 0 and "few" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in MODELS if embedded_model(name).is_dir()])
def test_embedded_models_are_small_and_their_tokenizers_agree(name):
    folder = embedded_model(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
    policy = load_policy(ModelConfig(path=str(folder)), device="cpu", trainable=False)
    other = name.replace("teacher", "student")
    student = load_policy(
        ModelConfig(path=str(embedded_model(other))), device="cpu", trainable=False
    )
    assert policy.tokenizer.get_vocab() == student.tokenizer.get_vocab()
