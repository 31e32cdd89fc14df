"""Makes what ships under data/assets: test rows, tokenizer, tiny teachers and students.

    python scripts/make/embedded.py [rows teacher_vl student_vl teacher_text student_text]

Without names: everything, in this order. Each model is trained by supervised learning on worked
answers, on plain and privileged prompts, and ends with a table of greedy accuracies. The teachers
have seen what the tests show; the image student has seen clean images only, the text student
is missing four of the ten verbs, and both are reliable once the privilege tells them.

With one thread per model a step takes 0.25 to 0.4 s: 9 minutes for student_vl, 13 for teacher_vl,
3 for each text model. Accuracy of the shipped checkpoints on test / shifted (greedy, as printed):

    teacher_vl    plain 1.000 / 0.995   captions 1.000 / 1.000   hints 1.000 / 0.995
    student_vl    plain 0.604 / 0.430   captions 1.000 / 1.000   hints 1.000 / 1.000
    teacher_text  plain 1.000 / 1.000   hints 1.000 / 1.000
    student_text  plain 0.571 / 0.360   hints 1.000 / 1.000
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopd_vlm.data.embedded import lists, shapes
from dopd_vlm.data.embedded.sets import ASSETS, MODELS, embedded_rows
from dopd_vlm.data.views import make_sample
from dopd_vlm.models.encoder import encode_prompt
from dopd_vlm.models.policy import Policy
from dopd_vlm.prompts import build_prompts
from dopd_vlm.rollout import generate
from dopd_vlm.scripts.make.embedded_models import text_model, tokenizer, vl_model, vl_processor
from dopd_vlm.scripts.make.supervised import answer_batch, fit_
from dopd_vlm.types import Sampling, ViewName

NUM_TEST, NUM_SHIFTED = 240, 200
PRETRAIN_DIM = 1.4
"""Largest dimness in training: beyond shapes.TARGET_DIM, so that the tests lie inside the range."""
UNKNOWN_VERBS = ("earns", "wins", "gives", "drops")
"""Verbs whose meaning the text student is never taught."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one checkpoint is trained."""

    steps: int
    learning_rate: float
    batch_size: int = 48
    warmup: int = 60
    seed: int = 0
    row: Callable[[np.random.Generator, bool], Row]
    """(generator, is_privileged) -> a training row."""
    privileged: tuple[tuple[str, ...], ...]
    """Annotation types of the privileged prompts, one tuple per form, drawn uniformly."""
    privileged_share: float
    """Share of the batches that is privileged."""


def image_scene(generator: np.random.Generator, is_all: bool) -> shapes.Scene:
    """2 x 2 or, a third of the time, 3 x 2 cells."""
    columns = 3 if generator.random() < 0.35 else 2
    pairs = shapes.all_pairs() if is_all else shapes.seen_pairs()
    return shapes.make_scene(generator, columns=columns, pairs=pairs)


def teacher_image_row(generator: np.random.Generator, is_privileged: bool) -> Row:
    """All pairs, from clean to dimmer than the tests."""
    scene = image_scene(generator, True)
    image = shapes.render(scene, generator, PRETRAIN_DIM * generator.random())
    return shapes.make_row(scene, image, "made", "pretrain", 0)


def student_image_row(generator: np.random.Generator, is_privileged: bool) -> Row:
    """Clean images of seen pairs; with privilege, half the time the dim image of another scene,
    so that it learns to trust what it is told but not to see in dim light."""
    scene = image_scene(generator, is_privileged)
    if is_privileged and generator.random() < 0.5:
        other = shapes.make_scene(generator, columns=scene.columns)
        image = shapes.render(other, generator, PRETRAIN_DIM * generator.random())
    else:
        image = shapes.render(scene, generator, 0.0)
    return shapes.make_row(scene, image, "made", "pretrain", 0)


def teacher_list_row(generator: np.random.Generator, is_privileged: bool) -> Row:
    """All verbs, 2 to 5 changes."""
    lengths = (4, 5) if generator.random() < 0.4 else (2, 3)
    return lists.make_row(generator, "made", "pretrain", lengths=lengths)


def student_list_row(generator: np.random.Generator, is_privileged: bool) -> Row:
    """Known verbs; where hints tell, also the unknown ones with an operation drawn anew each time,
    so that nothing but the hint says which."""
    verbs = {v: op for v, op in lists.VERBS.items() if v not in UNKNOWN_VERBS}
    if is_privileged:
        verbs |= {v: str(generator.choice(["add", "take"])) for v in UNKNOWN_VERBS}
    lengths = (4, 5) if generator.random() < 0.3 else (2, 3)
    return lists.make_row(generator, "made", "pretrain", lengths=lengths, verbs=verbs)


IMAGE_FORMS = (
    *(("captions",),) * 5,
    *(("hints",),) * 3,
    ("captions", "hints"),
    *(("boxes",),) * 2,
)
"""Captions most often: the demo's privilege."""
RECIPES = {
    "teacher_vl": Recipe(
        steps=1900, learning_rate=2e-3, row=teacher_image_row, privileged=IMAGE_FORMS,
        privileged_share=0.5,
    ),
    "student_vl": Recipe(
        steps=2000, learning_rate=2e-3, row=student_image_row, privileged=IMAGE_FORMS,
        privileged_share=0.6, seed=1,
    ),
    "teacher_text": Recipe(
        steps=900, learning_rate=2e-3, row=teacher_list_row, privileged=(("hints",),),
        privileged_share=0.3, seed=2,
    ),
    "student_text": Recipe(
        steps=900, learning_rate=2e-3, row=student_list_row, privileged=(("hints",),),
        privileged_share=0.6, seed=3,
    ),
}  # fmt: skip


def batches(policy: Policy, recipe: Recipe) -> Iterator[dict[str, Tensor]]:
    """Model inputs with labels, one batch a step; a function of the recipe's seed alone."""
    generator = np.random.default_rng([7, recipe.seed])
    for _ in range(recipe.steps):
        form = _draw_form(generator, recipe)
        rows = [recipe.row(generator, bool(form)) for _ in range(recipe.batch_size)]
        samples = [make_sample(row, form) for row in rows]
        yield answer_batch(
            policy,
            [build_prompts(sample).view("privileged") for sample in samples],
            [row["meta"]["solution"] for row in rows],
            [image for sample in samples for image in sample.privileged.images],
        )


def _draw_form(generator: np.random.Generator, recipe: Recipe) -> tuple[str, ...]:
    """The annotation types one batch shows, () for a plain one: one form a batch pads least."""
    if generator.random() >= recipe.privileged_share:
        return ()
    return recipe.privileged[int(generator.integers(len(recipe.privileged)))]


def accuracy(policy: Policy, rows: Sequence[Row], view: ViewName, types: Sequence[str]) -> float:
    """Share of rows whose greedy completion ends in `answer N` with the right N."""
    pairs = [build_prompts(make_sample(row, types)) for row in rows]
    prompts = [encode_prompt(policy.encoder, pair.view(view), uid=pair.uid) for pair in pairs]
    done = generate(policy, prompts, Sampling(max_completion_length=40))
    texts = [policy.tokenizer.decode(r.completion_ids, skip_special_tokens=True) for r in done]
    right = [
        text.endswith(f"answer {row['answer']}") for text, row in zip(texts, rows, strict=True)
    ]
    return sum(right) / len(rows)


def report(name: str, policy: Policy, num: int | None = None) -> None:
    """The accuracy table of one checkpoint."""
    is_visual = name.endswith("vl")
    forms = (("captions",), ("hints",), ("boxes",)) if is_visual else (("hints",),)
    for split in ("test", "shifted"):
        rows = embedded_rows(f"embedded:{'shapes' if is_visual else 'lists'}/{split}")[:num]
        cells = [f"plain {accuracy(policy, rows, 'plain', ()):.3f}"]
        cells += [f"{f[0]} {accuracy(policy, rows, 'privileged', f):.3f}" for f in forms]
        print(f"{name} {split}: " + ", ".join(cells), flush=True)
    if is_visual:
        rows = shapes.rows("test", 100, 9, dim=0.0)
        print(f"{name} clean: plain {accuracy(policy, rows, 'plain', ()):.3f}", flush=True)


def make_model(name: str) -> None:
    """Train one checkpoint and save it in bfloat16, in whose precision it is also evaluated."""
    recipe, folder = RECIPES[name], ASSETS / name
    torch.manual_seed(recipe.seed)
    size = name.split("_")[0]
    is_visual = name.endswith("vl")
    processor = vl_processor() if is_visual else tokenizer()
    model = vl_model(size) if is_visual else text_model(size)
    print(f"{name}: {model.num_parameters():,} parameters", flush=True)
    policy = Policy(model=model, processor=processor, path=name)
    fit_(
        policy, batches(policy, recipe), steps=recipe.steps, learning_rate=recipe.learning_rate,
        warmup=recipe.warmup,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    model.to(torch.float32)
    report(name, policy)


def make_rows() -> None:
    """The shipped test sets: metadata.jsonl, and PNG files where there are images."""
    for name, make in (("shapes", shapes.rows), ("lists", lists.rows)):
        for split, num in (("test", NUM_TEST), ("shifted", NUM_SHIFTED)):
            folder = ASSETS / (name if split == "test" else f"{name}_shifted")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _write_rows(folder, make(split, num))


def _write_rows(folder: Path, rows: Sequence[Row]) -> None:
    lines = []
    for index, row in enumerate(rows):
        files = []
        for image in row["images"]:
            files.append(f"{index:03d}.png")
            image.save(folder / files[-1], optimize=True)
        lines.append(json.dumps({**row, "images": files}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Make what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", choices=["rows", *MODELS, []], help="default: all")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in options.names or ["rows", *MODELS]:
        if name == "rows":
            make_rows()
        else:
            make_model(name)


if __name__ == "__main__":
    main(sys.argv[1:])
