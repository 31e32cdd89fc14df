"""Small changes of meaning, each of which some test must notice: `MUTATIONS`.

`old` occurs once in the file; `tests` are the test files that belong to the place.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One change."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def part(self) -> str:
        """core, data or eval."""
        return {"dopd_vlm": "core"}.get(self.file.partition("/")[0], self.file.partition("/")[0])


def _of(file: str, tests: str, *changes: tuple[str, str]) -> list[Mutation]:
    names = tuple(f"tests/test_{name}.py" for name in tests.split())
    return [Mutation(file=file, old=old, new=new, tests=names) for old, new in changes]


MUTATIONS: tuple[Mutation, ...] = (
    *_of(
        "dopd_vlm/routing.py",
        "routing",
        ("low = gap < thresholds.gap", "low = gap <= thresholds.gap"),
        ("thresholds.q_teacher + thresholds.q_self", "thresholds.q_teacher"),
        ("torch.where(q_teacher >= q_self,", "torch.where(q_teacher > q_self,"),
        ("keep = gap <= largest if", "keep = gap < largest if"),
        ("largest = quantile(gap, 1.0 - trim)", "largest = quantile(gap, 1.0 - trim / 2)"),
        ("q_self=average(own.exp())", "q_self=average(own).__abs__()"),
        ("position = round(share", "position = int(share"),
        ("(lengths * (num_sequences or len(mask)))", "(lengths * len(mask))"),
        ("(num_tokens or max(1, int(valid.sum())))", "max(1, mask.numel())"),
        ("~mask.bool() | (gap > thresholds.largest_gap)", "~mask.bool()"),
    ),
    *_of(
        "dopd_vlm/routing.py",
        "noise",
        ("(regime == Regime.HT) | (regime == Regime.HS)", "regime == Regime.HT"),
    ),
    *_of(
        "dopd_vlm/training/noise.py",
        "noise",
        ("(gap > noise).sum()", "(gap >= noise).sum()"),
        ("NOISE_QUANTILE = 0.95", "NOISE_QUANTILE = 0.5"),
        ("samples * size, rollouts * size", "samples, rollouts"),
        ("(gap - before[id(r)]).abs()", "gap - before[id(r)]"),
    ),
    *_of(
        "dopd_vlm/training/targets.py",
        "noise step",
        ("first = int(self.mask[: part.start].sum())", "first = 0"),
    ),
    *_of(
        "dopd_vlm/routers/gap.py",
        "noise step",
        ("max(gap, settings.gap_floor or 0.0)", "min(gap, settings.gap_floor or gap)"),
        ("trim_of=settings.trim_of", 'trim_of="gap"'),
        ("train_outliers=settings.train_outliers", "train_outliers=True"),
        ("statistic=settings.statistic", 'statistic="mean"'),
    ),
    *_of(
        "dopd_vlm/training/step.py",
        "step",
        (
            "recomputing(state):\n        output.loss.backward()",
            "recomputing(state):\n        (2 * output.loss).backward()",
        ),
        ("state.scheduler.step()", "pass"),
        ("if not norm.isfinite():", "if norm.isnan():"),
    ),
    *_of(
        "dopd_vlm/train.py",
        "train",
        ('{line["row"] for line in lines}', "set()"),
        ("seed * 1_000_003 + epoch", "seed * 1_000_003"),
    ),
    *_of(
        "data/coords.py",
        "coords",
        ("round(value / cells[index % 2])", "int(value / cells[index % 2])"),
        ("RELATIVE_STEPS = 1000", "RELATIVE_STEPS = 999"),
        ("return (self, *self.rest)[index]", "return self"),
        ("value * scale * cells[index % 2]", "value * scale * cells[0]"),
    ),
    *_of(
        "data/images.py",
        "images fuzz",
        ('Image.new("RGBA", rgba.size, "white")', 'Image.new("RGBA", rgba.size, "black")'),
        ("upright = ImageOps.exif_transpose(image)", "upright = image"),
        ("value / 256", "value / 257"),
        ("if width * height > max_pixels:", "if width * height >= 2 * max_pixels:"),
        ("max(image.size) > MAX_ASPECT", "max(image.size) > 2 * MAX_ASPECT"),
        ("if not target.is_relative_to(folder):", "if False:"),
        ('or ".." in pure.parts:', "or False:"),
    ),
    *_of(
        "data/annotations/boxes.py",
        "annotations",
        ("left + width, top + height)", "width, height)"),
        ("out = max(-xyxy[0], -xyxy[1], ", "out = max("),
        ("if box.image == index]", "]"),
    ),
    *_of(
        "data/rows.py",
        "rows",
        ("doubles[index] = seen[text]", "doubles[index] = index"),
        ("splits = (split if head is None else", "splits = (None if head is None else"),
    ),
    *_of(
        "data/questions.py",
        "views rows",
        ("last = users[-1]", "last = users[0]"),
        ("replies[0] if replies else None", "replies[-1] if replies else None"),
        ("if choices and len(choices) < 2:", "if False:"),
    ),
    *_of("data/views.py", "views every_row rows", ('if "problem" in origin_of(row):', "if False:")),
    *_of(
        "eval/results/stats.py",
        "stats",
        ("math.sqrt(groups / (groups - 1) * squares) / n,", "math.sqrt(squares) / n,"),
        ("a[uid] - b[uid] for uid in a", "b[uid] - a[uid] for uid in a"),
        ("(clusters or {}).get(uid, uid)", "uid"),
        ("min(1.0, 2 * tail / 2**n)", "min(1.0, tail / 2**n)"),
        ("inv_cdf(0.975)", "inv_cdf(0.95)"),
        ("range(min(only_a, only_b) + 1)", "range(min(only_a, only_b))"),
        ("(len(set(one)) - 1) / (len(one) - 1)", "len(set(one)) / len(one)"),
        ("2.0 ** (1 - num_clusters)", "2.0 ** (-num_clusters)"),
    ),
    *_of(
        "eval/scoring/boxes.py",
        "scorers",
        ("float(overlap >= threshold)", "float(overlap > threshold)"),
        ("last = max(matches,", "last = min(matches,"),
        ("(sum(areas) - width * height)", "sum(areas)"),
    ),
    *_of(
        "eval/scoring/answers.py",
        "scorers numbers harness",
        ('text = text.rpartition("</think>")[2]', "text = text"),
        ('return value / 100 if number.endswith("%") else value', "return value"),
        ("(programs or blocks or [text])[-1]", "(programs or blocks or [text])[0]"),
        ('return None if "<think>" in text else text', "return text"),
    ),
)
