"""Further views of a row, for methods that compare more than two: made only where a method names them.

None of them is the plain view, and none changes it: each is built from the row's annotations or from copies of
its images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from dopd_vlm.errors import unknown
from dopd_vlm.types import Sample, View

from .views import as_object

Row = Mapping[str, Any]
Make = Callable[[Row], Sample]

DEGRADED_SHARE = 0.1
"""Of an image's width and height that `degraded` keeps (VA-OPD, 2605.21924)."""
GREY = (127, 127, 127)
IRRELEVANT = "The morning train left on time, and nobody had forgotten an umbrella."
ROWS_TRIED = 32
"""Other rows that `wrong` looks at for annotations that say something else."""


def partial(sample: Sample, rows: Sequence[Row], index: int, make: Make) -> View:
    """The privileged view of every second entry of each list of annotations, from the first on.

    Annotations that are no lists, `privileged_context` and `teacher_images` are whole or nothing, and left out.
    """
    row = rows[index]
    annotations = as_object(row.get("annotations"), "annotations")
    kept = {name: value[::2] for name, value in annotations.items() if isinstance(value, list)}
    left = {key: row[key] for key in row if key not in ("privileged_context", "teacher_images")}
    return make({**left, "annotations": kept}).privileged


def wrong(sample: Sample, rows: Sequence[Row], index: int, make: Make) -> View:
    """This row's images with what another row's annotations say as text: the next row that says something else.

    Raises:
        ValueError: none of the next ROWS_TRIED rows does.
    """
    for other in _next_contexts(rows, index, make):
        if other and other != sample.privileged.context:
            return replace(sample.plain, context=other)
    raise ValueError(
        f"sample {sample.uid!r}{sample.place}: the view 'wrong' needs another row whose annotations say something "
        f"else as text, and the next {ROWS_TRIED} rows have none: set data.annotations to a text form"
    )


def _next_contexts(rows: Sequence[Row], index: int, make: Make) -> Iterator[str]:
    for step in range(1, min(ROWS_TRIED, len(rows) - 1) + 1):
        try:
            yield make(rows[(index + step) % len(rows)]).privileged.context
        except ValueError:
            continue  # a bad row is counted where its own turn comes


def irrelevant(sample: Sample, rows: Sequence[Row], index: int, make: Make) -> View:
    """This row's images with a sentence that has to do with no question."""
    return replace(sample.plain, context=IRRELEVANT)


def erased(sample: Sample, rows: Sequence[Row], index: int, make: Make) -> View:
    """Grey images of the same sizes, no context."""
    return View(images=tuple(Image.new("RGB", one.size, GREY) for one in sample.plain.images))


def degraded(sample: Sample, rows: Sequence[Row], index: int, make: Make) -> View:
    """The images at DEGRADED_SHARE of their width and height, brought back to size, no context."""
    return View(images=tuple(_degraded(one) for one in sample.plain.images))


def _degraded(image: Image.Image) -> Image.Image:
    width, height = (max(1, round(DEGRADED_SHARE * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX).resize(
        image.size, Image.Resampling.BILINEAR
    )


VIEWS: dict[str, Callable[[Sample, Sequence[Row], int, Make], View]] = {
    "partial": partial,
    "wrong": wrong,
    "irrelevant": irrelevant,
    "erased": erased,
    "degraded": degraded,
}
"""Further views by name."""


def with_views(
    sample: Sample, names: Sequence[str], rows: Sequence[Row], index: int, make: Make
) -> Sample:
    """The sample of rows[index] with these further views.

    Args:
        make: row -> Sample, as `sample` was made.

    Raises:
        ValueError: an unknown name; a view that the rows do not allow.
    """
    check_views(names)
    views = {name: VIEWS[name](sample, rows, index, make) for name in names}
    return replace(sample, views={**sample.views, **views})


def check_views(names: Sequence[str]) -> None:
    """Raises ValueError for a name that is no view's."""
    for name in names:
        if name not in VIEWS:
            raise unknown("view", name, ("plain", "privileged", *VIEWS))
