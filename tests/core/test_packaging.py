"""What the library may import, and what its wheel holds: a host's packages are never touched, licences travel along."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
CORE = ROOT / "erasure_core"
OURS = {"torch", "numpy", "safetensors", "PIL", "tqdm"}
"""What every host ships."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return content


def _at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that importing a module runs: all but those in functions, and those for type checkers."""
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from _at_import(statement.orelse)
            continue
        yield statement
        for field in ("body", "orelse", "finalbody"):
            yield from _at_import(getattr(statement, field, []))
        for handler in getattr(statement, "handlers", []):
            yield from _at_import(handler.body)


def _imported(statements: Iterator[Any]) -> set[str]:
    """The top-level packages that statements import by absolute names."""
    names: set[str] = set()
    for statement in statements:
        if isinstance(statement, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            names.add(str(statement.module).partition(".")[0])
    return names


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_imports(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert _imported(_at_import(tree.body)) <= OURS | sys.stdlib_module_names, "no host and no diffusers at import"
    assert "erasure_core" not in _imported(ast.walk(tree)), "a host may have it under another name: relative imports"


def test_what_the_rules_see() -> None:
    source = """
if TYPE_CHECKING:
    import diffusers
try:
    import gradio.blocks
except ImportError:
    from transformers import x
class A:
    import pydantic
    def f(self):
        import comfy
from . import y
"""
    tree = ast.parse(source)
    assert _imported(_at_import(tree.body)) == {"gradio", "transformers", "pydantic"}


def test_installing_touches_no_package_of_a_host(project: dict[str, Any]) -> None:
    assert project["project"]["dependencies"] == []


def test_the_wheel_holds_every_file_of_the_library(project: dict[str, Any]) -> None:
    patterns = project["tool"]["setuptools"]["package-data"]["erasure_core"]
    shipped = {path for pattern in patterns for path in CORE.glob(pattern)}
    files = {path for path in CORE.rglob("*") if path.is_file() and not fnmatch(path.name, "*.py[c]")}
    assert files - shipped - set(CORE.rglob("*.py")) == set()
    assert CORE / "data" / "clip_tokenizer" / "LICENSE" in shipped


def test_the_notice_names_every_foreign_licence() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    folders = [folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    foreign = [path.parent.relative_to(ROOT) for folder in folders for path in folder.rglob("LICENSE")]
    assert foreign and all(f"{folder.as_posix()}/" in notice for folder in foreign)


def test_an_older_torch_suffices() -> None:
    """A1111 brings torch 2.1, which has no unsigned integers of 16 bits and more."""
    program = (
        "import torch\n"
        "for bits in (16, 32, 64):\n"
        "    if hasattr(torch, f'uint{bits}'):\n"
        "        delattr(torch, f'uint{bits}')\n"
        "import erasure_core.safe_files\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, timeout=120)
