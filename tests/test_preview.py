"""The preview page and the validator: what they show, escape and count."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import open_page
from PIL import Image
from tiny import processor

from dopd_vlm.data.preview import Prompts, ShownToken, preview_page, readable_prompts
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.validate import data_card, validate
from dopd_vlm.data.views import make_samples

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "data" / "assets" / "photos"
DEMO = ROOT / "scripts" / "recipes" / "demo.yaml"
TOLD = ("gap, nats", "q_T", "q_S", "regime")
EVIL = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def preview():
    """`main` of scripts/preview.py, in this process."""
    from dopd_vlm.scripts import preview

    return preview.main


class Outline(HTMLParser):
    """Counts tags and collects what the page would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.loads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.loads += [value for key, value in attrs if key in ("src", "href") and value]


def page_of(rows, annotations) -> tuple[str, Outline]:
    samples, skipped = make_samples(read_rows(rows), annotations)
    page = preview_page("t", samples, [readable_prompts(sample) for sample in samples], skipped)
    return page, Outline(page)


def test_the_page_shows_both_views_and_needs_nothing_else() -> None:
    _, outline = page_of(PHOTOS, [("boxes", "both"), "hints"])
    assert outline.tags["article"] == 8
    assert outline.tags["img"] == 18  # nine images in each of two views
    assert len(set(outline.loads)) > 9
    assert all(load.startswith(("data:image/", "#row-")) for load in outline.loads)
    assert outline.tags["mark"] == 9  # eight rows and the legend
    assert "script" not in outline.tags


def test_rows_cannot_write_html_into_the_page() -> None:
    row = {
        "uid": EVIL, "question": EVIL, "answer": EVIL, "annotations": {"captions": [EVIL]},
    }  # fmt: skip
    page, outline = page_of([row, {"uid": EVIL + "2", "question": ""}], ["captions"])
    assert "script" not in outline.tags
    assert page.count("&lt;script&gt;") >= 5
    assert "1 row left out" in page
    (sample,), _ = make_samples([row], [])
    tokens = (ShownToken(text=EVIL, is_trained=True),)
    prompts = Prompts(plain=EVIL, privileged=EVIL, special=(EVIL,), sequence=tokens)
    assert "script" not in Outline(preview_page(EVIL, [sample], [prompts])).tags


def test_the_privileged_text_is_marked_on_one_side_only() -> None:
    row = {"uid": "a", "question": "which ?", "annotations": {"captions": ["a red cup"]}}
    page, _ = page_of([row], ["captions"])
    assert re.findall(r"<mark>(.*?)</mark>", page, re.DOTALL)[1:] == ["captions:\na red cup"]
    assert page.count("a red cup") == 1


def test_the_preview_script_writes_the_page(tmp_path, preview, capsys) -> None:
    command = [
        str(PHOTOS), "--rows", "2", "--annotations", "boxes:drawn", "hints",
        "--out", str(tmp_path / "p" / "page.html"),
    ]  # fmt: skip
    assert preview(command) == 0
    assert "2 rows, 0 left out" in capsys.readouterr().out
    page = (tmp_path / "p" / "page.html").read_text(encoding="utf-8")
    assert Outline(page).tags["article"] == 2
    assert preview([*command, "--annotations", "boks"]) == 2
    assert "near: boxes" in capsys.readouterr().err
    assert preview([*command, "--checkpoint", "embedded:student_vl"]) == 2
    assert "--checkpoint needs a recipe" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        preview(["--import", "coco", "x.json"])


def test_a_data_set_is_shown_with_all_its_types(tmp_path, preview) -> None:
    out = tmp_path / "page.html"
    assert preview(["embedded:scenes/test", "--rows", "5", "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    for name in [
        "boxes",
        "captions",
        "crops",
        "hints",
        "marks",
        "masks",
        "ocr",
        "points",
        "scene_graph",
        "solution",
    ]:
        assert f"{name}:\n" in page, name
    assert Outline(page).tags["img"] == 10


def test_a_folder_as_out_gets_the_page_inside(tmp_path, preview) -> None:
    assert preview([str(PHOTOS), "--rows", "1", "--out", str(tmp_path)]) == 0
    assert "<html" in (tmp_path / "preview.html").read_text(encoding="utf-8")


def test_the_preview_script_imports_what_it_shows(tmp_path, preview, capsys) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    (tmp_path / "coco.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "categories": [{"id": 3, "name": "cup"}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [4, 6, 20, 10]}],
    }))  # fmt: skip
    command = ["--import", "coco", str(tmp_path / "coco.json"), "--out", str(tmp_path / "rows")]
    assert preview(command) == 0
    page = (tmp_path / "rows" / "preview.html").read_text(encoding="utf-8")
    assert Outline(page).tags["article"] == 1 and "bbox_2d" in page and "cup" in page
    assert len(read_rows(tmp_path / "rows")) == 1
    assert preview(command) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_preview_script_shows_a_model_s_own_tokens(tmp_path, preview) -> None:
    processor().save_pretrained(tmp_path / "model")
    rows = [{"uid": "a", "images": ["a.png"], "question": "which ?", "answer": "blue",
             "annotations": {"captions": ["red"]}}]  # fmt: skip
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [
        str(tmp_path), "--annotations", "captions", "--model", str(tmp_path / "model"),
        "--out", str(tmp_path / "p.html"),
    ]  # fmt: skip
    assert preview(command) == 0
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.count("&lt;|image_pad|&gt;</b> x 12 ") == 2  # 64 x 48 pixels in patches of 16
    assert page.count('<b class="token">&lt;|im_start|&gt;</b>assistant') == 2
    counts = [int(count) for count in re.findall(r"(?:plain|privileged), (\d+) tokens", page)]
    assert counts[1] - counts[0] == len("\n\nReference:\n" + "captions:\nred")
    trained = re.findall(r'<span class="on">(.*?)</span>', page)
    assert trained == [*"blue", "&lt;|im_end|&gt;"]
    assert f"completion mask: 5 of {counts[0] + 5} tokens are trained on" in page


@pytest.fixture(scope="module")
def rolled_out(tmp_path_factory, preview) -> Path:
    """The demo's first rows with rollouts of the shipped student."""
    out = tmp_path_factory.mktemp("preview") / "page.html"
    command = [str(DEMO), "--rows", "4", "--checkpoint", "embedded:student_vl", "--out", str(out)]
    assert preview(command) == 0
    return out


def test_a_rollout_is_trained_on_from_its_first_token_to_its_end(rolled_out) -> None:
    page = rolled_out.read_text(encoding="utf-8")
    cards = page.split("<article")[1:]
    assert len(cards) == 4
    for card in cards:
        trained = re.findall(r'<span class="on">(.*?)</span>', card)
        data = json.loads(re.search(r'application/json">(.*?)</script>', card)[1])  # type: ignore[index]
        (shown,) = data["probes"][0]["maps"]
        assert len(trained) == len(shown["tokens"]) > 5
        assert trained[-1] == "&lt;|im_end|&gt;"
        assert card.count("captions : ") == 1 and "<mark>captions" in card


@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser_a_token_tells_gap_and_the_five_best(rolled_out, width) -> None:
    with open_page(rolled_out, width=width) as opened:
        page = opened.page
        card = page.locator("article").nth(1)
        mask = card.locator(".mask")
        assert not mask.is_visible()
        card.locator("summary").click()
        assert mask.is_visible() and mask.locator(".on").count() > 5
        token, tip = card.locator(".tm-token").nth(2), card.locator(".tm-tip")
        token.scroll_into_view_if_needed()
        token.hover()
        tip.wait_for()
        told = {name: tip.locator(f"[data-name='{name}']").inner_text() for name in TOLD}
        gap = float(told["gap, nats"])
        assert gap >= 0 and all(0 <= float(told[name]) <= 1 for name in ("q_T", "q_S"))
        assert told["regime"] in ("LH", "LL", "HT", "HS")
        assert [tip.locator("table").nth(i).locator("tr").count() for i in range(3)] == [5, 5, 5]
        assert not card.locator(".tm-views").is_visible(), "images and prompts stand above"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("nav a").nth(3).click()
        assert page.locator("#row-4").is_visible()
        assert (opened.problems, opened.requests) == ([], [])


def test_the_validator_counts_and_names_what_is_wrong() -> None:
    image = Image.new("RGB", (40, 30))
    rows = read_rows(
        [
            {"uid": "good", "images": [image], "question": "q", "answer": "red",
             "annotations": {"captions": ["it is red"], "boxs": [1], "hints": None}},
            {"uid": "text", "question": "q", "choices": ["x", "y"]},
            {"uid": "outside", "images": [image], "question": "q",
             "annotations": {"boxes": [{"bbox": [30, 1, 20, 5]}]}},
            {"uid": "told", "question": "q", "answer": "4", "annotations": {"hints": ["so 4"]}},
            {"uid": "odd", "question": "q", "annotations": [3]},
        ]
    )  # fmt: skip
    report = validate(rows)
    assert [problem.uid for problem in report.problems] == ["outside", "told", "odd"]
    assert (report.num_rows, report.num_images, report.unlabelled) == (5, 1, 1)
    assert report.answer_types == {"text": 1, "choice": 1}
    assert report.coverage == {"captions": 1}
    assert report.unknown == {"boxs": 1}
    assert report.disclosing == ["good"]
    card = data_card(report, "mine")
    assert "5, of which 2 are good and 3 are not" in card
    assert "unknown annotation 'boxs' in 1 rows, did you mean boxes?" in card
    assert "row 'outside'" in card and "leaves image 0" in card


def test_the_validate_script_tells_good_from_bad_by_its_exit_code(tmp_path, capsys) -> None:
    from dopd_vlm.scripts import validate

    assert validate.main([str(PHOTOS)]) == 0
    assert "8, of which 8 are good" in capsys.readouterr().out
    (tmp_path / "rows.jsonl").write_text('{"uid": "x", "question": ""}\n')
    problems = tmp_path / "problems.jsonl"
    assert validate.main([str(tmp_path / "rows.jsonl"), "--problems", str(problems)]) == 1
    assert "question is empty" in read_rows(problems)[0]["reason"]
