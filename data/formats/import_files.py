"""Pictures in folders and in WebDataset shards -> our rows."""

from collections.abc import Iterator
from pathlib import Path

from ..rows import Row, read_rows
from ..sources.webdataset import PICTURE_SUFFIXES


def from_folder(source: Path, question: str) -> Iterator[Row]:
    """A row per picture below a folder; the answer is the name of the folder it lies in."""
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() in PICTURE_SUFFIXES:
            name = path.relative_to(source)
            yield {
                "uid": name.with_suffix("").as_posix().replace("/", "-"),
                "images": [name.as_posix()],
                "question": question,
                "answer": "" if path.parent == source else path.parent.name,
                "meta": {"source": source.name},
            }


def from_webdataset(source: Path, question: str) -> Iterator[Row]:
    """A row per sample of a `.tar` shard or a folder of shards.

    Columns in a sample's `json` are kept; without `question` and `messages` the question is the
    default one, and `caption` or `txt` its answer and a caption, `cls` its answer.
    """
    for row in read_rows(source):
        made = {"meta": {"source": source.name}, **row}
        if made.get("question") is None and made.get("messages") is None:
            caption = str(row.get("caption") or row.get("txt") or "").strip()
            answer = row.get("answer")
            made["question"] = question
            made["answer"] = row.get("cls") or caption if answer is None else answer
            if caption and not row.get("annotations"):
                made["annotations"] = {"captions": [caption]}
        yield made
