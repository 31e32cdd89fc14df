"""A checkpoint that was cut, changed or comes from another recipe is named before a model is loaded."""

from dataclasses import replace

import pytest
import tiny
from test_train import SAMPLES, make_config

from dopd_vlm.config import LoraConfig, ModelConfig
from dopd_vlm.train import train
from dopd_vlm.training.manifest import check_manifest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config that resumes, its one checkpoint) of a run of a step."""
    folder = tmp_path_factory.mktemp("run")
    tiny.save_pair(folder)
    config = make_config(folder, folder, steps=1, every=1)
    result = train(config, SAMPLES[:3])
    return replace(config, resume=True), (result.run_dir / "checkpoint").resolve()


@pytest.mark.parametrize("name", ["model.safetensors", "trainer/state.pt", "tokenizer.json"])
def test_a_file_that_is_cut_changed_or_missing_is_named(run, name):
    config, folder = run
    file = folder / name
    content = file.read_bytes()
    changed = bytes([content[0] ^ 1]) + content[1:]
    try:
        for damaged, reason in (
            (content[:-7], "bytes, "),
            (changed, "other content"),
            (None, "is missing"),
        ):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"{file}.*{reason}.*delete the folder"):
                train(config, SAMPLES[:3])
    finally:
        file.write_bytes(content)
    check_manifest(folder, config)


def test_another_recipe_s_checkpoint_is_refused(run, tmp_path):
    config, _ = run
    other = tiny.vl_policy(0, hidden_size=48)
    other.model.save_pretrained(tmp_path / "other")
    student = ModelConfig(path=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="student hidden_size is 32 there and 48 here"):
        train(replace(config, student=student), SAMPLES[:3])
    with pytest.raises(ValueError, match=r"lora\.rank is 0 there and 4 here"):
        train(replace(config, lora=LoraConfig(rank=4)), SAMPLES[:3])
