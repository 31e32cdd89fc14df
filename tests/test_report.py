"""report.html, comparisons and figures: opened in a browser, from folders of every kind of run."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from browser import open_page
from plotly import graph_objects
from test_token_maps import as_shown
from test_train import make_config

from dopd_vlm.config import EvaluationConfig, to_yaml
from dopd_vlm.methods import method
from dopd_vlm.report import routing_figures, training_figures
from dopd_vlm.report.comparison import comparison_page, curves, grouped, write_comparison
from dopd_vlm.report.figures import Figure
from dopd_vlm.report.html import render, sentence
from dopd_vlm.report.method_text import method_text, read_method
from dopd_vlm.report.plots import PLOTS, Compared, Plot, lines, run_plots
from dopd_vlm.report.routing_figures import borders
from dopd_vlm.report.run_page import UNKNOWN_WORDS, report_page, row_facts, write_report
from dopd_vlm.report.static_figure import token_cells, write_figure
from dopd_vlm.report.training_figures import collapse_step
from dopd_vlm.run_folder import Series, read_run, recipe_difference, thinned
from dopd_vlm.scripts.wiring.row_check import RowCheck, record
from dopd_vlm.train import train
from dopd_vlm.types import Regime

ROOT = Path(__file__).parents[1]
SAMPLES = [tiny.vl_sample(f"row{i}", seed=i) for i in range(5)]
EVIL = "</script><script>throw new Error('row')</script>"


def evaluate(student, step, is_last, *, teacher, engine=None):
    """Two benchmarks of an invented run: plain rises, privileged falls, one question gives no error bar."""
    metrics = {}
    for task, stderr in (("shapes", 0.03), ("one", float("nan"))):
        for view, start, slope in (("plain", 0.5, 0.05), ("privileged", 0.9, -0.02)):
            metrics[f"eval/{task}/{view}/accuracy"] = start + slope * step
            metrics[f"eval/{task}/{view}/stderr"] = stderr
            if step == 0:
                metrics[f"teacher/{task}/{view}/accuracy"] = 0.97
    return metrics


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny.save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def run_dir(models, tmp_path_factory):
    """A real run of four steps with evaluations at 0, 2 and 4 and a bad row."""

    class Rows(list):
        def __getitem__(self, index):
            if index == 3:
                raise ValueError(f"row 3: {EVIL}")
            return super().__getitem__(index)

    config = make_config(models, tmp_path_factory.mktemp("runs"))
    return train(
        config, Rows(SAMPLES), evaluate=evaluate, score_answer=lambda text, sample: 1.0
    ).run_dir


def plots(page) -> dict[str, dict]:
    """By figure: how many traces there are, and how many of them have numbers."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.plot')].map(p => [p.dataset.figure, {
        traces: p.data.length,
        filled: p.data.filter(t => (t.y || t.z || []).flat().some(v => v !== null)).length,
        drawn: p.querySelectorAll('.trace, .heatmaplayer image, .scatterlayer path').length}]))"""
    )


def test_every_plot_of_a_real_run_has_data_and_the_page_needs_nothing_else(run_dir):
    path = run_dir / "report.html"
    assert path.stat().st_size < 10_000_000
    with open_page(path) as opened:
        page = opened.page
        found = plots(page)
        assert {f"figure-{key}" for key in EXPECTED} <= found.keys()
        for name, plot in found.items():
            assert plot["filled"] == plot["traces"] > 0 and plot["drawn"] > 0, name
        assert (
            page.locator("figcaption").count() == len(found) and page.locator(".empty").count() == 0
        )
        assert page.locator(".tm-step").inner_text() == "step 4 (3 of 3)"
        page.locator(".tm-slider").focus()
        page.keyboard.press("Home")
        assert page.locator(".tm-step").inner_text() == "step 0 (1 of 3)"
        page.locator(".tm-token").first.hover()
        record = json.loads((run_dir / "token_maps.jsonl").read_text().splitlines()[0])
        shown = page.locator(".tm-tip dd[data-name='gap, nats']").inner_text()
        assert float(shown) == as_shown(record["gap"][0])
        text = page.locator("body").inner_text()
        assert "All 4 steps are done." in text and EVIL in text
        assert opened.problems == [] and opened.requests == []


EXPECTED = (
    "accuracy-shapes", "accuracy-one", "training", "loss", "shares", "gap", "alive", "density", "entropy", "time",
    "memory", "optimizer",
)  # fmt: skip


def test_a_phone_sees_no_sideways_scrolling(run_dir):
    with open_page(run_dir / "report.html", width=400, height=800, has_touch=True) as opened:
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400
        assert opened.problems == []


def test_plotly_accepts_every_figure(run_dir):
    run = read_run(run_dir)
    figures = [figure for part in run_plots(run).values() for figure in part]
    assert {figure.key for figure in figures} == set(EXPECTED)
    for figure in figures:
        drawn = graph_objects.Figure(data=figure.data, layout=figure.layout)
        assert len(drawn.data) == len(figure.data) > 0


def test_every_plot_has_a_row_with_a_caption_and_every_row_a_plot(run_dir):
    """A builder without a row would be a plot that no page shows."""
    assert len({plot.key for plot in PLOTS}) == len(PLOTS)
    for text in [p.caption for p in PLOTS] + [c.caption for p in PLOTS for c in p.compared]:
        for name in ("dopd", "opd", "opsd"):
            caption = sentence(text).render(method=method_text(method(name)))
            assert caption.endswith(".") and "bad" in caption.lower(), caption
    built = {f.title for part in run_plots(read_run(run_dir)).values() for f in part}
    for module in (training_figures, routing_figures):
        for name, build in vars(module).items():
            if getattr(build, "__annotations__", {}).get("return") is Figure:
                run, takes = read_run(run_dir), build.__code__.co_argcount
                figure = build(*(run, read_method(run))[:takes])
                assert figure.title in built, f"{module.__name__}.{name} has no row in PLOTS"


def test_a_new_metric_is_one_row(run_dir):
    row = Plot(
        key="new",
        section="Routing",
        caption="{{ method.self_target }} tokens; bad is < 1.",
        build=lines("Tokens", "tokens", {"count/completion_tokens": "tokens"}, tozero=True),
        compared=(Compared(metric="count/*", title="", unit="tokens", caption="bad."),),
    )
    (figure,) = run_plots(read_run(run_dir), (row,))["Routing"]
    assert figure.key == "new" and figure.caption == "live tokens; bad is < 1."
    assert figure.data[0]["x"] == [1, 2, 3, 4]
    empty = replace(row, build=lines("None", "tokens", {"count/absent": "absent"}))
    assert run_plots(read_run(run_dir), (empty,)) == {}


def test_legends_come_from_the_methods_own_table(run_dir):
    dopd, swapped, plain = map(method_text, map(method, ("dopd", "dopd_no_teacher", "opd")))
    assert dopd.legend(Regime.HT) == (
        "high gap, teacher surer: JS divergence to the teacher (privileged view), weight 1"
    )
    assert "to the self-target" in swapped.legend(Regime.HT)
    assert plain.every_token.startswith("reverse KL over the top 128 to the teacher (plain view)")
    assert plain.self_target == "" and dopd.every_token == ""
    run = read_run(run_dir)
    assert (
        read_method(run)
        .legend(Regime.LH)
        .startswith("low gap, both targets sure: reverse KL over the top 16 ")
    )
    unknown = replace(
        run, config={**run.config, "method": {"name": "absent", "self_target": "ema"}}
    )
    text = read_method(unknown)
    assert (
        text.by_gap
        and text.routes == {}
        and text.legend(Regime.HS) == "high gap, self-target surer"
    )
    assert "Routing" in run_plots(unknown)


def test_templates_escape_whatever_they_get():
    page = render("token_page.html", title=EVIL, token_maps=EVIL)
    assert EVIL not in page and page.count("&lt;script&gt;") == 2


def test_the_page_says_what_was_run(run_dir):
    run = read_run(run_dir)
    different = recipe_difference(run.config)
    assert different["optim.batch_size"] == 3 and different["method.top_k"] == 16
    assert "rollout.temperature" not in different and "name" not in different
    page = report_page(run)
    for text in (
        "torch",
        str(run.config["student"]["path"]),
        "config.yaml name=run_again resume=false",
    ):
        assert text in page
    assert "1 row left out:" in page or "rows left out:" in page


def variant(tmp_path, name):
    """A run folder of the named kind, made from metrics alone."""
    folder = tmp_path / name
    folder.mkdir()
    lines = [line_of(step) for step in range(1, 7)]
    files = {"metrics.jsonl": lines}
    if name == "one step":
        files = {"metrics.jsonl": lines[:1]}
    elif name == "empty regimes":
        files = {"metrics.jsonl": [{**line, **empty_regimes()} for line in lines]}
    elif name == "only an evaluation":
        files = {"metrics.jsonl": [{"step": 0, **evaluate(None, 0, False, teacher=None)}]}
    elif name == "nothing yet":
        files = {}
    config = make_config(tmp_path, tmp_path, steps=6)
    if name == "no gap":
        config = replace(config, method=replace(config.method, name="opd"))
    (folder / "config.yaml").write_text(to_yaml(replace(config, name=name)), encoding="utf-8")
    for file, records in files.items():
        (folder / file).write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    if name == "killed":
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 7, "lo')
    return folder


def line_of(step):
    shares = {"share/lh": 0.4, "share/ll": 0.1, "share/ht": 0.3, "share/hs": 0.2}
    return {
        "step": step, "loss": 1.0 / step, "divergence/all": 1.0, **shares,
        **{name.replace("share", "divergence"): value for name, value in shares.items()},
        "threshold/gap": 0.2, "entropy/student": 1.0, "rollout/length": 9.0, "rollout/truncated": 0.0,
        "optim/grad_norm": 1.0, "optim/learning_rate": 1e-4, "time/rollout": 1.0, "time/loss": 1.0,
    }  # fmt: skip


def empty_regimes():
    return {
        "share/lh": 0.0,
        "share/ll": 0.0,
        "share/ht": 1.0,
        "share/hs": 0.0,
        "divergence/ll": 0.0,
    }


def test_the_page_says_what_the_accuracies_leave_out_and_which_words_are_unknown(tmp_path):
    check = RowCheck(
        num_good=40,
        problems=["bad"],
        unscorable=["a", "b"],
        unknown={"question": 0.554, "answer": 0.1},
    )
    folder = variant(tmp_path, "killed")
    assert "no scorer reads" not in report_page(read_run(folder)), "nobody looked"
    pages = []
    for is_read in (True, False):
        found = record(check, is_read, {"<own>": 3})
        (folder / "rows.json").write_text(json.dumps(found))
        page = report_page(read_run(folder))
        pages.append(page[page.index("<h2>Accuracy") : page.index("<h2>Token maps")])
    assert "2 of 40 rows that were tried" in pages[0]
    assert "question 55.4%, answer 10.0%; it reads" in pages[0] and "55.4%" not in pages[1]
    assert "not looked up" in pages[1]
    assert "rows of &lt;own&gt; that do not count</th><td>3" in pages[0]
    found = record(replace(check, unknown={}), True, {})
    assert row_facts(replace(read_run(folder), rows=found))[UNKNOWN_WORDS] == "none"


VARIANTS = ("one step", "empty regimes", "no gap", "only an evaluation", "nothing yet", "killed")


def test_a_run_of_every_kind_gives_a_page(tmp_path):
    pages = {name: report_page(read_run(variant(tmp_path, name))) for name in VARIANTS}
    assert "Step 6 of 6" not in pages["killed"] and "All 6 steps" in pages["killed"]
    assert "Step 1 of 6" in pages["one step"] and "Step 0 of 6" in pages["nothing yet"]
    for text in (
        "Regime shares",
        "Privilege advantage gap",
        "self-target",
        "privileged stay above",
    ):
        assert text in pages["killed"] and text not in pages["no gap"], text
    assert "every token" in pages["no gap"] and "Loss by regime" not in pages["no gap"]
    assert "set evaluation.tasks" in pages["killed"]
    assert pages["nothing yet"].count('class="empty"') == 10
    assert pages["no gap"].count('class="empty"') == pages["killed"].count('class="empty"') - 2


@pytest.mark.parametrize("name", ["one step", "nothing yet"])
def test_their_pages_draw_what_there_is(tmp_path, name):
    path = write_report(variant(tmp_path, name))
    with open_page(path) as opened:
        found = plots(opened.page)
        assert len(found) == (0 if name == "nothing yet" else 5)
        for plot in found.values():
            assert plot["filled"] > 0 and plot["drawn"] > 0
        assert opened.problems == []


def test_text_only_and_several_images_and_an_interrupted_run(models, tmp_path):
    from PIL import Image

    from dopd_vlm.types import View

    two = View(images=(Image.new("RGB", (32, 32)), Image.new("RGB", (48, 32))))
    mixed = [
        tiny.text_sample("words"),
        replace(tiny.vl_sample("pair"), question="<image><image> same?", plain=two, privileged=two),
    ]
    config = replace(make_config(models, tmp_path, steps=2), evaluation=EvaluationConfig(every=1))
    run_dir = train(config, mixed).run_dir
    metrics = (run_dir / "metrics.jsonl").read_text().splitlines()
    (run_dir / "metrics.jsonl").write_text(metrics[0] + "\n")
    with open_page(write_report(run_dir)) as opened:
        page, counts = opened.page, {}
        for place in (0, 1):
            page.select_option(".tm-probe", str(place))
            uid = page.locator(".tm-probe option:checked").inner_text().split(": ")[1]
            counts[uid] = page.locator(".tm-plain img").count()
        assert counts == {"words": 0, "pair": 2}
        assert "Step 1 of 2" in page.locator(".status").inner_text()
        assert opened.problems == []


def test_curves_thin_and_collapse():
    long = thinned(Series(steps=list(range(2500)), values=[float(i) for i in range(2500)]))
    assert len(long.steps) == 834 and long.steps[0] == 2 and long.values[0] == 1.0
    steady = Series(steps=list(range(20)), values=[1.0] * 20)
    falling = Series(steps=list(range(20)), values=[1.0] * 10 + [0.0] * 10)
    assert collapse_step(steady, 0.2) is None
    assert collapse_step(falling, 0.5) == 12  # the first window of five with three zeros
    assert collapse_step(Series(steps=[], values=[]), 0.5) is None


def test_borders_meet_where_the_formulas_do():
    threshold = {"gap": 0.5, "q_self": 0.6, "q_teacher": 0.7}
    xs, ys = borders(threshold)
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if x is not None]
    assert None in xs and all(0 <= x <= 1 and 0 <= y <= 1 for x, y in points)
    for x, y in points:
        on_band = x and y and abs(abs(math.log(y / x)) - 0.5) < 1e-9
        assert on_band or abs(x + y - 1.3) < 1e-9 or (x, y) == (0, 0)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Two runs that differ in their seed and a third with another learning rate."""
    folder = tmp_path_factory.mktemp("three")
    for name, seed, rate in (("a", 0, 1e-3), ("b", 1, 1e-3), ("c", 0, 2e-3)):
        config = make_config(folder, folder)
        config = replace(
            config, name=name, seed=seed, optim=replace(config.optim, learning_rate=rate)
        )
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(to_yaml(config))
        lines = [{**line_of(step), "loss": seed + rate * step} for step in range(1, 5)]
        (folder / name / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines)
        )
    return [folder / name for name in "abc"]


def test_runs_that_differ_in_their_seed_are_one_line_with_a_band(three):
    groups = grouped([read_run(path) for path in three])
    assert [[run.name for run in group.runs] for group in groups] == [["a", "b"], ["c"]]
    loss = next(figure for figure in curves(groups) if figure.key == "curve-loss")
    low, high, mean, alone = loss.data
    assert low["y"][0] == pytest.approx(0.001) and high["y"][0] == pytest.approx(1.001)
    assert mean["y"][0] == pytest.approx(0.501) and alone["name"] == "c"
    for figure in curves(groups):
        graph_objects.Figure(data=figure.data, layout=figure.layout)


def test_a_comparison_shows_recipe_differences_and_scores(three, tmp_path):
    scores = [
        {"task": "t", "run": "a", "accuracy, %": "50.0"},
        {"task": "t", "run": EVIL, "accuracy, %": "60.0"},
    ]
    path = write_comparison(three, tmp_path / "cmp.html", scores)
    with open_page(path) as opened:
        text = opened.page.locator("#what-differs").inner_text()
        assert "optim.learning_rate" in text and "seed" in text and "batch_size" not in text
        assert EVIL in opened.page.locator("#final-scores").inner_text()
        assert all(plot["filled"] == plot["traces"] for plot in plots(opened.page).values())
        assert opened.problems == []
    with pytest.raises(ValueError, match="2 to 8 runs; got 1"):
        comparison_page([read_run(three[0])])


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_a_figure_is_the_same_every_time(run_dir, tmp_path, ending):
    first = write_figure(run_dir, tmp_path / f"a.{ending}", probe=2, step=0).read_bytes()
    again = write_figure(run_dir, tmp_path / f"b.{ending}", probe=2, step=0).read_bytes()
    assert first == again and len(first) > 5000


def test_mistakes_of_a_figure_are_named(run_dir, tmp_path):
    for fields, message in (
        ({"out": "x.jpg"}, r"\.svg, \.pdf, \.png"),
        ({"out": "x.svg", "probe": 9}, r"--probe 9: the run has 4 probes"),
        ({"out": "x.svg", "step": 3}, r"--step 3: .* at steps 0, 2, 4"),
    ):
        with pytest.raises(ValueError, match=message):
            write_figure(run_dir, tmp_path / fields.pop("out"), **fields)
    with pytest.raises(ValueError, match="holds no run"):
        write_report(tmp_path)


def test_tokens_of_a_figure_do_not_overlap():
    cells = token_cells(["ab", " c\n", "\u4e2d\u6587", "x" * 50, ""], columns=12)
    assert [(row, column, width) for row, column, width, _ in cells] == [
        (0, 0, 2), (0, 3, 2), (1, 0, 4), (2, 0, 12), (3, 0, 1),
    ]  # fmt: skip


@pytest.fixture
def report_script():
    """scripts/report.py."""
    from dopd_vlm.scripts import report

    return report


def test_final_scores_are_paired_on_the_same_questions(report_script, tmp_path):
    from dopd_vlm.eval.results.results import Results, write_results

    base = Results(
        name="t", view="plain", model="m", accuracy=0.5, stderr=0.1, n=4, num_generations=1, unparsed_rate=0.0,
        truncated_rate=0.0, error_rate=0.0, per_question={"q1": 1.0, "q2": 0.0, "q3": 1.0, "q4": 0.0},
    )  # fmt: skip
    better = replace(base, accuracy=1.0, per_question=dict.fromkeys(base.per_question, 1.0))
    other = replace(base, per_question={"q9": 1.0})
    for name, result in (("a", base), ("b", better), ("c", other)):
        write_results(
            [replace(result, accuracy=0.0)], tmp_path / name / "evaluations", "step_000002.json"
        )
        write_results([result], tmp_path / name / "evaluations", "step_000010.json")
    lines = report_script.final_scores([tmp_path / name for name in "abc"])
    assert [line["step"] for line in lines] == ["10"] * 3
    assert lines[0]["minus first, %"] == "" and lines[2]["minus first, %"] == "other questions"
    # b is right on two more of four: mean 0.5, stderr sqrt(sum (d - 0.5)^2 / (n (n - 1))) = sqrt(1 / 12)
    assert lines[1]["minus first, %"] == "+50.0 ± 28.9"
    assert (lines[1]["only this / only first"], lines[1]["p (McNemar)"]) == ("2 / 0", "0.5")


def test_the_command_writes_pages_and_names_mistakes(
    report_script, run_dir, three, tmp_path, capsys
):
    assert report_script.main([str(run_dir), "--out", str(tmp_path / "one.html")]) == 0
    assert report_script.main([*map(str, three), "--out", str(tmp_path / "cmp.html")]) == 0
    assert report_script.main([str(run_dir), "--figure", str(tmp_path / "r.svg")]) == 0
    assert all((tmp_path / name).exists() for name in ("one.html", "cmp.html", "r.svg"))
    capsys.readouterr()
    assert report_script.main(list(map(str, three))) == 2
    assert report_script.main([str(tmp_path)]) == 2
    assert re.findall("error: .*", capsys.readouterr().err) == [
        "error: several runs need --out FILE.html for their common page",
        f"error: {tmp_path} holds no run: there is no config.yaml; give a folder that `dopd train` wrote",
    ]
