"""Writes an HTML page that shows, row by row, what the student sees and what the teacher sees.

    dopd preview demo --rows 20
    dopd preview demo --checkpoint runs/demo/checkpoint
    dopd preview data/assets/photos --annotations boxes:both hints
    dopd preview --import coco instances.json --images DIR --out rows/

A recipe brings its rows, annotation types and the student's chat template. With --checkpoint each
row has a rollout of that student, every token coloured by its regime: point at one to see gap,
confidences and the five best of teacher and student. A data set is shown with the types named
(NAME or NAME:FORM), or with all it has; its prompts without a template unless --model is given.
--import first turns another project's file into rows, and then shows them.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from dopd_vlm.config import ModelConfig, RunConfig, read_config
from dopd_vlm.data.annotations.registry import forms, type_names
from dopd_vlm.data.coords import resized_size
from dopd_vlm.data.formats.importers import IMPORTERS, import_folder
from dopd_vlm.data.preview import Prompts, ShownToken, preview_page, readable_prompts
from dopd_vlm.data.views import AnnotationChoice, Skipped, make_samples
from dopd_vlm.prompts import PromptTemplate, build_prompts
from dopd_vlm.scripts.wiring.command_line import (
    add_plugin_option,
    command_parser,
    is_recipe,
    load_plugins,
    recipe_path,
    with_plugins,
)  # fmt: skip
from dopd_vlm.scripts.wiring.row_check import load_reader
from dopd_vlm.scripts.wiring.samples import local_path, resolved, rows_of, score_answer
from dopd_vlm.types import Message, Sample

PAGE = "preview.html"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the page shows, and how."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    annotations: Sequence[AnnotationChoice]
    coords: str
    model: str | None = None
    template: PromptTemplate = field(default_factory=PromptTemplate)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    config: RunConfig | None = None


def main(arguments: Sequence[str]) -> int:
    """Reads the arguments and writes the page; 2 when they or the rows are wrong."""
    options = _arguments(arguments)
    try:
        load_plugins(options)
        if options.imported:
            _import(options)
        page, counts = _page(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page, encoding="utf-8")
    print(f"{counts[0]} rows, {counts[1]} left out: {options.out}")
    return 0


def rendered(
    sample: Sample, processor: Any, template: PromptTemplate, template_kwargs: Mapping[str, Any]
) -> Prompts:
    """The prompts as the processor makes them, special tokens visible, and what is trained on."""
    from dopd_vlm.models.chat import images_of, render  # here: it imports torch

    def ids_of(messages: list[Message]) -> list[int]:
        text = render(processor, messages, template_kwargs=template_kwargs)
        images = images_of(messages)
        visual = {"images": images} if images else {}
        return processor(text=[text], add_special_tokens=False, **visual)["input_ids"][0]

    tokenizer = getattr(processor, "tokenizer", processor)
    pair = build_prompts(sample, template)
    plain, privileged = ids_of(pair.plain), ids_of(pair.privileged)
    return Prompts(
        plain=processor.decode(plain, skip_special_tokens=False),
        privileged=processor.decode(privileged, skip_special_tokens=False),
        num_tokens=(len(plain), len(privileged)),
        special=tuple(tokenizer.all_special_tokens),
        sequence=_trained_on(sample, plain, tokenizer),
    )


def rollouts(
    config: RunConfig, checkpoint: str, samples: Sequence[Sample]
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Of each sample a rollout by the checkpoint: uid -> HTML, and uid -> its tokens as text.

    The teacher is the recipe's, and so is a frozen self-target: the weights training began with.
    """
    # Models are needed here only; without a checkpoint the page is made in seconds.
    from dopd_vlm.models.policy import load_policy
    from dopd_vlm.report.method_text import method_text
    from dopd_vlm.report.token_page import token_map_html
    from dopd_vlm.tracking.token_maps import token_maps
    from dopd_vlm.training.build import build_state, make_accelerator
    from dopd_vlm.training.samples import encode_sample

    student = replace(config.student, path=checkpoint)
    state = build_state(
        replace(config, student=student, resume=False), make_accelerator(config), Path(checkpoint)
    )
    if state.method.self_target == "frozen" and state.self_target is not None:
        state.self_target = load_policy(
            config.student, device=state.student.device, trainable=False, like=state.student
        )
    encoded = [encode_sample(state, sample) for sample in samples]
    maps = token_maps(state, encoded, score_answer=score_answer)
    empty = {"text": "", "context": "", "images": []}
    pages = {}
    for sample, record in zip(samples, maps, strict=True):
        # The card has images and prompts already.
        probe = {"uid": sample.uid, "answer": sample.answer, "plain": empty, "privileged": empty}
        pages[sample.uid] = token_map_html([probe], [record], method_text(state.method))
    return pages, {record["uid"]: tuple(record["tokens"]) for record in maps}


def _page(options: argparse.Namespace) -> tuple[str, tuple[int, int]]:
    """The page, and how many rows it shows and leaves out."""
    subject = _subject(options)
    processor = (
        None
        if subject.model is None
        else _processor(subject.model, needed=options.model is not None)
    )
    is_visual = hasattr(processor, "image_processor")
    resize = partial(resized_size, processor) if is_visual else None
    samples, skipped = make_samples(
        subject.rows, subject.annotations, coords=subject.coords, resize=resize
    )
    if processor is not None and subject.model is not None:
        samples, unreadable = _split_unreadable(samples, subject.model, subject.template)
        skipped += unreadable
    prompts = [
        rendered(sample, processor, subject.template, subject.template_kwargs)
        if processor
        else readable_prompts(sample)
        for sample in samples
    ]
    pages: dict[str, str] = {}
    if options.checkpoint:
        if subject.config is None:
            raise ValueError("--checkpoint needs a recipe: it says which teacher and method")
        pages, tokens = rollouts(subject.config, local_path(options.checkpoint), samples)
        prompts = [
            _with_rollout(text, tokens[sample.uid])
            for sample, text in zip(samples, prompts, strict=True)
        ]
    page = preview_page(subject.title, samples, prompts, skipped, pages)
    return page, (len(samples), len(skipped))


def _split_unreadable(
    samples: Sequence[Sample], model: str, template: PromptTemplate
) -> tuple[list[Sample], list[Skipped]]:
    """The samples that the model can take, and why it cannot take each other one."""
    reader = load_reader(ModelConfig(path=model), template)
    problems = [reader.problem(sample) if reader else None for sample in samples]
    pairs = list(zip(samples, problems, strict=True))
    bad = [
        Skipped(uid=sample.uid, file=str(sample.source.get("file") or ""), reason=problem)
        for sample, problem in pairs
        if problem is not None
    ]
    return [sample for sample, problem in pairs if problem is None], bad


def _trained_on(sample: Sample, prompt: Sequence[int], tokenizer: Any) -> tuple[ShownToken, ...]:
    """The plain prompt and the row's worked answer, or its answer, with the mask of the loss."""
    import torch

    from dopd_vlm.models.encoder import EncodedPrompt, collate

    text = str(sample.source.get("solution") or sample.answer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    given = EncodedPrompt(uid=sample.uid, text="", input_ids=torch.tensor(prompt))
    batch = collate([given], [torch.tensor([*ids, *end], dtype=torch.int64)], pad_id=0)
    places = [False] * len(prompt) + batch.mask[0].tolist()
    texts = tokenizer.batch_decode([[one] for one in [*prompt, *batch.completion_ids[0].tolist()]])
    return tuple(
        ShownToken(text=text, is_trained=trained)
        for text, trained in zip(texts, places, strict=True)
    )


def _with_rollout(prompts: Prompts, tokens: Sequence[str]) -> Prompts:
    """The rollout in place of the row's own answer."""
    context = tuple(token for token in prompts.sequence if not token.is_trained)
    sampled = tuple(ShownToken(text=text, is_trained=True) for text in tokens)
    return replace(prompts, sequence=(*context, *sampled))


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


def _subject(options: argparse.Namespace) -> Subject:
    model = None if options.model is None else local_path(options.model)
    if is_recipe(options.source):
        config = resolved(with_plugins(read_config(recipe_path(options.source))))
        data = config.data
        return Subject(
            title=str(options.source),
            rows=rows_of(data.train, data.split)[: options.rows],
            annotations=data.annotations,
            coords=data.coords,
            model=model or config.student.path,
            template=config.prompts,
            template_kwargs=config.chat.template_kwargs,
            config=config,
        )
    rows = rows_of(options.source, options.split)[: options.rows]
    names = options.annotations
    return Subject(
        title=str(options.source),
        rows=rows,
        annotations=_all_types(rows) if names is None else _choices(names),
        coords=options.coords,
        model=model,
    )


def _all_types(rows: Sequence[Mapping[str, Any]]) -> list[AnnotationChoice]:
    """Every known type that the rows have, as text; the first that can be drawn is drawn too."""
    held = {name for row in rows for name, value in _annotations(row).items() if value}
    names = [name for name in type_names() if name in held]
    drawn = next((name for name in names if "drawn" in forms(name)), None)
    return [(name, "both") if name == drawn else name for name in names]


def _annotations(row: Mapping[str, Any]) -> Mapping[str, Any]:
    annotations = row.get("annotations")
    return annotations if isinstance(annotations, Mapping) else {}


def _import(options: argparse.Namespace) -> None:
    """Writes the rows into --out; from then on they are the source, and the page is in the same folder."""
    kind, source = options.imported
    written, skipped = import_folder(kind, Path(source), options.out, images=options.images)
    print(f"{written} rows in {options.out}, {len(skipped)} skipped")
    options.source, options.out = str(options.out), options.out / PAGE


def _choices(names: Sequence[str]) -> list[AnnotationChoice]:
    pairs = [name.partition(":") for name in names]
    return [(name, form) if form else name for name, _, form in pairs]


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("preview", __doc__)
    parser.add_argument(
        "source", nargs="?", help="a recipe (.yaml), a data set as read_rows takes it, embedded:..."
    )
    parser.add_argument("--rows", type=int, default=20, help="how many rows to show")
    parser.add_argument(
        "--out", type=Path, help=f"the page, or its folder ({PAGE}); with --import that of the rows"
    )
    parser.add_argument("--annotations", nargs="*", help="NAME or NAME:FORM; default: all it has")
    parser.add_argument("--split", help="split of the data set")
    parser.add_argument("--coords", default="qwen3", help="coordinates of places in the text")
    parser.add_argument("--model", help="whose chat template and tokenizer show the prompts")
    parser.add_argument("--checkpoint", help="a student to sample from; the recipe has its teacher")
    parser.add_argument(
        "--import", nargs=2, dest="imported", metavar=("KIND", "FILE"),
        help=f"turn FILE into rows first; KIND: {', '.join(sorted(IMPORTERS))}",
    )  # fmt: skip
    parser.add_argument("--images", type=Path, help="with --import: folder of the images")
    add_plugin_option(parser)
    options = parser.parse_args(arguments)
    if bool(options.source) == bool(options.imported):
        parser.error("give a source, or --import KIND FILE")
    if options.imported and options.out is None:
        parser.error("--import needs --out, the folder to write the rows to")
    options.out = options.out or Path(PAGE)
    if not options.imported and options.out.is_dir():
        options.out /= PAGE
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
