"""From rows to a tiny teacher and student that read them: what `dopd make-tiny` trains.

Both start from the embedded models, with the rows' words added. The teacher learns the answers in both
views, and to write the privileged text from the images. The student first learns to trust what it is
told: privileged prompts, with another row's images where the text carries the privilege. Then it learns
both views from the rows themselves, and stops as soon as its plain view reaches PLAIN_SHARE of the
teacher's, on rows that neither learnt from: it reasons well and sees poorly, which is what DOPD is for.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dopd_vlm.config import ModelConfig
from dopd_vlm.data.embedded.sets import embedded_model
from dopd_vlm.eval.benchmarks.benchmark import Benchmark
from dopd_vlm.eval.completions.requests import images_hash
from dopd_vlm.eval.harness import evaluate
from dopd_vlm.eval.results.results import Results
from dopd_vlm.eval.scorers import score
from dopd_vlm.models.policy import Policy, load_policy
from dopd_vlm.prompts import build_prompts
from dopd_vlm.scripts.make.embedded_models import tokenizer, vl_processor
from dopd_vlm.scripts.make.supervised import answer_batch, fit_
from dopd_vlm.types import Sample, ViewName

PLAIN_SHARE = 0.55
"""Of the teacher's plain accuracy, where the student's training ends."""
MOST_WORDS = 4000
MOST_WHOLE = 500
"""Golds of several words or with signs, in one token each, which no other way gives back as they are."""
WORD = re.compile(r"\w+")
CHECKED = 100
"""Questions behind the student's stop, a tenth of the rows at most; neither model learns from them."""
DESCRIBE = "Reference:"
"""Question of the teacher's third task, in words that every tokenizer here has."""
VIEWS: tuple[ViewName, ViewName] = ("plain", "privileged")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast, for a number of rows."""

    batch_size: int = 32
    teacher_steps: int
    told_steps: int
    """The student's steps on privileged prompts alone."""
    seen_steps: int
    """Its most steps on both views."""
    check_every: int = 5
    learning_rate: float = 1e-3
    seed: int = 0


def plan_of(num_rows: int, seed: int) -> Plan:
    """Twelve passes over the rows for the teacher, within 300 to 1,400 steps; up to 18 for the student."""
    steps = min(1400, max(300, 12 * num_rows // 32))
    return Plan(teacher_steps=steps, told_steps=steps, seen_steps=steps // 2, seed=seed)


def split(
    samples: Sequence[Sample], share: float, most: int, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """(training, held out): questions on one image stay on one side.

    Raises ValueError where all questions share their images, so that nothing can be set aside.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        images = sample.plain.images
        groups.setdefault(images_hash(images) if images else sample.uid, []).append(sample)
    keys = sorted(groups)
    order = np.random.default_rng([seed, 1]).permutation(len(keys))
    wanted = min(most, max(1, round(share * len(samples))))
    held: list[Sample] = []
    train: list[Sample] = []
    for index in order:
        (held if len(held) < wanted else train).extend(groups[keys[index]])
    if not train:
        raise ValueError(
            "all rows to learn from show the same images, so none can be set aside to test on: "
            "rows of more images are needed"
        )
    return train, held


def words_of(samples: Sequence[Sample]) -> list[str]:
    """Words of prompts in both views and of answers that the embedded tokenizer lacks, most frequent first."""
    counts: Counter[str] = Counter()
    for sample in samples:
        prompts = build_prompts(sample)
        for view in VIEWS:
            for message in prompts.view(view):
                counts.update(WORD.findall(text_of(message["content"])))
        counts.update(WORD.findall(sample.answer))
        signs = text_of(prompts.view("privileged")[-1]["content"]) + sample.answer
        counts.update(sign for sign in signs if not sign.isspace() and not WORD.match(sign))
    known = tokenizer().get_vocab()
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [word for word in ranked if word not in known][:MOST_WORDS]


def text_of(content: str | list[dict]) -> str:
    """The words of a message's content."""
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def whole_answers(samples: Sequence[Sample], words: Sequence[str]) -> list[str]:
    """Golds that, word by word, would not come back as they are: each needs a token of its own."""
    tok = tokenizer(words)
    counts = Counter(sample.answer for sample in samples)
    broken = [
        text
        for text, _ in counts.most_common()
        if tok.decode(tok(text).input_ids, skip_special_tokens=True) != text
    ]
    return broken[:MOST_WHOLE]


def unwritable(samples: Sequence[Sample], policy: Policy) -> int:
    """Golds that the scorer refuses once tokenizer and decoder have passed them on."""
    tok = policy.tokenizer
    texts = [tok.decode(tok(s.answer).input_ids, skip_special_tokens=True) for s in samples]
    return sum(score(text, s).correct < 1 for text, s in zip(texts, samples, strict=True))


def warm_start(size: str, samples: Sequence[Sample]) -> Policy:
    """The embedded model of that size, `teacher` or `student`, with the samples' words added."""
    has_images = any(sample.privileged.images for sample in samples)
    name = f"{size}_{'vl' if has_images else 'text'}"
    policy = load_policy(
        ModelConfig(path=str(embedded_model(name)), dtype="float32"), device="cpu", trainable=True
    )
    words = words_of(samples)
    tok = tokenizer(words, whole_answers(samples, words))
    policy.model.resize_token_embeddings(len(tok), mean_resizing=False)
    return Policy(model=policy.model, processor=vl_processor(tok) if has_images else tok, path=name)


def make_teacher(samples: Sequence[Sample], plan: Plan) -> Policy:
    """Trained in turn on the plain view, the privileged one, and on writing the privileged text itself.

    The third is what makes a good reader of images of few rows: a text names what a question asks, and more.
    """
    torch.manual_seed(plan.seed)
    policy = warm_start("teacher", samples)
    draw = np.random.default_rng([plan.seed, 2])

    def batches() -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(drawn(samples, plan, plan.teacher_steps, draw)):
            task = step % 3
            given = [describing(sample) for sample in batch] if task == 2 else batch
            yield batch_of(policy, given, VIEWS[task == 1])

    fit_(policy, batches(), steps=plan.teacher_steps, learning_rate=plan.learning_rate, warmup=30)
    return policy


def describing(sample: Sample) -> Sample:
    """The sample that asks what its images show: its privileged text. Itself, where it has no such text."""
    if not (sample.plain.images and sample.privileged.context):
        return sample
    return replace(sample, question=DESCRIBE, choices=None, answer=sample.privileged.context)


def make_student(
    samples: Sequence[Sample], checked: Sequence[Sample], plan: Plan, plain_goal: float
) -> Policy:
    """Trained to read privilege, then on both views until its plain accuracy reaches the goal."""
    torch.manual_seed(plan.seed + 1)
    policy = warm_start("student", samples)
    draw = np.random.default_rng([plan.seed, 3])
    told = (
        batch_of(policy, misled(batch, draw), "privileged")
        for batch in drawn(samples, plan, plan.told_steps, draw)
    )
    fit_(policy, told, steps=plan.told_steps, learning_rate=plan.learning_rate, warmup=30)

    def both() -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(drawn(samples, plan, plan.seen_steps, draw)):
            if step % plan.check_every == 0 and reached(policy, checked, plain_goal):
                print(f"the student's plain view is at its goal after {step} steps", flush=True)
                return
            is_plain = step % 2 == 0
            yield batch_of(policy, batch if is_plain else misled(batch, draw), VIEWS[not is_plain])

    rate = plan.learning_rate / 2
    fit_(policy, both(), steps=2 * plan.seen_steps, learning_rate=rate, warmup=10)
    return policy


def reached(policy: Policy, checked: Sequence[Sample], goal: float) -> bool:
    """Whether the plain accuracy is the goal's."""
    return measured(policy, checked, "plain").accuracy >= goal


def drawn(
    samples: Sequence[Sample], plan: Plan, steps: int, draw: np.random.Generator
) -> Iterator[list[Sample]]:
    """Batches in shuffled passes over the samples."""
    order: list[int] = []
    for _ in range(steps):
        while len(order) < plan.batch_size:
            order += draw.permutation(len(samples)).tolist()
        batch, order = order[: plan.batch_size], order[plan.batch_size :]
        yield [samples[index] for index in batch]


def misled(batch: Sequence[Sample], draw: np.random.Generator) -> list[Sample]:
    """The samples with privileged images of one another, where text tells what matters."""
    others = draw.permutation(len(batch))
    return [
        replace(one, privileged=replace(one.privileged, images=batch[other].privileged.images))
        if one.privileged.context
        and len(batch[other].privileged.images) == len(one.privileged.images)
        else one
        for one, other in zip(batch, others, strict=True)
    ]


def batch_of(policy: Policy, samples: Sequence[Sample], view: ViewName) -> dict[str, Tensor]:
    """Model inputs of the samples' prompts in that view, and their answers."""
    return answer_batch(
        policy,
        [build_prompts(sample).view(view) for sample in samples],
        [sample.answer for sample in samples],
        [image for sample in samples for image in sample.view(view).images],
    )


def longest(samples: Sequence[Sample], policy: Policy) -> int:
    """Tokens of the longest answer with its end."""
    return max(len(policy.tokenizer(sample.answer).input_ids) for sample in samples) + 1


def measured(policy: Policy, samples: Sequence[Sample], view: ViewName) -> Results:
    """Greedy accuracy of the samples by each one's own answer type."""
    task = Benchmark(name="rows", description="rows", rows="", answer_type="row")
    return evaluate(
        policy, task, view=view, samples=samples, batch_size=64,
        generation={"max_completion_length": longest(samples, policy)},
    )  # fmt: skip


def save(policy: Policy, folder: Path) -> None:
    """A Hugging Face folder in bfloat16; the model goes on with what was saved."""
    policy.model.to(torch.bfloat16).save_pretrained(folder)
    policy.processor.save_pretrained(folder)
    policy.model.to(torch.float32)


def verdict(results: Mapping[tuple[str, str], Results]) -> str:
    """Whether DOPD is worth trying: what the privileged student has over its plain view."""
    plain, told = (results["student", view].accuracy for view in VIEWS)
    teacher = results["teacher", "plain"].accuracy
    gain = f"the student is right in {told:.0%} with privilege and in {plain:.0%} without"
    if told < plain + 0.1:
        return f"DOPD is not worth trying on these: {gain}; the annotations tell it too little"
    if teacher < plain:
        return (
            f"DOPD may not help: {gain}, but the teacher in {teacher:.0%} only; it needs more rows"
        )
    return f"DOPD is worth trying: {gain}, the teacher in {teacher:.0%} without"
