"""Samples whose equal pictures are one object: a picture of many questions is held once."""

from dataclasses import replace

from PIL import Image

from dopd_vlm.types import Sample, View

from .completions.requests import pictures_hash


class PicturePool:
    """Every picture that its samples show; 18 questions on one take the memory of one.

    POPE's 9,000 questions have 500 pictures, VSI-Bench's 5,130 have the frames of 288 videos.
    """

    def __init__(self) -> None:
        self._held: dict[str, Image.Image] = {}

    def share(self, sample: Sample) -> Sample:
        """The sample with each picture replaced by the first equal one."""
        return replace(
            sample, plain=self._view(sample.plain), privileged=self._view(sample.privileged)
        )

    def _view(self, view: View) -> View:
        images = [self._held.setdefault(pictures_hash([one]), one) for one in view.images]
        return replace(view, images=tuple(images))
