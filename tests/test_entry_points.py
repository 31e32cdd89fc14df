"""Annotation types of other packages: found by entry point, and a broken one harms nobody else."""

from pathlib import Path

import pytest
from PIL import Image

from dopd_vlm.data.annotations import registry as annotations
from dopd_vlm.data.annotations.registry import annotation_type, forms, type_names
from dopd_vlm.data.views import make_sample

MODULE = '''
class Arrows:
    """Row format: [{"from": [x, y], "to": [x, y]}] in pixels."""

    def parse(self, raw, sizes):
        for item in raw or ():
            if "from" not in item:
                raise ValueError(f"an arrow must have from, got {item!r}")
        return tuple((tuple(item["from"]), tuple(item["to"])) for item in raw or ())

    def describe(self, value, frame):
        return "\\n".join(f"arrow from {start} to {end}" for start, end in value)


class Silent:
    def parse(self, raw, sizes):
        return raw
'''
ROW = {
    "uid": "r", "images": [Image.new("RGB", (40, 30))], "question": "where?", "answer": "there",
    "annotations": {"arrows": [{"from": [1, 2], "to": [3, 4]}], "captions": ["grey"]},
}  # fmt: skip


def install(folder: Path, distribution: str, entries: dict[str, str]) -> None:
    """What pip leaves of a distribution: its metadata beside its modules."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
    (info / "entry_points.txt").write_text(f"[{annotations.ENTRY_POINT_GROUP}]\n{lines}")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path in which distributions can be installed."""
    (tmp_path / "arrow_types.py").write_text(MODULE)
    (tmp_path / "bad_types.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    annotations._plugins.cache_clear()
    annotations._loaded.cache_clear()
    yield tmp_path
    annotations._plugins.cache_clear()
    annotations._loaded.cache_clear()


@pytest.mark.parametrize("target", ["arrow_types:Arrows", "arrow_types:INSTANCE"])
def test_a_type_is_found_listed_used_and_validated(site, target):
    (site / "arrow_types.py").write_text(f"{MODULE}\nINSTANCE = Arrows()\n")
    install(site, "arrow-types", {"arrows": target})
    assert "arrows" in type_names() and forms("arrows") == ("text",)
    assert annotation_type("arrows") is annotation_type("arrows")
    sample = make_sample(ROW, ["captions", "arrows"])
    assert sample.privileged.context == "captions:\ngrey\narrows:\narrow from (1, 2) to (3, 4)"
    wrong = {**ROW, "annotations": {"arrows": [{"to": [3, 4]}]}}
    with pytest.raises(ValueError, match=r"row 'r': annotations\.arrows: an arrow must have from"):
        make_sample(wrong, ["arrows"])
    with pytest.raises(ValueError, match="unknown annotation type 'arows'; near: arrows"):
        annotation_type("arows")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("bad_types:Arrows", "no_such_library"),
        ("arrow_types:Absent", "Absent"),
        ("arrow_types:Silent", "describe"),
    ],
)
def test_a_broken_one_names_its_distribution_and_spares_the_others(site, target, message):
    install(site, "broken-types", {"broken": target})
    install(site, "arrow-types", {"arrows": "arrow_types:Arrows"})
    assert {"arrows", "boxes", "broken"} <= set(type_names())
    assert make_sample(ROW, ["captions", "arrows"]).privileged.context.endswith("(3, 4)")
    with pytest.raises(ValueError, match=rf"(?s)'broken'.*broken-types.*{message}"):
        annotation_type("broken")


def test_a_name_that_is_taken_stays_with_its_owner_and_warns(site):
    install(site, "arrow-types", {"captions": "arrow_types:Arrows", "arrows": "arrow_types:Arrows"})
    with pytest.warns(UserWarning, match="'captions'.*arrow-types"):
        assert make_sample(ROW, ["captions"]).privileged.context == "captions:\ngrey"
    assert annotation_type("arrows").parse(None, []) == ()
