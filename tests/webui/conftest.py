"""Fixtures: a fake A1111 and a fake Forge around the same pico model, with the extension imported against them."""

from __future__ import annotations

import copy
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not make helper modules importable

import fakes

from erasure_core import Concept, erase, write_erasure
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods.closed_form import ClosedFormSettings
from erasure_core.methods.esd import EsdSettings


@pytest.fixture
def source(pico_models: dict[str, DiffusersModel]) -> DiffusersModel:
    """A model of this test's own: hosts and tests change it."""
    return copy.deepcopy(pico_models["sd1"])


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """The host's modules in ``sys.modules``, and the extension freshly imported against them."""
    made = fakes.install(tmp_path / "models")
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "backend.memory_management", fakes.memory)
    fakes.forget_package()
    parts = {name: importlib.import_module(f"concept_erasure_webui.{name}") for name in ("gate", "session", "places")}
    yield types.SimpleNamespace(shared=made["modules.shared"], **parts)
    fakes.forget_package()


@pytest.fixture
def a1111(host: types.SimpleNamespace, source: DiffusersModel) -> types.SimpleNamespace:
    host.shared.sd_model = host.model = fakes.SdModel(source)
    return host


@pytest.fixture
def lora(a1111: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> fakes.Lora:
    found = fakes.Lora()
    found.attach(a1111.model.model.diffusion_model)
    monkeypatch.setitem(sys.modules, "networks", found)  # type: ignore[arg-type]
    return found


@pytest.fixture
def forge(host: types.SimpleNamespace, source: DiffusersModel) -> types.SimpleNamespace:
    host.shared.sd_model = host.model = fakes.ForgeModel(source)
    return host


@pytest.fixture
def classic(host: types.SimpleNamespace, source: DiffusersModel) -> types.SimpleNamespace:
    host.shared.sd_model = host.model = fakes.ForgeModel(source, patcher=fakes.OldPatcher)
    return host


@pytest.fixture(scope="session")
def erasure_files(pico_models: dict[str, DiffusersModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Content of three erasures of the pico model: of its UNet, of its text encoder, and of another base."""
    folder, model = tmp_path_factory.mktemp("made"), pico_models["sd1"]
    short = {"steps": 2, "batch": 1, "trajectories": 1, "trajectory_steps": 2, "rank": 2}
    unet, _ = erase(model, Concept(("ball",)), "closed_form", ClosedFormSettings())
    text, _ = erase(model, Concept(("ball",)), "esd", EsdSettings(replace=False, layers="text-encoder", **short))
    other, _ = erase(pico_models["sdxl"], Concept(("ball",)), "closed_form", ClosedFormSettings())
    for name, erasure, base in (("ball", unet, model), ("words", text, model), ("other", other, pico_models["sdxl"])):
        write_erasure(folder / f"{name}.safetensors", erasure, base)
    return {path.stem: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture
def library(host: types.SimpleNamespace, erasure_files: dict[str, bytes]) -> Path:
    """The extension's folder with those erasures in it."""
    folder: Path = host.places.folder()
    folder.mkdir(parents=True)
    for name, content in erasure_files.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    return folder


@pytest.fixture(params=["a1111", "forge", "classic"])
def web(request: pytest.FixtureRequest, library: Path) -> types.SimpleNamespace:
    """Each kind of host, with the library filled."""
    fakes.Processing.cached_c[:] = [None, None]
    found: types.SimpleNamespace = request.getfixturevalue(request.param)
    found.kind = request.param
    return found
