"""Fixtures: a fake host around pico models for the contract tests, and a real one where COMFYUI_PATH names it."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not make helper modules importable

import comfy_client
import fake_comfy
import fake_io
from pack_nodes import PACK, Nodes, instant
from quick import quicken

from erasure_core.hosts.diffusers import DiffusersModel

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def fake_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The fake host's modules in the place of a real one's; yields its models folder."""
    fake_comfy.Switches.reset()
    fake_comfy.install(tmp_path, fake_io.module(), monkeypatch.setitem)
    yield tmp_path
    fake_comfy.Switches.reset()


@pytest.fixture
def pack(fake_host: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """This checkout as the host imports it: a package with a name of the host's choice."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    importlib.import_module(f"{PACK}.erasure_core.boundary")
    quicken(monkeypatch, f"{PACK}.erasure_core")
    yield module
    # The core is kept: importing torch-heavy modules again for each test takes time and changes nothing.
    for name in [n for n in sys.modules if n == PACK or n.startswith(f"{PACK}.nodes")]:
        del sys.modules[name]


@pytest.fixture
def nodes(pack: ModuleType) -> Nodes:
    return Nodes()


@pytest.fixture
def graph(pico_models: dict[str, DiffusersModel]) -> dict[str, Any]:
    """MODEL, CLIP and VAE as a loader hands them on."""
    oracle = copy.deepcopy(pico_models["sd1"])
    oracle.tokenizers = pico_models["sd1"].tokenizers
    return dict(zip(("model", "clip", "vae"), fake_comfy.loaded(oracle), strict=True))


@pytest.fixture
def profile(nodes: Nodes, graph: dict[str, Any]) -> str:
    """The name of a safety profile with two erasures."""
    stack = nodes.run("Stack", first=instant(nodes, graph).args[2], second=instant(nodes, graph, "cat").args[2]).args[0]
    nodes.run("SaveSafetyProfile", erasure=stack, name="studio")
    return "studio"


@pytest.fixture(scope="session")
def comfyui_folder() -> Path:
    """A real ComfyUI; COMFYUI_PYTHON names its interpreter, if that is not this one."""
    folder = os.environ.get("COMFYUI_PATH", "")
    if not folder or not (Path(folder) / "main.py").is_file():
        pytest.skip("needs a real ComfyUI: set COMFYUI_PATH to its folder and COMFYUI_PYTHON to its interpreter")
    return Path(folder)


@pytest.fixture(scope="session")
def twin(comfyui_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The proving ground's model as a checkpoint."""
    return comfy_client.twin(tmp_path_factory.mktemp("twin"))


@pytest.fixture(scope="session")
def host(comfyui_folder: Path, twin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[comfy_client.Host]:
    """One running ComfyUI for all tests that do not need to start it their own way."""
    with comfy_client.running(
        comfyui_folder, comfy_client.make_base(tmp_path_factory.mktemp("comfyui"), twin)
    ) as running:
        yield running
