"""What the documents tell users to type is what the commands take: their own parsers read every complete command."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import _parser as benchmarks_parser
from erasure_core.cli.main import parser
from proving_ground.__main__ import _parser as proving_ground_parser

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "proving_ground/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMAND = re.compile(r"(?<![\w-])concept-erasure ([a-z]+ [^`\n]+)")
"""A name and something behind it: a command that is only named is not complete."""
MODULE = re.compile(r"python -m ([\w.]+)([^`\n]*)")
REMARK = re.compile(r"\s+#.*|\s{2,}.*")
"""Behind a command in a list of them."""
OF_MODULES = {"proving_ground": proving_ground_parser, "benchmarks": benchmarks_parser}
VARIABLE = re.compile(r"(?<=\s)\$\w+")
"""Without quotes a shell puts any number of arguments in its place; the document does not say which."""


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every complete command in a document; one may go on over several lines."""
    for found in COMMAND.finditer(text.replace("\\\n", " ")):
        yield shlex.split(VARIABLE.sub("", found[1]))


def module_commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Every module that a document runs by ``python -m``, with its arguments, those in brackets as well."""
    for module, rest in MODULE.findall(text):
        yield module, shlex.split(REMARK.sub("", rest).replace("[", "").replace("]", ""))


def linked(text: str) -> Iterator[str]:
    """What a document links to in this repository: paths, maybe with a heading's anchor."""
    return (link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name_of(page: Path) -> str:
    """For reports: two pages are called README.md."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_module_is_there_and_takes_its_arguments(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for module, arguments in module_commands(page.read_text(encoding="utf-8")):
        assert importlib.util.find_spec(module) is not None, f"{page.name}: python -m {module}"
        if module in OF_MODULES:
            try:
                OF_MODULES[module]().parse_args(arguments)
            except SystemExit:
                pytest.fail(f"{page.name}: {module} {shlex.join(arguments)}: {capsys.readouterr().err}")


def test_modules_are_found_with_their_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    found = {module for page in PAGES for module, _ in module_commands(page.read_text(encoding="utf-8"))}
    assert {"proving_ground", "benchmarks", "proving_ground.reteach", "tools.node_texts"} <= found
    text = "    python -m benchmarks run --family sd15     what\n`python -m proving_ground check [--flop no]  # x`"
    (benchmarks, check) = module_commands(text)
    assert benchmarks == ("benchmarks", ["run", "--family", "sd15"])
    with pytest.raises(SystemExit):
        OF_MODULES[check[0]]().parse_args(check[1])
    assert "--flop" in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_document_links_to_exists(page: Path) -> None:
    for link in linked(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        place = (page.parent / path) if path else page
        assert place.exists(), link
        assert not anchor or anchor in anchors(place), link
