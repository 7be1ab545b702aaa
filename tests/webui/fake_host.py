"""How the hosts load an extension: its script is executed with the search path changed for that moment, callbacks are
kept in lists, and "Reload UI" drops them and executes the script again while the packages stay in memory.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("erasure_core", "concept_erasure_webui")
"""Ours that the extension uses."""
NAMES = ("before_ui", "ui_tabs", "app_started", "cfg_denoiser", "model_loaded", "script_unloaded", "infotext_pasted")


class Callbacks(types.ModuleType):
    """``modules.script_callbacks``."""

    def __init__(self) -> None:
        super().__init__("modules.script_callbacks")
        self.kept: dict[str, list[Callable[..., Any]]] = {name: [] for name in NAMES}

    def __getattr__(self, name: str) -> Any:
        if name.removeprefix("on_") not in NAMES:
            raise AttributeError(name)
        return self.kept[name.removeprefix("on_")].append

    def fire(self, name: str, *values: Any) -> list[Any]:
        return [callback(*values) for callback in self.kept[name]]


class App:
    """FastAPI's application, as far as it is used: each start of the UI has a new one."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], Callable[..., Any]] = {}

    def add_api_route(self, path: str, work: Callable[..., Any], methods: list[str], dependencies: list[Any]) -> None:
        assert (methods[0], path) not in self.routes, f"{path} is registered twice"
        self.routes[methods[0], path] = work


class Extension:
    """The extension in a fake host: loaded, used and reloaded as the hosts do.

    Args:
        made: the host's modules by name; what is missing for a whole start is added to them.
    """

    def __init__(self, made: dict[str, types.ModuleType]) -> None:
        self.made = made
        self.callbacks = made["modules.script_callbacks"] = Callbacks()
        made["modules"].script_callbacks = self.callbacks  # type: ignore[attr-defined]
        self.axis = types.SimpleNamespace(axis_options=[], AxisOption=_AxisOption)
        made["modules.scripts"].scripts_data = [types.SimpleNamespace(module=self.axis)]  # type: ignore[attr-defined]
        registry = made["modules.extra_networks"].extra_network_registry
        made["modules.extra_networks"].register_extra_network = lambda one: registry.update({one.name: one})  # type: ignore[attr-defined]
        shared = made["modules.shared"]
        shared.OptionInfo = _OptionInfo  # type: ignore[attr-defined]
        shared.opts.options = {}
        shared.opts.add_option = shared.opts.options.__setitem__
        self.app = App()
        self.script: Any = None

    def execute(self) -> None:
        """What the host does with ``scripts/*.py``: only now is the extension's folder on the path."""
        before = list(sys.path)
        sys.path[:] = [str(ROOT), *before]
        try:
            spec = importlib.util.spec_from_file_location("concept_erasure.py", ROOT / "scripts" / "concept_erasure.py")
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)  # not in sys.modules, as in the host
            spec.loader.exec_module(module)
        finally:
            sys.path[:] = before
        self.script = module.ConceptErasureScript()

    def start_ui(self) -> None:
        """Builds the pages and the API."""
        self.app = App()
        self.callbacks.fire("before_ui")
        self.script.ui(False)
        self.script.ui(True)
        assert len(self.callbacks.fire("ui_tabs")) == 1
        self.callbacks.fire("app_started", None, self.app)

    def reload_ui(self) -> None:
        """The button "Reload UI"."""
        self.callbacks.fire("script_unloaded")
        for kept in self.callbacks.kept.values():
            kept.clear()
        self.made["modules.extra_networks"].extra_network_registry.clear()  # type: ignore[attr-defined]
        self.execute()
        self.start_ui()


class _AxisOption:
    def __init__(self, label: str, kind: Any, apply: Any, confirm: Any = None, choices: Any = None) -> None:
        self.label, self.choices = label, choices


class _OptionInfo:
    def __init__(self, *values: Any, **given: Any) -> None:
        self.values, self.given = values, given

    def info(self, text: str) -> _OptionInfo:
        return self


@contextmanager
def loaded_freshly() -> Iterator[None]:
    """Inside, nothing of ours is in memory at first, and the folder is not on the search path: neither by the folder
    that tests run in nor by an installation that points to it."""
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] in PACKAGES}
    path, finders = list(sys.path), list(sys.meta_path)
    _forget()
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() != ROOT]
    sys.meta_path[:] = [finder for finder in finders if "__editable__" not in getattr(finder, "__module__", "")]
    try:
        yield
    finally:
        _forget()
        sys.modules.update(ours)
        sys.path[:], sys.meta_path[:] = path, finders


def ours() -> set[str]:
    """Names of our modules that are in memory."""
    return {name for name in sys.modules if name.split(".")[0] in PACKAGES}


def _forget() -> None:
    for name in ours():
        del sys.modules[name]


def web_framework() -> dict[str, types.ModuleType]:
    """FastAPI by the names that we import, for an environment without a host."""
    found, security = types.ModuleType("fastapi"), types.ModuleType("fastapi.security")
    found.Body = lambda *a: None  # type: ignore[attr-defined]
    found.Depends = lambda work: work  # type: ignore[attr-defined]
    found.FastAPI, found.HTTPException = App, HTTPException  # type: ignore[attr-defined]
    security.HTTPBasic, security.HTTPBasicCredentials = lambda **k: None, object  # type: ignore[attr-defined]
    return {"fastapi": found, "fastapi.security": security}


class HTTPException(Exception):
    def __init__(self, status_code: int, detail: str = "", headers: Any = None) -> None:
        super().__init__(detail)
        self.status_code, self.detail = status_code, detail
