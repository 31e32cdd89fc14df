"""The pages of data/: their code runs as it stands, their commands too, and what they show comes out."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import blocks_of, run_page

from dopd_vlm.config import read_config
from dopd_vlm.data.annotations import registry as annotations
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.views import make_samples

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data"
PAGES = ("README.md", "BRING_YOUR_DATA.md", "ADD_ANNOTATION_TYPE.md")
PHOTOS = DATA / "assets" / "photos"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in; types that a page adds are gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(annotations, "TYPES", dict(annotations.TYPES))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    annotations._plugins.cache_clear()
    yield tmp_path
    annotations._plugins.cache_clear()
    sys.modules.pop("gaze", None)


def test_the_overview_runs_and_prints_what_it_shows(folder, capsys) -> None:
    run_page(DATA / "README.md", folder, capsys)


def test_bringing_data_leaves_rows_a_card_and_pages(folder, capsys) -> None:
    run_page(DATA / "BRING_YOUR_DATA.md", folder, capsys)
    (imported,) = read_rows("from_coco")
    assert imported["annotations"]["boxes"][0]["bbox"] == [40, 60, 80, 50]
    assert "1, of which 1 are good" in (folder / "my_rows" / "README.md").read_text()
    assert "Find the cup." in (folder / "my_rows.html").read_text(encoding="utf-8")


def test_a_new_type_is_one_file_and_one_line_and_is_seen(folder, capsys) -> None:
    run_page(DATA / "ADD_ANNOTATION_TYPE.md", folder, capsys)
    assert "gaze" not in annotations.TYPES, "the entry point alone made it known"
    page = (folder / "looks.html").read_text(encoding="utf-8")
    assert "<mark>gaze:" in page and "seconds" in page
    images = re.findall(r'src="(data:image[^"]+)"', page)
    assert len(images) == 2 and images[0] != images[1]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES[1:])
def test_the_page_s_commands_run_in_a_shell(page, tmp_path) -> None:
    """As a reader would: the python blocks and the shell blocks as processes of their own."""
    site = tmp_path / "site"
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(site), "PATH": paths}
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    python_so_far = ""
    for kind, code, _ in blocks_of(DATA / page):
        if kind == "toml":
            (tmp_path / "pyproject.toml").write_text(code)
            continue
        named = re.match(r"# (\w+\.py)\n", code)
        if named:
            (tmp_path / named[1]).write_text(code.split("\n", 1)[1])
            continue
        if kind == "python":
            # Blocks use what earlier ones made, but folders are made once.
            python_so_far += code.replace(".mkdir()", ".mkdir(exist_ok=True)")
            command = [sys.executable, "-c", python_so_far]
        else:
            script = code.replace("pip install", f"{sys.executable} -m pip install --target {site}")
            command = ["bash", "-ec", script]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, code + done.stdout + done.stderr


def test_the_page_names_every_type_and_its_forms() -> None:
    page = (DATA / "README.md").read_text(encoding="utf-8")
    table = page[page.index("## The types") : page.index("## The paper's forms")]
    forms = {}
    for line in re.findall(r"(?m)^\| `.*$", table):
        named, *_, last = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`(\w+)`", named):
            forms[name] = last
    assert set(forms) == set(annotations.TYPES)
    for name, last in forms.items():
        assert (last == "text, drawn") == ("drawn" in annotations.forms(name)), name


def paper_lines() -> list[tuple[str, str]]:
    """(form, recipe line) of the table of the paper's Tables 4 and 5."""
    page = (DATA / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"(?m)^\| (Table [45]), \w+ \| ([^|]+) \| `([^`]+)` \|$", page)
    assert len(found) == 10
    return [(f"{table} {form.strip('* ')}", line) for table, form, line in found]


@pytest.mark.filterwarnings("ignore:annotation type 'answer'")
@pytest.mark.parametrize(("form", "line"), paper_lines())
def test_each_of_the_paper_s_forms_is_a_recipe_line(form, line) -> None:
    chosen = yaml.safe_load(line)["annotations"]
    recipe = ROOT / "scripts" / "recipes" / "demo.yaml"
    overrides = [f"data.train={PHOTOS}", f"data.annotations={line.removeprefix('annotations: ')}"]
    config = read_config(recipe, overrides)
    assert config.data.annotations == chosen
    rows = read_rows(config.data.train)
    samples, skipped = make_samples(rows, config.data.annotations)
    assert len(samples) == 8 and not skipped
    for sample, row in zip(samples, rows, strict=True):
        held = {"answer": row["answer"], **row["annotations"]}
        sections = re.findall(r"(?m)^(\w+):$", sample.privileged.context)
        assert sections == chosen
        for name in set(chosen) - {"boxes"}:
            values = held[name] if isinstance(held[name], list) else [held[name]]
            assert all(str(value) in sample.privileged.context for value in values)
        if "boxes" in chosen:
            assert all(box["label"] in sample.privileged.context for box in held["boxes"])
        assert sample.plain.images[0].tobytes() == sample.privileged.images[0].tobytes()


def test_pages_do_not_name_files_that_are_absent() -> None:
    for page in PAGES:
        text = (DATA / page).read_text(encoding="utf-8")
        for script in re.findall(r"scripts/[\w/]+\.(?:py|yaml)", text):
            assert (ROOT / script).is_file(), f"{page}: {script}"
        for target in re.findall(r"\]\((\w+\.md)\)", text):
            assert (DATA / target).is_file()
