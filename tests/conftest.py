"""Shared fixtures: pico models of every supported layout, made once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the same figures everywhere; what needs a GPU is `make gpu-check`
if "PYTEST_XDIST_WORKER" in os.environ:  # two workers that use both cores each would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where a test takes two: none may spin while the other waits
sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not make helper modules importable

from pico import write_pico
from quick import quicken

import erasure_core.boundary  # noqa: F401  what the searches are shortened in
from erasure_core.hosts.diffusers import DiffusersModel

FAMILIES = ("sd1", "sd2", "sdxl")
ROOT = Path(__file__).parent.parent


class RootIsNoPackage:
    """Keeps pytest from importing the checkout's own ``__init__.py``: that is ComfyUI's entry and needs ComfyUI."""

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    # A conftest's own hook is never asked about its parent folder, so it has to be a plugin.
    config.pluginmanager.register(RootIsNoPackage())


LONG = ("test_check", "test_resume", "test_benchmarks", "test_report", "test_faults", "test_exploring")
"""Files that take longest: they start first, or one process would end with them while the other waits."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def pico_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pico")
    return {family: write_pico(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def pico_models(pico_folders: dict[str, Path]) -> dict[str, DiffusersModel]:
    return {family: DiffusersModel.load(folder) for family, folder in pico_folders.items()}


@pytest.fixture
def pico(pico_models: dict[str, DiffusersModel]) -> DiffusersModel:
    """The SD1.x pico model."""
    return pico_models["sd1"]


@pytest.fixture(scope="session", autouse=True)
def quick_searches() -> Iterator[None]:
    """In all tests, so that none depends on which ran before it."""
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield
