"""Tables of evaluation results: for the console and as Markdown."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from .results import Results, privilege_gap
from .stats import mcnemar, paired_difference

COLUMNS = (
    "task",
    "metric",
    "plain",
    "privileged",
    "gap",
    "n",
    "unparsed",
    "empty",
    "truncated",
    "errors",
    "tokens",
)
"""`errors` are answers whose scorer failed and requests that a server did not answer; `tokens` a completion's mean."""
COMPARE_COLUMNS = (
    "task",
    "view",
    "A",
    "B",
    "A - B",
    "p (paired)",
    "only A",
    "only B",
    "p (McNemar)",
)
MODES = {"mmmu_pro, both modes": ("mmmu_pro", "mmmu_pro_vision")}
"""Line of the table -> the tasks whose mean it shows."""
PUBLISHED = (
    "Published numbers in %: other models, prompts or decoding, so a reference and no target"
)


def tables(results: Sequence[Results], title: str = "") -> list[Table]:
    """Scores, next to published numbers where the tasks have any."""
    listed = [_rich(*cells(results), title)]
    columns, lines = published(results)
    return [*listed, _rich(columns, lines, PUBLISHED)] if lines else listed


def markdown(results: Sequence[Results]) -> str:
    """The same tables as Markdown."""
    columns, lines = published(results)
    more = f"\n{PUBLISHED}:\n\n{_markdown(columns, lines)}" if lines else ""
    return _markdown(*cells(results)) + more


def comparison_table(a: Sequence[Results], b: Sequence[Results]) -> Table:
    """Paired differences of two evaluations, for the console."""
    return _rich(COMPARE_COLUMNS, comparison_lines(a, b), "")


def comparison_markdown(a: Sequence[Results], b: Sequence[Results]) -> str:
    """Paired differences of two evaluations on their common tasks and views, as Markdown.

    Raises:
        ValueError: nothing in common, or other questions in the same task.
    """
    return _markdown(COMPARE_COLUMNS, comparison_lines(a, b))


def cells(results: Sequence[Results]) -> tuple[list[str], list[list[str]]]:
    """(column names, lines); empty columns are left out."""
    lines = _lines(results)
    filled = [i for i in range(len(COLUMNS)) if any(line[i] != "-" for line in lines)]
    return [COLUMNS[i] for i in filled], [[line[i] for i in filled] for line in lines]


def published(results: Sequence[Results]) -> tuple[list[str], list[list[str]]]:
    """(column names, lines): a line a task that has published numbers, its own score first."""
    tasks: dict[str, Results] = {}
    for one in results:
        if one.reference:
            tasks.setdefault(one.name, one)
    names = list(dict.fromkeys(who for one in tasks.values() for who in one.reference))
    lines = [
        [name, _official(one), *(_number(one.reference.get(who)) for who in names)]
        for name, one in tasks.items()
    ]
    return ["task", "this model", *names], lines


def _lines(results: Sequence[Results]) -> list[list[str]]:
    lines = []
    for name in dict.fromkeys(one.name for one in results):
        views = {one.view: one for one in results if one.name == name}
        plain, privileged = views.get("plain"), views.get("privileged")
        parts = [one for one in (plain, privileged) if one is not None]
        gap = privilege_gap(plain, privileged) if plain and privileged else None
        lines.append(
            [
                name,
                parts[0].metric,
                _score(plain),
                _score(privileged),
                _signed(gap["privilege_gap"], gap["privilege_gap_stderr"]) if gap else "-",
                str(parts[0].n),
                " / ".join(_percent(one.unparsed_rate) for one in parts),
                " / ".join(_percent(one.empty_rate) for one in parts),
                " / ".join(_percent(one.truncated_rate) for one in parts),
                " / ".join(_percent(one.error_rate + one.failed_rate) for one in parts),
                " / ".join(f"{one.mean_tokens:.0f}" for one in parts),
            ]
        )
    return [*lines, *_modes(results), *_average(results)]


def _modes(results: Sequence[Results]) -> list[list[str]]:
    """The mean of MMMU-Pro's two modes, which is its official number, where both were run."""
    lines = []
    for name, modes in MODES.items():
        views = [
            [one for one in results if one.view == view and one.name in modes]
            for view in ("plain", "privileged")
        ]
        if any(len(part) == len(modes) for part in views):
            scores = [_mean_score(part) if len(part) == len(modes) else "-" for part in views]
            lines.append([name, "mean", *scores, *["-"] * (len(COLUMNS) - 4)])
    return lines


def _mean_score(part: Sequence[Results]) -> str:
    """The mean over tasks of different questions; their errors add up as squares."""
    mean = sum(one.accuracy for one in part) / len(part)
    return f"{100 * mean:.1f}{_error(math.hypot(*(one.stderr for one in part)) / len(part))}"


def _average(results: Sequence[Results]) -> list[list[str]]:
    """The mean over the tasks of each view, each by its own questions, where there are several tasks."""
    names = {one.name for one in results}
    if len(names) < 2:
        return []
    views = {view: [one for one in results if one.view == view] for view in ("plain", "privileged")}
    means = [_mean_score(part) if len(part) == len(names) else "-" for part in views.values()]
    n = sum({one.name: one.n for one in results}.values())
    return [[f"average of {len(names)}", "-", *means, "-", str(n), *["-"] * (len(COLUMNS) - 6)]]


def comparison_lines(a: Sequence[Results], b: Sequence[Results]) -> list[list[str]]:
    """The cells of the table under COMPARE_COLUMNS.

    Raises:
        ValueError: nothing in common, or other questions in the same task.
    """
    return [_comparison(one, other) for one, other in common(a, b)]


def common(a: Sequence[Results], b: Sequence[Results]) -> list[tuple[Results, Results]]:
    """The pairs of the same task and view.

    Raises:
        ValueError: there are none.
    """
    others = {(one.name, one.view): one for one in b}
    pairs = [(one, others[one.name, one.view]) for one in a if (one.name, one.view) in others]
    if not pairs:
        raise ValueError(
            f"nothing to compare: A has {_titles(a)}, B has {_titles(b)}; evaluate the same tasks"
        )
    return pairs


def _comparison(one: Results, other: Results) -> list[str]:
    difference = paired_difference(one.per_question, other.per_question, one.clusters or None)
    row = [
        one.name,
        one.view,
        _score(one),
        _score(other),
        _signed(difference.value, difference.stderr),
        f"{difference.p_value:.3g}",
    ]
    if one.num_generations > 1 or other.num_generations > 1:
        return [*row, "-", "-", "-"]
    test = mcnemar(one.per_question, other.per_question)
    return [*row, str(test.only_a), str(test.only_b), f"{test.p_value:.3g}"]


def _titles(results: Sequence[Results]) -> str:
    return ", ".join(f"{one.name} ({one.view})" for one in results) or "nothing"


def _official(results: Results) -> str:
    """The metric that the published numbers are, by its name where it is not the accuracy."""
    name = results.settings.get("official")
    score = _percent(results.official.value)
    return f"{score} ({name})" if name else score


def error_of(metrics: Mapping[str, float], name: str) -> str:
    """ " ± error" of a second metric that has one."""
    return _error(metrics.get(f"{name}_stderr", math.nan))


def _score(results: Results | None) -> str:
    if results is None:
        return "-"
    low, high = results.interval
    error = _error(results.stderr) if results.stderr > 0 else ""
    return f"{100 * results.accuracy:.1f}{error} [{100 * low:.1f}, {100 * high:.1f}]"


def _number(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.1f}"


def _signed(value: float, stderr: float) -> str:
    return f"{100 * value:+.1f}{_error(stderr)}"


def _error(stderr: float) -> str:
    return "" if math.isnan(stderr) else f" ± {100 * stderr:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _rich(columns: Sequence[str], lines: Sequence[Sequence[str]], title: str) -> Table:
    table = Table(title=title or None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index > 1 else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(columns)
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, rule, *lines)) + "\n"
