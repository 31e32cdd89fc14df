"""Methods and divergences of other packages; the page that tells how, run as it stands."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from routed_case import Case, small_k

from dopd_vlm import divergences, methods, plugins

PAGE = Path(__file__).parents[1] / "dopd_vlm" / "ADD_A_METHOD.md"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path in which distributions can be installed; what they register is gone afterwards."""
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    monkeypatch.setattr(divergences, "DIVERGENCES", dict(divergences.DIVERGENCES))
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.forget()
    yield tmp_path
    plugins.forget()
    sys.modules.pop("my_method", None)


def install(folder: Path, distribution: str, entries: str) -> None:
    """What pip leaves of a distribution: its metadata beside its modules."""
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entries)


def page_blocks() -> dict[str, list[str]]:
    blocks: dict[str, list[str]] = {}
    for kind, code in re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8")):
        blocks.setdefault(kind, []).append(code)
    return blocks


def install_page(site: Path) -> None:
    """The page's module and entry point, as a distribution."""
    blocks = page_blocks()
    (site / "my_method.py").write_text(blocks["python"][0])
    entries = blocks["toml"][0].replace('[project.entry-points."', "[").replace('"]', "]")
    install(site, "mine", entries.replace('"', ""))


def test_the_page_is_a_method_that_trains(site):
    install_page(site)
    method = methods.method("dopd_hellinger")
    case = Case(1)
    output, d_hidden, d_head = case.grads(small_k(method))
    assert output.loss > 0 and d_hidden.abs().sum() > 0 and d_head.abs().sum() > 0
    whole = case.grads(small_k(method), chunk_size=2)
    torch.testing.assert_close(whole[1], d_hidden, rtol=1e-9, atol=1e-12)
    for code in page_blocks()["python"][1:]:
        (site / "rest.py").write_text("from dopd_vlm import methods\n" + code)
        runpy.run_path(str(site / "rest.py"))
    assert methods.method("contrast").needs_teacher


def test_a_broken_plug_in_is_named_and_the_rest_works(site):
    (site / "broken.py").write_text("import no_such_library\n")
    install(site, "bad", "[dopd_vlm.methods]\nnothing = broken:METHOD\n")
    install_page(site)
    with pytest.warns(UserWarning, match=r"'nothing' of bad \(broken:METHOD\).*no_such_library"):
        assert methods.method("dopd_hellinger").name == "dopd_hellinger"


def test_a_plug_in_that_is_no_method_is_left_out(site):
    (site / "text.py").write_text("METHOD = 'dopd'\n")
    install(site, "text", "[dopd_vlm.methods]\nnothing = text:METHOD\n")
    with pytest.raises(ValueError, match="unknown method 'nothing'"):
        methods.method("nothing")


def test_a_name_that_is_taken_is_refused(site):
    with pytest.raises(ValueError, match="method 'opd' exists already"):
        methods.register(methods.uniform("opd", methods.SELF))
