"""A child process that compares mathematical answers: one JSON line in, one JSON line out.

math-verify can hang or crash and its own timeout uses signals, which work in the main thread of a
process only; here a hang costs one answer. Run as `python -m dopd_vlm.eval.scoring.math_worker`.
"""

import json
import re
import sys
from typing import Any

PARSE_SECONDS = 4
"""Soft limit of each step inside the worker."""


def judge(completion: str, gold: str) -> dict[str, Any]:
    """{"correct": bool, "extracted": str or None}; ValueError when the gold is unreadable."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    wanted = parse(delimited(gold), kinds, parsing_timeout=PARSE_SECONDS)
    if not wanted:
        raise ValueError(f"gold answer {gold!r} is not readable as mathematics")
    completion = completion.replace("\\$", "")
    answer = parse(completion, kinds, parsing_timeout=PARSE_SECONDS)
    if not answer:
        return {"correct": False, "extracted": None}
    return {
        "correct": bool(verify(wanted, answer, timeout_seconds=PARSE_SECONDS)),
        "extracted": str(answer[-1]),
    }


def delimited(gold: str) -> str:
    r"""A gold answer as one formula: `\$` is a currency and no delimiter, `$` within it is dropped."""
    gold = gold.replace("\\$", "").replace("\\!", "")
    if "\\boxed" in gold or re.fullmatch(r"\s*\$[^$]+\$\s*", gold):
        return gold
    return f"${gold.replace('$', '')}$"


def main() -> None:
    """Answer lines until stdin closes."""
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = judge(request["completion"], request["gold"])
        except (ValueError, TypeError, ArithmeticError, RuntimeError, AttributeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
