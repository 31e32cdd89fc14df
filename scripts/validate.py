"""Checks a data set row by row and prints a data card, which --card also writes.

    dopd validate rows/ --card rows/README.md
    dopd validate my_recipe.yaml                 # its rows, as its student will read them
    dopd validate rows/ --against benchmark/     # shared questions and images

Exits with 1 when a row is bad, leaks privileged text into the question, or is in the other set.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from dopd_vlm.config import ModelConfig, read_config
from dopd_vlm.data.validate import data_card, validate
from dopd_vlm.data.views import AnnotationChoice
from dopd_vlm.prompts import PromptTemplate
from dopd_vlm.scripts.wiring.command_line import (
    add_plugin_option,
    command_parser,
    is_recipe,
    load_plugins,
    recipe_path,
    with_plugins,
)  # fmt: skip
from dopd_vlm.scripts.wiring.row_check import Reader, load_reader, unknown_words
from dopd_vlm.scripts.wiring.samples import answer_problem, local_path, rows_of


def main(arguments: Sequence[str]) -> int:
    """Reads the arguments, checks, reports."""
    parser = command_parser("validate", __doc__)
    parser.add_argument("source", help="a recipe (.yaml), or a data set as read_rows takes it")
    parser.add_argument("--split", help="split of the data set")
    parser.add_argument("--annotations", nargs="*", help="types to check; default: all there are")
    parser.add_argument("--against", help="another data set that must not share questions")
    parser.add_argument("--model", help="whose tokenizer reads the rows; a recipe has its student")
    parser.add_argument("--card", type=Path, help="write the data card here, e.g. rows/README.md")
    parser.add_argument("--problems", type=Path, help="write all bad rows here, as JSONL")
    add_plugin_option(parser)
    options = parser.parse_args(arguments)
    try:
        load_plugins(options)
        subject = _subject(options)
        others = rows_of(options.against, None) if options.against else ()
        report = validate(
            subject.rows,
            subject.annotations,
            against=others,
            answer_problem=answer_problem,
            model_problem=subject.reader.problem if subject.reader else lambda sample: None,
            progress=partial(track, description="checking rows", console=Console(stderr=True)),
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    card = data_card(report, options.source)
    if subject.reader and subject.reader.unknown():
        card += f"\nWords that the model does not know: {unknown_words(subject.reader.unknown())}\n"
    print(card)
    if options.card:
        options.card.write_text(card, encoding="utf-8")
        print(f"data card: {options.card}")
    if options.problems:
        lines = [json.dumps(asdict(problem), ensure_ascii=False) for problem in report.problems]
        options.problems.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return 1 if report.problems or report.leaking or report.overlapping else 0


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """The rows, what of them is shown, and who is to read them."""

    rows: Sequence[Mapping[str, Any]]
    annotations: Sequence[AnnotationChoice] | None
    reader: Reader | None


def _subject(options: argparse.Namespace) -> _Subject:
    """From a recipe, or from a data set and the options."""
    template, model = PromptTemplate(), options.model and ModelConfig(path=options.model)
    source, split, annotations = options.source, options.split, options.annotations
    if is_recipe(source):
        config = with_plugins(read_config(recipe_path(source)))
        source, split = config.data.train, split or config.data.split
        annotations = config.data.annotations if annotations is None else annotations
        template, model = config.prompts, model or config.student
    reader = None
    if model is not None:
        reader = load_reader(replace(model, path=local_path(model.path)), template)
        if reader is None:
            print(f"no tokenizer of {model.path!r} is here: its words are not looked up")
    return _Subject(rows=rows_of(source, split), annotations=annotations, reader=reader)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
