"""The pages of an evaluation and of a comparison, in a browser: numbers, plots, samples, escapes."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
from browser import open_page

from dopd_vlm.eval.results.examples import KINDS, kind_of, worst
from dopd_vlm.eval.results.figures import difference_figure
from dopd_vlm.eval.results.page import Shown, comparison_page, shown, write_comparison, write_report
from dopd_vlm.eval.results.results import Results

NASTY = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)> & \u4e2d"


def results(view="plain", right=("a", "b"), name="task_one") -> Results:
    per_question = {uid: float(uid in right) for uid in "abcd"}
    accuracy = len(right) / 4
    return Results(
        name=name, view=view, model="/models/small", accuracy=accuracy, stderr=0.25, n=4,
        num_generations=1, unparsed_rate=0.25, truncated_rate=0.25, error_rate=0.0, empty_rate=0.0,
        per_question=per_question, categories={"colour": 1.0, "size": 0.0},
        category_stderr={"colour": 0.0, "size": None}, second={"worst_case": 0.5},
        settings={"paper": {"Published": 61.5}, "seed": 0},
    )  # fmt: skip


def record(uid: str, *, text: str = "answer 1", accuracy: float = 0.0, **fields) -> dict:
    return {
        "uid": uid, "doc_id": "abcd".index(uid), "sample_idx": 0, "view": "plain", "accuracy": accuracy,
        "finish_reason": "stop", "filter": "declared", "filtered_resps": ["1"], "resps": [[text]],
        "arguments": {"gen_args_0": {"arg_0": f"prompt of {uid} {NASTY}"}}, "num_tokens": 3, **fields,
    }  # fmt: skip


def records() -> list[dict]:
    return [
        record("a", accuracy=1.0),
        record("b", text=NASTY),
        record("c", filtered_resps=[None], filter="unparsed", text="?"),
        record("d", finish_reason="length", filtered_resps=[None], text="and on"),
    ]


def samples() -> list:
    return [tiny.vl_sample(uid, seed=i) for i, uid in enumerate("abcd")]


def test_the_kinds_of_what_is_wrong_come_in_turn() -> None:
    more = [record("a"), record("b", accuracy=0.5), *records()[1:]]
    found = worst(more, samples(), 4)
    assert [one.kind for one in found] == ["cut", "unread", "wrong", "partly right"]
    assert found[1].images == samples()[2].plain.images and found[1].gold == "2"
    assert worst([records()[0]], samples(), 4) == []
    assert shown(records(), samples()).counts == {"cut": 1, "unread": 1, "wrong": 1}
    failed = record("a", finish_reason="error", filter="failed: status 500", filtered_resps=[None])
    assert kind_of(failed) == "failed" and kind_of(record("a", text=" ")) == "empty"
    assert kind_of(record("a", filter="error: ValueError: no gold")) == "scorer error"
    assert set(KINDS) >= {one.kind for one in found}


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_in_a_browser(tmp_path: Path, width: int) -> None:
    found = [results(), results("privileged", ("a", "b", "c"))]
    path = write_report(tmp_path, found, {("task_one", "plain"): shown(records(), samples())})
    with open_page(path, width=width) as opened:
        page = opened.page
        page.wait_for_selector(".plot .main-svg")
        assert page.title() == "small"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        drawn = page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.data)")
        bars = {trace["name"]: trace for plot in drawn for trace in plot}
        assert bars["plain"]["type"] == "bar" and bars["Published"]["y"] == [0.615]
        scores = {trace["name"]: trace for trace in drawn[0]}
        assert scores["privileged"]["y"] == [0.75]
        assert scores["plain"]["error_y"]["array"] == [0.25]
        assert drawn[1][0]["y"] == [0.25]
        assert page.locator(".example").count() == 3
        assert page.locator(".example img").count() == 3
        text = page.inner_text("body")
        assert "gap" in text and "+25.0" in text and "worst_case" in text
        numbers = page.inner_text("table:below(h3:text('Published numbers')) >> nth=0")
        wanted = "task this model Published task_one 50.0 61.5"
        assert " ".join(numbers.split()) == wanted
        assert NASTY in page.inner_text(".example:has-text('wrong') pre >> nth=1")
        sizes = page.evaluate("[...document.querySelectorAll('img')].map(i => i.naturalWidth)")
        assert sizes == [48, 48, 48]
        assert opened.problems == [] and opened.requests == []


def test_a_report_of_right_answers_in_one_view(tmp_path: Path) -> None:
    found = dataclasses.replace(results(right=tuple("abcd")), categories={}, settings={})
    path = write_report(tmp_path, [found], {("task_one", "plain"): Shown(examples=[], counts={})})
    with open_page(path) as opened:
        text = opened.page.inner_text("body")
        assert "all are right" in text and "no task was run in both views" in text
        assert "By category" not in text and opened.problems == []


def test_the_comparison_in_a_browser(tmp_path: Path) -> None:
    one, other = [results(right=("a", "b", "c"))], [results(right=("a",))]
    path = write_comparison(tmp_path, one, other, ("first/", "second/"))
    with open_page(path, width=400) as opened:
        page = opened.page
        page.wait_for_selector(".plot .main-svg")
        (trace,) = page.evaluate("document.querySelector('.plot').data")
        assert trace["x"] == [0.5] and trace["error_x"]["array"][0] > 0
        page.click("summary")
        assert "A is better on (2)" in page.inner_text("body")
        assert "b, c" in page.inner_text("details")
        assert opened.problems == [] and opened.requests == []
    with pytest.raises(ValueError, match="nothing to compare"):
        comparison_page(one, [results(name="other")], ("a", "b"))


def test_figures_are_valid_plotly() -> None:
    plotly = pytest.importorskip("plotly.graph_objects", reason="needs the extra viz")
    figure = difference_figure([(results(), results(right=("a",)))])
    made = plotly.Figure(json.loads(json.dumps({"data": figure.data, "layout": figure.layout})))
    assert list(made.data[0].x) == [0.25]
