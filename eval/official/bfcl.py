"""Function calls judged by their syntax tree, as the Berkeley leaderboard's Python categories are.

A call is right when the function is the expected one, required parameters are there, no other ones
are, and each value has the documented type and is among the allowed ones. Nothing is executed.
"""

import ast
import json
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dopd_vlm.types import Sample

from ..scoring.answers import Score, final_answer, unread

TYPES = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list,
    "dict": dict, "any": str,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
UNREADABLE = (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError)
"""What parsing a model's text as Python or JSON may raise."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One function call of a completion."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def score_calls(text: str, sample: Sample) -> Score:
    """Whether the calls are those wanted, in any order; or whether there is none where none fits.

    Gold is JSON with `category`, `functions` and `ground_truth`. In categories of `irrelevance`
    the absence of readable calls is right; in those of `relevance` any call is.
    """
    gold = json.loads(sample.answer)
    answer = final_answer(text)
    if answer is None:
        return unread("unclosed_think")
    calls, rule = read_calls(answer)
    if gold["category"].endswith("irrelevance"):
        return Score(correct=float(not calls), extracted=_to_json(calls), rule=rule or "no_call")
    if calls is None:
        return unread()
    if gold["category"].endswith("relevance"):
        return Score(correct=float(bool(calls)), extracted=_to_json(calls), rule=rule)
    fault = _fault(calls, gold)
    return Score(correct=float(not fault), extracted=_to_json(calls), rule=fault or rule)


def read_calls(text: str) -> tuple[list[Call] | None, str]:
    """(calls, rule) of `[f(a=1), g.h(b="x")]`, brackets optional, or of <tool_call> JSON blocks.

    (None, "") when the text is neither; calls with positional arguments lose them, as upstream.
    """
    blocks = re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
    try:
        if blocks:
            values = [json.loads(block) for block in blocks]
            return [
                Call(name=one["name"], arguments=one["arguments"]) for one in values
            ], "tool_call"
        return [_call(node) for node in _elements(text)], "python"
    except (*UNREADABLE, KeyError):
        return None, ""


def calls_gold(raw: Sequence[Any]) -> str:
    """A row's id, functions and ground truth as JSON; the category is the id's words.

    Raises:
        ValueError: a category with an answer that the row lacks.
    """
    uid, functions, *rest = raw
    ground_truth = rest[0] if rest else None
    category = re.sub(r"_\d+(?:-\d+)*$", "", str(uid))
    if not ground_truth and not category.endswith("relevance"):
        raise ValueError(f"row {uid!r} has no ground_truth; join the possible_answer file")
    gold = {"category": category, "functions": functions, "ground_truth": ground_truth or []}
    return json.dumps(gold, ensure_ascii=False)


def _elements(text: str) -> list[ast.expr]:
    text = re.sub(r"^\s*```\w*\n", "", text).strip("`\n ")
    text = text if text.startswith("[") else "[" + text
    text = text if text.endswith("]") else text + "]"
    body = ast.parse(text.strip("'"), mode="eval").body
    return list(body.elts) if isinstance(body, ast.List | ast.Tuple) else [body]


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise ValueError("not a call")
    arguments = {one.arg: _value(one.value) for one in node.keywords if one.arg is not None}
    return Call(name=ast.unparse(node.func), arguments=arguments)


def _value(node: ast.expr) -> Any:
    """The value of literals and of arithmetic on them; names and other calls as their text."""
    match node:
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_value(key): _value(value) for key, value in pairs if key is not None}
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            return ARITHMETIC[type(op)](_value(left), _value(right))
        case ast.Call(keywords=[_, *_]):
            call = _call(node)
            return {call.name: dict(call.arguments)}
        case ast.Name() | ast.Call() | ast.Subscript():
            return ast.unparse(node)
    raise ValueError(f"{type(node).__name__} is not a value")


def _fault(calls: Sequence[Call], gold: Mapping[str, Any]) -> str:
    """Why the calls are wrong; empty when each wanted one is met by another call."""
    wanted = gold["ground_truth"]
    if len(calls) != len(wanted):
        return f"wrong: {len(calls)} calls, {len(wanted)} wanted"
    left, fault = list(calls), ""
    for one in wanted:
        ((name, allowed),) = one.items()
        described = _description(gold["functions"], name)
        faults = [_call_fault(call, name, allowed, described) for call in left]
        if "" not in faults:
            return f"wrong: {faults[0]}"
        del left[faults.index("")]
    return fault


def _description(functions: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    matching = [one for one in functions if one["name"] == name]
    if not matching:
        raise ValueError(f"the ground truth calls {name!r}, which no function of the row is")
    return matching[0]["parameters"]


def _call_fault(
    call: Call, name: str, allowed: Mapping[str, Sequence[Any]], described: Mapping[str, Any]
) -> str:
    if call.name != name:
        return f"calls {call.name}, not {name}"
    missing = [one for one in described.get("required", ()) if one not in call.arguments]
    if missing:
        return f"lacks {missing[0]}"
    for parameter, value in call.arguments.items():
        if parameter not in described["properties"] or parameter not in allowed:
            return f"has {parameter}, which is unexpected"
        if not _is_allowed(value, allowed[parameter], described["properties"][parameter]):
            return f"{parameter}={value!r}"
    left_out = [one for one in allowed if one not in call.arguments and "" not in allowed[one]]
    return f"lacks {left_out[0]}" if left_out else ""


def _is_allowed(value: Any, allowed: Sequence[Any], described: Mapping[str, Any]) -> bool:
    """The value's type is the documented one (or the allowed values' own), and it is among them."""
    kind = described["type"]
    wanted = TYPES[kind]
    if kind == "tuple" and isinstance(value, tuple):
        value = list(value)
    if kind == "float" and type(value) is int:
        value = float(value)
    given = next((type(one) for one in allowed if one != ""), None)
    inner = TYPES[described["items"]["type"]] if kind in ("array", "tuple") else None
    if type(value) is not wanted:
        return type(value) is given and _is_member(value, allowed)
    if inner is not None and not _items_fit(value, allowed, inner):
        return False
    if given not in (None, wanted):
        return value in allowed
    return _is_member(value, allowed)


def _items_fit(value: Sequence[Any], allowed: Sequence[Any], inner: type) -> bool:
    """Some allowed list's items have the types of this one's."""

    def fits(one: Any) -> bool:
        if not isinstance(one, list):
            return True
        given = next((type(item) for item in one if item != ""), None)
        return all(type(item) in (inner, given) for item in value)

    return any(map(fits, allowed))


def _is_member(value: Any, allowed: Sequence[Any]) -> bool:
    if isinstance(value, dict):
        return any(_is_dict(value, one) for one in allowed if isinstance(one, dict))
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        lists = [one for one in allowed if isinstance(one, list) and len(one) == len(value)]
        return any(all(map(_is_dict, value, one)) for one in lists)
    return _plain(value) in [_plain(one) for one in allowed]


def _is_dict(value: Mapping[str, Any], allowed: Any) -> bool:
    """Every key is known with an allowed value, and only optional keys are left out."""
    return (
        isinstance(allowed, dict)
        and all(
            key in allowed and _plain(one) in [_plain(other) for other in allowed[key]]
            for key, one in value.items()
        )
        and all(key in value or "" in others for key, others in allowed.items())
    )


def _plain(value: Any) -> Any:
    """Strings without case, spaces and `,./-_*^`; lists of such; anything else as it is."""
    if isinstance(value, str):
        return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _to_json(calls: Sequence[Call] | None) -> str:
    return json.dumps(
        [{call.name: call.arguments} for call in calls or ()], ensure_ascii=False, default=str
    )
