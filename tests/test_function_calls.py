"""Function calls by their syntax: right and wrong ones of every kind, and the official verdicts."""

import ast
import importlib
import json
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dopd_vlm.eval.benchmarks.benchmark import load_benchmark
from dopd_vlm.eval.benchmarks.convert import to_rows
from dopd_vlm.eval.benchmarks.sources import raw_rows
from dopd_vlm.eval.official.bfcl import calls_gold, read_calls, score_calls
from dopd_vlm.types import Sample, View


def function(name: str, required: list[str], **kinds: Any) -> dict[str, Any]:
    properties = {
        key: kind if isinstance(kind, dict) else {"type": kind} for key, kind in kinds.items()
    }
    return {
        "name": name,
        "parameters": {"type": "dict", "properties": properties, "required": required},
    }


BOOK = function(
    "hotel.book", ["city", "nights"],
    city="string", nights="integer", price="float", pets="boolean",
    days={"type": "array", "items": {"type": "string"}},
    at={"type": "tuple", "items": {"type": "float"}},
    guest={"type": "dict", "properties": {}},
    guests={"type": "array", "items": {"type": "dict"}},
)  # fmt: skip
WANTED = {
    "city": ["New York", "NYC"], "nights": [3], "price": [99.5, ""], "pets": [True, ""],
    "days": [["Mon", "Tue"], ""], "at": [[1.5, 2.0], ""],
    "guest": [{"name": ["Ann"], "age": [30, ""]}, ""], "guests": [[{"name": ["Ann"]}, {"name": ["Bob"]}], ""],
}  # fmt: skip
WEATHER = function("weather", ["city"], city="string")


def sample(category: str, functions: list[dict[str, Any]], truth: list[dict[str, Any]]) -> Sample:
    answer = calls_gold([f"{category}_0", functions, truth])
    return Sample(uid="q", question="?", answer=answer, plain=View(), privileged=View())


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("[hotel.book(city='New York', nights=3)]", 1),
        ("hotel.book(city='new-york', nights=3)", 1),
        ("```python\n[hotel.book(city='NYC', nights=3)]\n```", 1),
        ("<think>weather?</think>[hotel.book(city='NYC', nights=1+2)]", 1),
        (
            '<tool_call>\n{"name": "hotel.book", "arguments": {"city": "NYC", "nights": 3}}\n</tool_call>',
            1,
        ),
        ("[hotel.book(city='NYC', nights=3, price=99.5, pets=True)]", 1),
        ("[hotel.book(city='NYC', nights=3, days=['mon', 'tue'])]", 1),
        ("[hotel.book(city='NYC', nights=3, at=(1.5, 2.0))]", 1),
        ("[hotel.book(city='NYC', nights=3, guest={'name': 'ann'})]", 1),
        ("[hotel.book(city='NYC', nights=3, guests=[{'name': 'Ann'}, {'name': 'Bob'}])]", 1),
        ("[hotel.book(city='Boston', nights=3)]", 0),
        ("[hotel.book(city='NYC', nights=4)]", 0),
        ("[hotel.book(city='NYC', nights='3')]", 0),
        ("[hotel.book(city='NYC', nights=3.0)]", 0),
        ("[hotel.book(city='NYC')]", 0),
        ("[hotel.book('NYC', 3)]", 0),
        ("[hotel.book(city='NYC', nights=3, stars=5)]", 0),
        ("[hotel.book(city='NYC', nights=3, pets=1)]", 0),
        ("[hotel.book(city='NYC', nights=3, days=['tue', 'mon'])]", 0),
        ("[hotel.book(city='NYC', nights=3, days=[1, 2])]", 0),
        ("[hotel.book(city='NYC', nights=3, guest={'age': 30})]", 0),
        ("[hotel.book(city='NYC', nights=3, guest={'name': 'Ann', 'sex': 'f'})]", 0),
        ("[hotel.book(city='NYC', nights=3, guests=[{'name': 'Bob'}, {'name': 'Ann'}])]", 0),
        ("[hotel.reserve(city='NYC', nights=3)]", 0),
        ("[hotel.book(city='NYC', nights=3), hotel.book(city='NYC', nights=3)]", 0),
        ("[]", 0),
        ("I will book the hotel.", 0),
        ("", 0),
        ("<think>[hotel.book(city='NYC', nights=3)]", 0),
    ],
)
def test_one_call(text: str, right: int) -> None:
    assert score_calls(text, sample("simple", [BOOK], [{"hotel.book": WANTED}])).correct == right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("[weather(city='Rome'), weather(city='Oslo')]", 1),
        ("[weather(city='Oslo'), weather(city='Rome')]", 1),
        ("[weather(city='Oslo'), weather(city='Oslo')]", 0),
        ("[weather(city='Oslo')]", 0),
    ],
)
def test_several_calls_in_any_order(text: str, right: int) -> None:
    truth = [{"weather": {"city": ["Oslo"]}}, {"weather": {"city": ["Rome"]}}]
    assert score_calls(text, sample("parallel", [BOOK, WEATHER], truth)).correct == right


def test_one_call_meets_one_wanted_call() -> None:
    truth = [{"weather": {"city": ["Oslo"]}}, {"weather": {"city": ["Oslo", "Rome"]}}]
    question = sample("parallel", [WEATHER], truth)
    assert score_calls("[weather(city='Oslo'), weather(city='Rome')]", question).correct == 1.0
    assert score_calls("[weather(city='Oslo'), weather(city='Bonn')]", question).correct == 0.0


@pytest.mark.parametrize(
    ("text", "irrelevance", "relevance"),
    [
        ("None of the functions fits.", 1, 0),
        ("[]", 1, 0),
        ("[weather(city='Oslo')]", 0, 1),
        ("weather", 1, 0),
    ],
)
def test_no_call_is_an_answer_where_none_fits(text: str, irrelevance: int, relevance: int) -> None:
    assert score_calls(text, sample("live_irrelevance", [WEATHER], [])).correct == irrelevance
    assert score_calls(text, sample("live_relevance", [WEATHER], [])).correct == relevance


def test_nothing_is_executed_and_nothing_breaks() -> None:
    for text in (
        "f(x=__import__('os').getcwd())",
        "f(x=9**9**9)",
        "[" * 9000,
        "f(x=" + "-" * 9000 + "1)",
        "\0",
    ):
        calls, _ = read_calls(text)
        assert calls is None or calls[0].arguments != {"x": str(Path.cwd())}


def test_rows_without_ground_truth_are_named() -> None:
    with pytest.raises(
        ValueError, match="'simple_0' has no ground_truth; join the possible_answer"
    ):
        calls_gold(["simple_0", [WEATHER], None])


def _literal(allowed: list[Any]) -> Any:
    """An allowed value as a model would write it; dicts hold allowed values one level down."""
    value = _first(allowed)
    if isinstance(value, list):
        return [_fields(one) if isinstance(one, dict) else one for one in value]
    return _fields(value) if isinstance(value, dict) else value


def _first(allowed: Any) -> Any:
    return next((one for one in allowed if one != ""), "") if isinstance(allowed, list) else allowed


def _fields(value: dict[str, Any]) -> dict[str, Any]:
    return {key: _first(options) for key, options in value.items() if _first(options) != ""}


def gold_call(truth: dict[str, Any]) -> str:
    ((name, parameters),) = truth.items()
    arguments = {key: _literal(allowed) for key, allowed in parameters.items() if "" not in allowed}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def variants(call: str) -> list[str]:
    """The call, and the same with one thing changed."""
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call)
    made = [call, call.replace("(", "_x(", 1), f"{call}, {call}", call.upper()]
    for index in range(len(node.keywords)):
        for change in ("drop", "name", "string", "float", "list"):
            copy = ast.parse(call, mode="eval").body
            assert isinstance(copy, ast.Call)
            keyword = copy.keywords[index]
            if change == "drop":
                del copy.keywords[index]
            elif change == "name":
                keyword.arg = f"{keyword.arg}_x"
            else:
                text = ast.unparse(keyword.value)
                new = {"string": repr(text), "float": "1.5", "list": f"[{text}]"}[change]
                keyword.value = ast.parse(new, mode="eval").body
            made.append(ast.unparse(copy))
    return made


@pytest.fixture(scope="module")
def official() -> Callable[..., bool]:
    """The package's checker and parser; model handlers, which need other packages, are left empty."""
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval")
    mapping = defaultdict(lambda: SimpleNamespace(underscore_to_dot=False))
    fakes = {
        "bfcl_eval.constants.model_config": {"MODEL_CONFIG_MAPPING": mapping},
        "bfcl_eval.constants.eval_config": {},
        "bfcl_eval.utils": {},
        "bfcl_eval.model_handler.parser.java_parser": {"parse_java_function_call": None},
        "bfcl_eval.model_handler.parser.js_parser": {"parse_javascript_function_call": None},
        "bfcl_eval.model_handler.parser.json_parser": {"parse_json_function_call": None},
        "bfcl_eval.model_handler.parser.xml_parser": {
            "parse_concise_xml_function_call": None, "parse_verbose_xml_function_call": None,
        },
        "tenacity": dict.fromkeys(
            ["retry", "retry_if_exception_message", "retry_if_exception_type", "wait_random_exponential"]
        ),
    }  # fmt: skip
    known = dict(sys.modules)
    for name, values in fakes.items():
        module = types.ModuleType(name)
        module.__dict__.update(values)
        sys.modules[name] = module
    checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
    parser = importlib.import_module("bfcl_eval.model_handler.utils")
    enums = importlib.import_module("bfcl_eval.constants.enums")
    for name in fakes:
        sys.modules.pop(name)
    sys.modules.update({name: module for name, module in known.items() if name in fakes})

    def verdict(text: str, row: dict[str, Any], category: str) -> bool:
        try:
            calls = parser.default_decode_ast_prompting(text)
            rest = (row["ground_truth"], enums.Language.PYTHON, category, "model")
            return checker.ast_checker(row["function"], calls, *rest)["valid"]
        except Exception:  # the runner counts whatever its parser raises as a wrong answer
            return False

    return verdict


@pytest.mark.slow
def test_verdicts_are_the_official_ones_on_real_rows(official: Callable[..., bool]) -> None:
    """Gold calls and thousands of spoiled ones of the rows that bfcl-eval ships."""
    task = load_benchmark("bfclv3")
    folder = Path(importlib.import_module("bfcl_eval").__file__ or "").parent / "data"
    raw = {row["id"]: row for row in raw_rows(task, lambda *a, **k: [], str(folder))}
    rows = to_rows(task, list(raw.values()))
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        one, category = raw[row["meta"]["id"]], json.loads(row["answer"])["category"]
        if not one["ground_truth"]:
            continue
        question = Sample(
            uid="q", question="?", answer=row["answer"], plain=View(), privileged=View()
        )
        calls = [gold_call(truth) for truth in one["ground_truth"]]
        for spoiled in variants(calls[0]):
            text = f"[{', '.join([spoiled, *calls[1:]])}]"
            wanted = official(text, one, category)
            assert score_calls(text, question).correct == float(wanted), (text, one["ground_truth"])
            counts["right" if wanted else "wrong"] += 1
    assert counts["right"] > 2000 and counts["wrong"] > 5000, dict(counts)
