"""Fixtures: a fake host around pico models for the contract tests, and a real one where COMFYUI_PATH names it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not make helper modules importable

import fake_comfy
import fake_io

ROOT = Path(__file__).parent.parent.parent
PACK = "concept_erasure_pack"


@pytest.fixture
def fake_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The fake host's modules in the place of a real one's; yields its models folder."""
    fake_comfy.Switches.reset()
    fake_comfy.install(tmp_path, fake_io.module(), monkeypatch.setitem)
    yield tmp_path
    fake_comfy.Switches.reset()


@pytest.fixture
def pack(fake_host: Path) -> Iterator[ModuleType]:
    """This checkout as the host imports it: a package with a name of the host's choice."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    yield module
    # The core is kept: importing torch-heavy modules again for each test takes time and changes nothing.
    for name in [n for n in sys.modules if n == PACK or n.startswith(f"{PACK}.nodes")]:
        del sys.modules[name]
