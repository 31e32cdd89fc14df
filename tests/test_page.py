"""The pages of an evaluation and of a comparison, in a browser: numbers, plots, samples, escapes."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
from browser import open_page

from dopd_vlm.eval.results import page as page_module
from dopd_vlm.eval.results.examples import KINDS, changed_samples, choose_examples, verdict_of
from dopd_vlm.eval.results.figures import category_figures, difference_figure, score_figure
from dopd_vlm.eval.results.page import (
    choose_samples,
    comparison_page,
    samples_data,
    write_comparison,
    write_report,
)
from dopd_vlm.eval.results.results import Results
from dopd_vlm.eval.results.tables import cells

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
        "arguments": {"gen_args_0": {"arg_0": f"prompt of {uid} {NASTY}"}}, "num_tokens": 3, "target": "2",
        "doc": {"question": "?"}, **fields,
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
    found = choose_examples("t", more, samples(), None, 4).examples
    assert [one.verdict for one in found] == ["cut", "unread", "wrong", "partly right"]
    assert found[1].images == samples()[2].plain.images and found[1].gold == "2"
    right = choose_samples("t", [records()[0]], samples())
    assert [one.verdict for one in right.examples] == ["right"]
    counts = {"cut": 1, "unread": 1, "wrong": 1, "right": 1}
    assert choose_samples("t", records(), samples()).counts == counts
    failed = record("a", finish_reason="error", filter="failed: status 500", filtered_resps=[None])
    assert verdict_of(failed) == "failed" and verdict_of(record("a", text=" ")) == "empty"
    assert verdict_of(record("a", filter="error: ValueError: no gold")) == "scorer error"
    assert set(KINDS) >= {one.verdict for one in found}


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_in_a_browser(tmp_path: Path, width: int) -> None:
    found = [results(), results("privileged", ("a", "b", "c"))]
    path = write_report(
        tmp_path, found, {("task_one", "plain"): choose_samples("task_one", records(), samples())}
    )
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
        assert page.locator(".example").count() == 4
        assert page.locator(".example img").count() == 4
        text = page.inner_text("body")
        assert "gap" in text and "+25.0 \u00b1" in text and "worst_case" in text
        numbers = page.inner_text("table:below(h3:text('Published numbers')) >> nth=0")
        wanted = "task this model Published task_one 50.0 61.5"
        assert " ".join(numbers.split()) == wanted
        assert NASTY in page.inner_text(".example:has(.kind:text-is('wrong')) pre >> nth=1")
        sizes = page.evaluate("[...document.querySelectorAll('img')].map(i => i.naturalWidth)")
        assert sizes == [48] * 4
        assert opened.problems == [] and opened.requests == []


def test_a_report_of_right_answers_in_one_view(tmp_path: Path) -> None:
    found = dataclasses.replace(results(right=tuple("abcd")), categories={}, settings={})
    path = write_report(tmp_path, [found], {})
    with open_page(path) as opened:
        text = opened.page.inner_text("body")
        assert "No samples file was written" in text and "Privilege gap" not in text
        assert page_has_no_empty_panel(opened.page)
        assert "By category" not in text and opened.problems == []


def page_has_no_empty_panel(page) -> bool:
    return page.locator(".empty").count() == 0


def test_samples_are_filtered_and_searched(tmp_path: Path) -> None:
    tagged = [
        dataclasses.replace(s, source={"kind": "odd" if i % 2 else "even"})
        for i, s in enumerate(samples())
    ]
    part = choose_samples("task_one", records(), tagged, "kind")
    path = write_report(tmp_path, [results()], {("task_one", "plain"): part})
    with open_page(path) as opened:
        page = opened.page

        def uids() -> set[str]:
            return set(page.locator(".example .uid").all_inner_texts())

        assert uids() == set("abcd")
        page.select_option(".filter-verdict", "right")
        assert uids() == {"a"}
        page.select_option(".filter-verdict", "")
        page.select_option(".filter-category", "odd")
        assert uids() == {"b", "d"} and "2 of 2 samples, 4 on" in page.inner_text(".count")
        page.fill("input[type=search]", "AND ON")
        assert uids() == {"d"}
        page.fill("input[type=search]", "")
        page.select_option(".filter-category", "")
        page.select_option(".filter-rule", "unparsed")
        assert uids() == {"c"}
        assert opened.problems == []


def test_many_samples_come_twenty_at_a_time_and_images_end_with_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [tiny.vl_sample(f"row{i}", seed=i) for i in range(45)]
    lines = [{**record("a"), "uid": s.uid, "doc_id": i} for i, s in enumerate(many)]
    part = choose_samples("task_one", lines, many)
    whole = samples_data(part.examples)
    assert len(whole["images"]) == 45
    monkeypatch.setattr(page_module, "IMAGE_CHARACTERS", len(whole["images"][0]))
    assert samples_data(part.examples)["samples"][1]["images"] == [None]
    path = write_report(tmp_path, [results()], {("task_one", "plain"): part})
    with open_page(path) as opened:
        page = opened.page
        assert page.locator(".example").count() == 20 and page.locator(".left-out").count() == 19
        page.click("text=more >> nth=-1")
        page.click("text=more >> nth=-1")
        assert page.locator(".example").count() == 45 and not page.is_visible(".more")


def test_the_comparison_in_a_browser(tmp_path: Path) -> None:
    one, other = [results(right=("a", "b", "c"))], [results(right=("a",))]
    ours = [record(uid, accuracy=float(uid in "abc"), text=f"first {NASTY}") for uid in "abcd"]
    theirs = [record(uid, accuracy=float(uid == "a"), text=f"second {uid}") for uid in "abcd"]
    changed = changed_samples(one[0], (ours, theirs), samples(), 10)
    assert [(c.uid, c.verdict) for c in changed] == [("b", "A is better"), ("c", "A is better")]
    path = write_comparison(tmp_path, one, other, ("first/", "second/"), changed)
    with open_page(path, width=400) as opened:
        page = opened.page
        page.wait_for_selector(".plot .main-svg")
        (trace,) = page.evaluate("document.querySelector('.plot').data")
        assert trace["x"] == [0.5] and trace["error_x"]["array"][0] > 0
        card = page.locator(".example >> nth=1")
        assert card.locator("pre").all_inner_texts()[1:] == [f"first {NASTY}", "second c"]
        assert card.locator("code[class^=verdict]").all_inner_texts() == ["right", "wrong"]
        assert card.locator("img").count() == 1
        numbers = page.inner_text("#questions-that-changed table")
        assert numbers.split()[-5:] == ["task_one", "plain", "2", "0", "2"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert opened.problems == [] and opened.requests == []
    with pytest.raises(ValueError, match="nothing to compare"):
        comparison_page(one, [results(name="other")], ("a", "b"))


def test_changes_without_the_rows_have_no_images() -> None:
    one = results(right=("a",))
    (example,) = changed_samples(one, ([record("a", accuracy=1.0)], [record("a")]), [], 10)
    assert example.images == () and example.prompt.startswith("prompt of a")


def test_several_tasks_have_an_average_row_and_markers_that_differ() -> None:
    published = {f"model {i}": 50.0 + i for i in range(20)}
    two = [
        dataclasses.replace(results(right=right, name=name), settings={"paper": published})
        for name, right in (("one", ("a",)), ("two", ("a", "b", "c")))
    ]
    columns, lines = cells(two)
    average = dict(zip(columns, lines[-1], strict=True))
    assert (
        average["task"] == "average of 2"
        and average["plain"].startswith("50.0 ")
        and average["n"] == "8"
    )
    assert len(cells(two[:1])[1]) == 1
    markers = [t["marker"] for t in score_figure(two).data if t["type"] == "scatter"]
    assert len({(m["symbol"], m["color"]) for m in markers}) == 20
    places = [x for t in score_figure(two).data if t["type"] == "scatter" for x in t["x"]]
    assert len(set(places)) == 40 and max(places) < 1.5 and min(places) > -0.5
    (figure,) = category_figures([dataclasses.replace(two[0], category_n={"colour": 3, "size": 1})])
    assert figure.data[0]["y"] == ["colour (n = 3)", "size (n = 1)"]


def test_ticks_half_a_percent_apart_differ(tmp_path: Path) -> None:
    many = {f"q{i}": 0.0 for i in range(400)}
    one = [dataclasses.replace(results(), per_question={**many, "q0": 1.0}, n=400)]
    other = [dataclasses.replace(results(), per_question=many, n=400)]
    path = write_comparison(tmp_path, one, other, ("a", "b"))
    with open_page(path) as opened:
        opened.page.wait_for_selector(".xtick")
        ticks = opened.page.locator(".xtick").all_text_contents()
        assert len(ticks) > 2 and len(set(ticks)) == len(ticks)


def test_figures_are_valid_plotly() -> None:
    plotly = pytest.importorskip("plotly.graph_objects", reason="needs the extra viz")
    figure = difference_figure([(results(), results(right=("a",)))])
    made = plotly.Figure(json.loads(json.dumps({"data": figure.data, "layout": figure.layout})))
    assert list(made.data[0].x) == [0.25]
