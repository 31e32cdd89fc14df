"""The code of data/README.md runs as it stands, and its shown output is what comes out."""

import re
from pathlib import Path

from dopd_vlm.data import annotations

PAGE = Path(__file__).parents[1] / "data" / "README.md"


def test_the_page_s_code_runs_and_prints_what_the_page_shows(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(annotations, "TYPES", dict(annotations.TYPES))
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 6
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    shown = re.search(r"print\(sample\.privileged\.context\)\n```\n\n((?:    .*\n)+)", page)
    assert shown is not None
    assert capsys.readouterr().out == re.sub("(?m)^    ", "", shown.group(1))


def test_the_page_names_every_type() -> None:
    page = PAGE.read_text(encoding="utf-8")
    table = page[page.index("## The types") : page.index("## Add an")]
    assert set(re.findall(r"`(\w+)`(?=[^|]*\|)", table)) >= set(annotations.TYPES)
