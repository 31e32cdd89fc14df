"""Compares our verdicts with official ones on real outputs of models, per benchmark and rule.

    python scripts/checks/verdicts.py --mathvista MathVista --mmmu_pro MMMU --examples 3
    python scripts/checks/verdicts.py --mathvision MATH-V --save verdicts.jsonl

Folders are checkouts of the benchmarks' repositories; eval/VERDICTS.md says how to get them. Prints how
often each rule agrees with the official judge and both kinds of disagreement, with examples.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dopd_vlm.eval.benchmarks.benchmark import load_benchmark
from dopd_vlm.eval.scorers import Scorer, row_scorer
from dopd_vlm.scripts.checks.verdict_cases import READERS, Case

TAIL = 160


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Ours beside the official one."""

    case: Case
    is_right: bool
    extracted: str | None
    rule: str

    @property
    def kind(self) -> str:
        """`agree`, `ours` (only we say right) or `official` (only they do)."""
        if self.is_right == self.case.is_right:
            return "agree"
        return "ours" if self.is_right else "official"


def main(arguments: Sequence[str]) -> int:
    """Reads the arguments, scores, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, reader in READERS.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=reader.__doc__)
    parser.add_argument("--examples", type=int, default=2, help="of each kind and rule")
    parser.add_argument("--save", type=Path, help="write every verdict as a JSON line")
    options = vars(parser.parse_args(arguments))
    folders = {name: options[name] for name in READERS if options[name]}
    if not folders:
        print(f"no folder is given; pass one of: --{', --'.join(READERS)}", file=sys.stderr)
        return 2
    for name, folder in folders.items():
        verdicts = judge(READERS[name](folder))
        if not verdicts:
            print(f"--{name} {folder}: no outputs there; see eval/VERDICTS.md", file=sys.stderr)
            return 2
        print("\n".join(report(name, verdicts, options["examples"])))
        if options["save"]:
            save(verdicts, options["save"])
    return 0


def judge(cases: Iterable[Case]) -> list[Verdict]:
    """Our verdict on each case, by its task's scorer; a scorer that fails is named as the rule."""
    scorers: dict[str, Scorer] = {}
    return [_verdict(case, scorers) for case in cases]


def _verdict(case: Case, scorers: dict[str, Scorer]) -> Verdict:
    if case.task not in scorers:
        task = load_benchmark(case.task)
        scorers[case.task] = row_scorer(task.answer_type, task.scorer)
    try:
        score = scorers[case.task](case.text, case.sample)
    except ValueError as error:  # what a run counts as a scorer error
        return Verdict(case=case, is_right=False, extracted=None, rule=f"error: {error}"[:40])
    return Verdict(
        case=case, is_right=score.correct == 1.0, extracted=score.extracted, rule=score.rule
    )


def report(name: str, verdicts: Sequence[Verdict], num_examples: int) -> list[str]:
    """Lines: totals, a table of files, a table of rules, examples."""
    kinds = Counter(one.kind for one in verdicts)
    lines = [
        f"\n== {name}: {len(verdicts)} outputs, ours right official wrong {kinds['ours']}, "
        f"ours wrong official right {kinds['official']}",
        *_table("file", _grouped(verdicts, lambda one: one.case.source)),
        *_table("type/rule", _grouped(verdicts, lambda one: _rule(one))),
    ]
    for kind in ("ours", "official"):
        groups = _grouped([one for one in verdicts if one.kind == kind], _rule)
        for rule, ones in sorted(groups.items(), key=lambda item: -len(item[1])):
            lines += [f"-- {kind} right only, {rule}: {len(ones)}"]
            lines += [_example(one) for one in ones[:: max(1, len(ones) // max(1, num_examples))]][
                :num_examples
            ]
    return lines


def save(verdicts: Iterable[Verdict], path: Path) -> None:
    """Appends one JSON line a verdict."""
    with path.open("a", encoding="utf-8") as file:
        for one in verdicts:
            case = one.case
            record = {
                "source": case.source, "uid": case.sample.uid, "gold": case.sample.answer,
                "type": case.sample.answer_type, "choices": case.sample.choices,
                "ours": [one.is_right, one.extracted, one.rule],
                "official": [case.is_right, case.answer], "text": case.text,
            }  # fmt: skip
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _rule(verdict: Verdict) -> str:
    return f"{verdict.case.sample.answer_type}/{verdict.rule}"


def _grouped(verdicts: Sequence[Verdict], key) -> dict[str, list[Verdict]]:
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for one in verdicts:
        groups[key(one)].append(one)
    return groups


def _table(title: str, groups: Mapping[str, Sequence[Verdict]]) -> list[str]:
    lines = [
        f"{title:40} {'n':>6} {'ours %':>7} {'theirs %':>8} {'only ours':>9} {'only theirs':>11}"
    ]
    for name, ones in sorted(groups.items()):
        kinds, n = Counter(one.kind for one in ones), len(ones)
        ours = 100 * sum(one.is_right for one in ones) / n
        theirs = 100 * sum(one.case.is_right for one in ones) / n
        lines.append(
            f"{name[:40]:40} {n:6} {ours:7.2f} {theirs:8.2f} {kinds['ours']:9} "
            f"{kinds['official']:11}"
        )
    return lines


def _example(verdict: Verdict) -> str:
    case, text = verdict.case, " ".join(verdict.case.text.split())
    text = text if len(text) <= 2 * TAIL else f"{text[:TAIL]} ... {text[-TAIL:]}"
    return (
        f"   {case.source} {case.sample.uid}: gold {case.sample.answer!r}, ours "
        f"{verdict.extracted!r}, official {case.answer[:60]!r}: {text}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
