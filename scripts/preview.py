"""Writes an HTML page that shows, row by row, what the student sees and what the teacher sees.

    python scripts/preview.py scripts/recipes/demo.yaml --rows 20
    python scripts/preview.py data/assets/photos --annotations boxes:both hints

A recipe brings its rows, annotation types and the student's chat template; a data set is shown
with the types named (NAME or NAME:FORM), its prompts without a template unless --model is given.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from build import resolved, rows_of

from dopd_vlm.config import read_config
from dopd_vlm.data.embedded import embedded_model, is_embedded
from dopd_vlm.data.preview import Prompts, preview_page, readable_prompts
from dopd_vlm.data.views import AnnotationChoice, make_samples
from dopd_vlm.prompts import PromptTemplate, build_prompts
from dopd_vlm.types import Message, Sample


def main() -> int:
    """Reads the arguments and writes the page."""
    options = _arguments()
    try:
        rows, chosen, coords, model, template, chat = _what_to_show(options)
        samples, skipped = make_samples(rows, chosen, coords=coords)
        processor = None if model is None else _processor(model, needed=options.model is not None)
        prompts = [
            rendered(sample, processor, template, chat) if processor else readable_prompts(sample)
            for sample in samples
        ]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    page = preview_page(str(options.source), samples, prompts, skipped)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page, encoding="utf-8")
    print(f"{len(samples)} rows, {len(skipped)} left out: {options.out}")
    return 0


def rendered(
    sample: Sample, processor: Any, template: PromptTemplate, template_kwargs: Mapping[str, Any]
) -> Prompts:
    """The prompts as the processor makes them, special tokens visible, and their token counts."""

    def render(messages: list[Message]) -> tuple[str, int]:
        encoded = processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, **template_kwargs
        )
        ids = encoded["input_ids"]
        ids = ids[0] if isinstance(ids[0], list) else ids
        return processor.decode(ids, skip_special_tokens=False), len(ids)

    pair = build_prompts(sample, template)
    plain, privileged = render(pair.plain), render(pair.privileged)
    counts = (plain[1], privileged[1])
    return Prompts(plain=plain[0], privileged=privileged[0], num_tokens=counts)


def _processor(model: str, *, needed: bool) -> Any:
    """The model's processor; without one that was not asked for, None and a note."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(model)
    except OSError as error:
        if needed:
            raise ValueError(f"no processor for --model {model!r}: {error}") from error
        print(f"no processor for {model!r}; prompts are shown without template", file=sys.stderr)
        return None


def _what_to_show(
    options: argparse.Namespace,
) -> tuple[
    Sequence[Mapping[str, Any]],
    Sequence[AnnotationChoice],
    str,
    str | None,
    PromptTemplate,
    Mapping[str, Any],
]:
    """(rows, annotations, coords, model, template, template keywords)."""
    model = options.model
    if model is not None and is_embedded(model):
        model = str(embedded_model(model))
    if Path(options.source).suffix in (".yaml", ".yml"):
        config = resolved(read_config(options.source))
        data = config.data
        rows = rows_of(data.train, data.split)[: options.rows]
        model = model or config.student.path
        kwargs = config.chat.template_kwargs
        return rows, data.annotations, data.coords, model, config.prompts, kwargs
    rows = rows_of(options.source, options.split)[: options.rows]
    return rows, _choices(options.annotations), options.coords, model, PromptTemplate(), {}


def _choices(names: Sequence[str]) -> list[AnnotationChoice]:
    pairs = [name.partition(":") for name in names]
    return [(name, form) if form else name for name, _, form in pairs]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a recipe (.yaml) or a data set as read_rows takes it")
    parser.add_argument("--rows", type=int, default=20, help="how many rows to show")
    parser.add_argument("--out", type=Path, default=Path("preview.html"))
    parser.add_argument("--annotations", nargs="*", default=[], help="NAME or NAME:FORM")
    parser.add_argument("--split", help="split of the data set")
    parser.add_argument("--coords", default="qwen3", help="coordinates of places in the text")
    parser.add_argument("--model", help="whose chat template and tokenizer show the prompts")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
