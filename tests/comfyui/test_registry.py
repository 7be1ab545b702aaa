"""What the registry's package leaves out is needed by nothing that it holds."""

from __future__ import annotations

import ast
from pathlib import Path

from conftest import ROOT

LEFT_OUT = [
    line for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines() if line[:1] not in ("#", "")
]


def imported(path: Path) -> set[str]:
    """The first names of what a file imports from outside its own package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


def test_what_is_left_out_is_there_and_not_imported() -> None:
    assert LEFT_OUT and all((ROOT / name).exists() for name in LEFT_OUT)
    names = {name.rstrip("/").removesuffix(".py") for name in LEFT_OUT}
    assert not names & {"erasure_core", "nodes", "web", "locales", "example_workflows", "docs"}
    for folder in ("nodes", "erasure_core"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not imported(path) & names, path
