"""Documents that hold measured tables between two marks, so that no figure there is typed."""

from __future__ import annotations

from pathlib import Path

from erasure_core.errors import InvalidFile
from erasure_core.safe_files import write_bytes

DOCS = Path(__file__).parent.parent / "docs"


def put_between(document: Path, begin: str, end: str, tables: str) -> None:
    """Replace what stands between two marks of a Markdown file.

    Raises:
        InvalidFile: the file cannot be read or lacks the marks.
        OutputError: it cannot be written.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(f"{document} cannot be read ({error}); give a Markdown file with the marks.") from error
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise InvalidFile(f"{document} lacks the marks {begin} and {end}, between which the tables go; add them.")
    write_bytes(document, f"{before}{begin}\n\n{tables}\n\n{end}{after}".encode())
