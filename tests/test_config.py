"""Recipes: all of them load; overrides; unknown and wrong values name themselves."""

from pathlib import Path

import pytest

from dopd_vlm.config import read_config, to_yaml
from dopd_vlm.methods import configured_method
from dopd_vlm.scripts.main import main
from dopd_vlm.scripts.wiring.command_line import recipe_names

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads_and_its_resolved_copy_reads_back_equal(path, tmp_path):
    config = read_config(path)
    assert config.name == path.stem and path.read_text().startswith("# ")
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config))
    assert read_config(copy) == config


def test_the_paper_settings_are_in_the_recipes():
    vision = read_config(ROOT / "scripts/recipes/qwen3_vl_8b_to_2b.yaml")
    text = read_config(ROOT / "scripts/recipes/qwen3_8b_to_1.7b.yaml")
    assert (vision.optim.max_steps, vision.optim.batch_size) == (300, 64)
    assert (text.optim.max_steps, text.optim.batch_size) == (200, 128)
    for config in (vision, text):
        assert config.optim.learning_rate == 5e-6 and config.rollout.num_generations == 4
        assert config.method.name == "dopd" and config.method.self_target == "live"
        assert configured_method(config).teacher_top_k == 128 and config.method.trim == 0.05
    assert text.chat.template_kwargs == {"enable_thinking": False}


def test_overrides_reach_their_field():
    config = read_config(RECIPES[0], ["optim.learning_rate=1e-3", "--method.name=opd", "seed=7"])
    assert (config.optim.learning_rate, config.method.name, config.seed) == (1e-3, "opd", 7)


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "optim.learning_rat=1",
            r"unknown setting 'optim\.learning_rat'; near: optim\.learning_rate",
        ),
        ("optm.max_steps=1", r"unknown setting 'optm.*near: .*optim"),
        ("optim.learning_rate=fast", r"learning_rate"),
        ("optim.learning_rate=-1", r"learning_rate.*> 0"),
        ("rollout.top_p=2", r"top_p.*\(0, 1\]"),
        ("method.self_target=alive", r"self_target"),
        ("nonsense", r"section\.field=value"),
    ],
)
def test_a_wrong_override_names_field_value_and_what_is_allowed(override, message):
    with pytest.raises(ValueError, match=message):
        read_config(RECIPES[0], [override])


@pytest.mark.parametrize("name", recipe_names())
def test_dry_run_resolves_data_and_prompts_without_a_model(name, capsys):
    assert main(["train", name, "--dry-run", "data.limit=20"]) == 0
    printed = capsys.readouterr().out
    assert "would take" in printed and "Reference:" in printed


@pytest.mark.parametrize(
    ("override", "near"), [("method.name=dpod", "dopd"), ("data.annotations=[boxs]", "boxes")]
)
def test_an_unknown_method_or_annotation_exits_2_naming_near_ones(override, near, capsys):
    assert main(["train", "demo", "--dry-run", override]) == 2
    assert near in capsys.readouterr().out


@pytest.mark.parametrize(
    "setting",
    [
        "checkpoint_every=0", "keep_checkpoints=-1", "seed=-1", "name=../../x", "name=a/b",
        "data.limit=-1", "data.limit=0", "data.validate_rows=-1", "data.workers=-1",
        "chat.max_prompt_length=0", "rollout.batch_size=0", "rollout.top_k=-1",
        "rollout.temperature=.nan", "rollout.temperature=.inf", "evaluation.every=0",
        "evaluation.limit=0", "optim.max_grad_norm=-1", "optim.max_grad_norm=0",
        "optim.learning_rate=.inf", "optim.learning_rate=.nan", "optim.warmup_steps=-1",
        "optim.weight_decay=-0.1", "optim.betas=[0.9, 1.0]", "method.top_k=0",
        "method.chunk_size=0", "method.gap_threshold=.inf", "method.gap_floor=-1", "lora.rank=-1", "lora.alpha=0",
    ],
)  # fmt: skip
def test_a_value_that_no_run_can_have_is_refused_with_its_name(setting):
    name = setting.partition("=")[0]
    with pytest.raises(ValueError, match=rf"{name}=.* is not allowed: "):
        read_config(ROOT / "scripts/recipes/demo.yaml", [setting])


def test_clipping_can_be_off():
    assert read_config(
        ROOT / "scripts/recipes/demo.yaml", ["optim.max_grad_norm=.inf"]
    ).optim.max_grad_norm == float("inf")
