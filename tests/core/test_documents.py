"""What the documents tell users to type is what the command line takes: its own parser reads every complete command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from erasure_core.cli.main import parser

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?<![\w-])concept-erasure ([a-z]+ [^`\n]+)")
"""A name and something behind it: a command that is only named is not complete."""
VARIABLE = re.compile(r"(?<=\s)\$\w+")
"""Without quotes a shell puts any number of arguments in its place; the document does not say which."""


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every complete command in a document; one may go on over several lines."""
    for found in COMMAND.finditer(text.replace("\\\n", " ")):
        yield shlex.split(VARIABLE.sub("", found[1]))


def linked(text: str) -> Iterator[str]:
    """What a document links to in this repository: paths, maybe with a heading's anchor."""
    return (link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in commands(page.read_text(encoding="utf-8")):
        try:
            assert parser().parse_args(arguments).command == arguments[0]
        except SystemExit:
            pytest.fail(f"{shlex.join(arguments)}: {capsys.readouterr().err}")


def test_there_are_commands_and_wrong_ones_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    found = [arguments for page in PAGES for arguments in commands(page.read_text(encoding="utf-8"))]
    assert len(found) >= 10 and {"erase", "generate", "explore", "report", "purify"} <= {first for first, *_ in found}
    wrong = "    concept-erasure erase --model M --concept ball --out b.safetensors --effrt fast $OPTIONS"
    (arguments,) = commands(f"{wrong}\nor `concept-erasure bake`")
    with pytest.raises(SystemExit):
        parser().parse_args(arguments)
    assert "--effrt" in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_document_links_to_exists(page: Path) -> None:
    for link in linked(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        place = (page.parent / path) if path else page
        assert place.exists(), link
        assert not anchor or anchor in anchors(place), link
