"""The preview page and the validator: what they show, escape and count."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image
from tiny import processor

from dopd_vlm.data.preview import preview_page, readable_prompts
from dopd_vlm.data.rows import read_rows
from dopd_vlm.data.validate import data_card, validate
from dopd_vlm.data.views import make_samples

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "data" / "assets" / "photos"
EVIL = '<script>alert("x")</script>'


class Outline(HTMLParser):
    """Counts tags and collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.loads: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.loads += [value for key, value in attrs if key in ("src", "href") and value]


def page_of(rows, annotations):
    samples, skipped = make_samples(read_rows(rows), annotations)
    page = preview_page("t", samples, [readable_prompts(sample) for sample in samples], skipped)
    outline = Outline()
    outline.feed(page)
    return page, outline


def test_the_page_shows_both_views_and_needs_nothing_else() -> None:
    _, outline = page_of(PHOTOS, [("boxes", "both"), "hints"])
    assert outline.tags["article"] == 8
    assert outline.tags["img"] == 18  # nine pictures in each of two views
    assert len(set(outline.loads)) > 9
    assert all(load.startswith("data:image/") for load in outline.loads)
    assert outline.tags["mark"] == 9  # eight rows and the legend
    assert "script" not in outline.tags


def test_rows_cannot_write_html_into_the_page() -> None:
    row = {
        "uid": EVIL, "question": EVIL, "answer": EVIL, "annotations": {"captions": [EVIL]},
    }  # fmt: skip
    page, outline = page_of([row, {"uid": EVIL + "2", "question": ""}], ["captions"])
    assert "script" not in outline.tags
    assert page.count("&lt;script&gt;") >= 5
    assert "1 rows left out" in page


def test_the_privileged_text_is_marked_on_one_side_only() -> None:
    row = {"uid": "a", "question": "which ?", "annotations": {"captions": ["a red cup"]}}
    page, _ = page_of([row], ["captions"])
    assert re.findall(r"<mark>(.*?)</mark>", page, re.DOTALL)[1:] == ["captions:\na red cup"]
    assert page.count("a red cup") == 1


def test_the_preview_script_writes_the_page(tmp_path) -> None:
    command = [
        sys.executable, str(ROOT / "scripts" / "preview.py"), str(PHOTOS), "--rows", "2",
        "--annotations", "boxes:drawn", "hints", "--out", str(tmp_path / "p" / "page.html"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    outline = Outline()
    outline.feed((tmp_path / "p" / "page.html").read_text(encoding="utf-8"))
    assert outline.tags["article"] == 2
    bad = subprocess.run([*command, "--annotations", "boks"], capture_output=True, text=True)
    assert bad.returncode == 2 and "near: boxes" in bad.stderr


def test_the_preview_script_shows_a_model_s_own_tokens(tmp_path) -> None:
    processor().save_pretrained(tmp_path / "model")
    rows = [{"uid": "a", "images": ["a.png"], "question": "which ?",
             "annotations": {"captions": ["red"]}}]  # fmt: skip
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [
        sys.executable, str(ROOT / "scripts" / "preview.py"), str(tmp_path), "--annotations",
        "captions", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "p.html"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.count("&lt;|image_pad|&gt;</b> x 12 ") == 2  # 64 x 48 pixels in patches of 16
    assert page.count('<b class="token">&lt;|im_start|&gt;</b>assistant') == 2
    counts = [int(count) for count in re.findall(r", (\d+) tokens", page)]
    assert counts[1] - counts[0] == len("\n\nReference:\n" + "captions:\nred")


def test_the_validator_counts_and_names_what_is_wrong() -> None:
    picture = Image.new("RGB", (40, 30))
    rows = read_rows(
        [
            {"uid": "good", "images": [picture], "question": "q", "answer": "red",
             "annotations": {"captions": ["it is red"], "boxs": [1], "hints": None}},
            {"uid": "text", "question": "q", "choices": ["x", "y"]},
            {"uid": "outside", "images": [picture], "question": "q",
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


def test_the_validate_script_tells_good_from_bad_by_its_exit_code(tmp_path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "validate.py")]
    good = subprocess.run([*command, str(PHOTOS)], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    assert "8, of which 8 are good" in good.stdout
    (tmp_path / "rows.jsonl").write_text('{"uid": "x", "question": ""}\n')
    problems = tmp_path / "problems.jsonl"
    bad = subprocess.run(
        [*command, str(tmp_path / "rows.jsonl"), "--problems", str(problems)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert bad.returncode == 1
    assert "question is empty" in read_rows(problems)[0]["reason"]
