"""What the hosts do with an extension's files: everything is imported at load, and "Reload UI" doubles nothing."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_gradio
import fakes
import pytest
import torch
from fake_host import ROOT, Extension, loaded_freshly, ours, web_framework
from generation import PROMPT, generate
from PIL import Image
from quick import quicken

from erasure_core.hosts.diffusers import DiffusersModel

ERASE = f"{PROMPT}<erase:ball>"


@pytest.fixture
def extension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: DiffusersModel, erasure_files: dict[str, bytes]
) -> Iterator[Extension]:
    """Loaded by the host, which has taken the folder off its search path again."""
    made = fakes.install(tmp_path / "models") | web_framework() | {"gradio": fake_gradio.Page()}
    made["modules.shared"].cmd_opts.api = True  # type: ignore[attr-defined]
    made["modules.shared"].sd_model = fakes.SdModel(source)  # type: ignore[attr-defined]
    folder = tmp_path / "models" / "erasures"
    folder.mkdir(parents=True)
    for name, content in erasure_files.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    found = Extension(made)
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    fakes.Processing.cached_c[:] = [None, None]
    with loaded_freshly():
        found.execute()
        quicken(monkeypatch)
        yield found


def page_of(extension: Extension) -> fake_gradio.Page:
    page = extension.made["gradio"]
    assert isinstance(page, fake_gradio.Page)
    return page


def host_of(extension: Extension) -> SimpleNamespace:
    """As ``generate`` wants it."""
    shared: Any = extension.made["modules.shared"]
    return SimpleNamespace(gate=sys.modules["concept_erasure_webui.gate"], shared=shared, model=shared.sd_model)


TYPED: dict[str, Any] = {
    "words": "ball", "size": 64, "chosen": "ball", "new_name": "globe", "profile_name": "studio",
    "profile_files": ["words"], "explore_with": "words", "explore_seconds": 5, "explore_side": 64, "explore_states": 2,
    "explore_look": 0, "explore_levels": ["lexical"], "selected": "orb", "report_erasures": ["words"],
    "report_seconds": 5, "report_pictures": False, "report_side": 64, "report_states": 2, "purify_with": "words",
    "caption": "a red ball", "purify_steps": 5, "picture": Image.new("RGB", (64, 64), "red"),
    "auto_steps": 4, "auto_candidates": 4, "auto_trajectories": 4, "auto_trajectory_steps": 3, "auto_text_prompts": 2,
}  # fmt: skip
"""What a user writes into the fields before pressing every button."""


def value_of(component: fake_gradio.Component) -> Any:
    name = component.given.get("elem_id", "").removeprefix("concept_erasure_")
    preset = component.given.get("value", component.positional[0] if component.positional else "")
    return TYPED.get(name, preset)


def test_the_search_path_is_really_reset(extension: Extension) -> None:
    assert str(ROOT) not in sys.path and "concept_erasure_webui.gate" in sys.modules
    for name in ("preload", "install", "nodes"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


def test_every_entry_works_with_what_was_imported_at_load(extension: Extension) -> None:
    loaded = ours()
    extension.start_ui()
    page = page_of(extension)
    assert len(page.events) > 20
    events = [event for event in page.events if event[1] is not None]  # the others run in the browser alone
    for component, work, inputs, _, _ in events:
        extension.made["modules.shared"].state.begin()  # the buttons "Interrupt" are pressed as well
        answer = str(work(*map(value_of, inputs)))
        assert "unexpected error" not in answer.lower(), (component.given, answer)
    bodies: dict[str, Any] = {
        "erase": {"words": ["ball"], "side": 64, "method": "esd", "settings": {"steps": 3, "trajectories": 4}},
        "explore": {"words": ["ball"], "calls": 300, "levels": "lexical", "states": 2, "look": 0, "side": 64},
        "report": {"erasures": ["words"], "calls": 100, "states": 2, "side": 64, "pictures": False},
        "interrupt": {},
    }
    for (method, path), work in extension.app.routes.items():
        extension.made["modules.shared"].state.begin()
        last = path.rsplit("/", 1)[1]
        if method == "POST":
            assert work(*([bodies[last]] if bodies[last] else []))["status"]
        elif last == "{name}":
            listed = extension.app.routes["GET", path.removesuffix("/{name}")]()
            assert work(listed[0])
        else:
            assert work()
    host = host_of(extension)
    assert not torch.equal(generate(host, f"{PROMPT}<erase:words>"), generate(host))
    extension.callbacks.fire("model_loaded", host.model)
    extension.callbacks.fire("script_unloaded")
    assert ours() == loaded


def counted(extension: Extension) -> dict[str, Any]:
    """All that a second start could double."""
    return {
        "callbacks": {name: len(kept) for name, kept in extension.callbacks.kept.items()},
        "routes": sorted(extension.app.routes),
        "tags": sorted(extension.made["modules.extra_networks"].extra_network_registry),  # type: ignore[attr-defined]
        "axis": [option.label for option in extension.axis.axis_options],
        "settings": sorted(extension.made["modules.shared"].opts.options),  # type: ignore[attr-defined]
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules(extension)),
    }


def modules(extension: Extension) -> Iterator[torch.nn.Module]:
    return extension.made["modules.shared"].sd_model.modules()  # type: ignore[attr-defined,no-any-return]


def test_reload_ui_doubles_nothing_and_leaves_the_model(extension: Extension) -> None:
    extension.start_ui()
    host, first, events = host_of(extension), counted(extension), len(page_of(extension).events)
    assert set(first["callbacks"].values()) == {1, 3} and first["callbacks"]["before_ui"] == 3
    assert first["tags"] == ["erase"] and len(first["axis"]) == 1 and len(first["settings"]) == 2
    before = {name: tensor.clone() for name, tensor in host.model.state_dict().items()}
    base, erased = generate(host), generate(host, ERASE)
    for start in (2, 3):
        extension.reload_ui()
        assert all(torch.equal(tensor, before[name]) for name, tensor in host.model.state_dict().items())
        assert counted(extension) == first and len(page_of(extension).events) == start * events
        assert host_of(extension).gate is host.gate  # the package stays in memory
        assert torch.equal(generate(host, ERASE), erased) and torch.equal(generate(host), base)
        generate(host, ERASE)  # the next reload finds an erasure on the model


def test_a_profile_that_was_just_made_can_be_chosen(extension: Extension) -> None:
    extension.start_ui()
    setting = extension.made["modules.shared"].opts.options["concept_erasure_profile"]  # type: ignore[attr-defined]
    sys.modules["concept_erasure_webui.shelf"].save_profile("studio", ["words"], 1.0)  # type: ignore[attr-defined]
    setting.given["refresh"]()  # the button beside the list; then the host asks for the list again
    assert setting.values[3]()["choices"] == ["None", "studio"]


def test_the_panel_tells_where_a_generation_begins_and_ends(extension: Extension) -> None:
    extension.start_ui()
    script, state_of = extension.script, sys.modules["concept_erasure_webui.running"].state_of  # type: ignore[attr-defined]
    first, inner, second = (fakes.Processing([PROMPT]) for _ in range(3))
    script.process(first, True, "ball", 1.0)
    script.process(inner)
    script.postprocess(inner, None)
    script.postprocess(first, None, True, "ball", 1.0)
    script.process(second)
    assert [wish.name for wish in state_of(inner).outer] == ["ball"] and state_of(second).outer is None


def test_the_panel_looks_at_every_batch(extension: Extension) -> None:
    extension.start_ui()
    p = fakes.Processing(["a cat", "a dog"])
    p.prompts, p.negative_prompts = ["a dog <Erase:ball>"], []  # type: ignore[attr-defined]
    extension.script.process(p)
    extension.script.before_process_batch(p, False, batch_number=1, prompts=p.prompts)  # type: ignore[attr-defined]
    assert p.prompts == [] and "cannot be read" in p.comments[-1]  # type: ignore[attr-defined]


def test_an_extension_that_was_switched_off_is_gone(extension: Extension) -> None:
    extension.start_ui()
    host = host_of(extension)
    before = {name: tensor.clone() for name, tensor in host.model.state_dict().items()}
    generate(host, ERASE)
    extension.callbacks.fire("script_unloaded")
    registry = extension.made["modules.extra_networks"].extra_network_registry  # type: ignore[attr-defined]
    assert registry == {} and isinstance(host.gate, types.ModuleType)
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.model.state_dict().items())


def test_what_a_request_has_too_much_of_is_seen(extension: Extension) -> None:
    # The hosts copy as many of a request's values as the panel has controls, and drop the others.
    extension.start_ui()
    controls = extension.script.ui(False)
    sent = [True, *(value for name in ("ball", "words", "a", "b", "ball") for value in (name, 1.0))]
    p = fakes.Processing([PROMPT])
    extension.script.process(p, *sent[: len(controls)])
    assert "the request names more" in p.comments[-1]
    assert controls[-1].given["visible"] is False and value_of(controls[-1]) == ""
    assert len(extension.script.infotext_fields) == len(controls) - 1


@pytest.mark.parametrize("pinned", [False, True])
def test_a_pinned_profile_outlasts_a_switch_of_extensions(extension: Extension, pinned: bool) -> None:
    extension.start_ui()
    shared: Any = extension.made["modules.shared"]
    shared.cmd_opts.concept_erasure_profile = "studio" if pinned else None
    ours = ROOT.name
    shared.opts.data = {"disabled_extensions": ["another", ours], "disable_all_extensions": "extra"}
    extension.callbacks.fire("script_unloaded")
    off = (["another"], "none") if pinned else (["another", ours], "extra")
    assert (shared.opts.data["disabled_extensions"], shared.opts.data["disable_all_extensions"]) == off


def test_the_panel_tells_that_a_hires_prompts_networks_went_on(extension: Extension, monkeypatch: Any) -> None:
    extension.start_ui()
    seen: list[Any] = []
    monkeypatch.setattr(host_of(extension).gate, "put_on_hires_text", lambda p, data: seen.append(data))
    data = {"erase": ["…"]}
    extension.script.after_extra_networks_activate(  # as all hosts call it
        fakes.Processing([PROMPT]), False, batch_number=0, prompts=[], seeds=[], subseeds=[], extra_network_data=data
    )
    assert seen == [data]


def test_values_of_the_panel_have_their_places_in_requests_for_good(extension: Extension) -> None:
    """API clients send them by place: a new one may stand at the end only."""
    extension.start_ui()
    for is_img2img, tab in ((False, "txt2img"), (True, "img2img")):
        slots = [f"{kind}_{tab}_{place}" for place in (1, 2, 3, 4) for kind in ("name", "strength")]
        named = [control.given["elem_id"] for control in extension.script.ui(is_img2img)]
        assert named == [f"concept_erasure_{what}" for what in (f"enabled_{tab}", *slots, f"rest_{tab}")]
    assert [value_of(control) for control in extension.script.ui(False)] == [False, *["None", 1.0] * 4, ""]


@pytest.mark.parametrize(("api", "nowebui"), [(False, False), (True, False), (False, True)])
def test_a_host_that_only_serves_its_api_has_routes_and_tags(extension: Extension, api: bool, nowebui: bool) -> None:
    """Started with --nowebui it builds no pages and asks for no settings page."""
    given = extension.made["modules.shared"].cmd_opts  # type: ignore[attr-defined]
    given.api, given.nowebui = api, nowebui
    extension.callbacks.fire("before_ui")
    extension.callbacks.fire("app_started", None, extension.app)
    assert bool(extension.app.routes) == (api or nowebui)
    assert "erase" in extension.made["modules.extra_networks"].extra_network_registry  # type: ignore[attr-defined]
    assert "concept_erasure_profile" in extension.made["modules.shared"].opts.options  # type: ignore[attr-defined]
    if nowebui:
        listed = extension.app.routes["GET", "/concept-erasure/v1/erasures"]()
        assert {"ball", "words"} <= {Path(one["name"]).stem for one in listed}


def test_options_are_there_before_anything_can_be_imported(extension: Extension) -> None:
    content = (ROOT / "preload.py").read_text()
    assert not [node for node in ast.walk(ast.parse(content)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    found: dict[str, Any] = {}
    exec(compile(content, "preload.py", "exec"), found)  # noqa: S102  # as the hosts do it
    parser = argparse.ArgumentParser()
    found["preload"](parser)
    shared, places = extension.made["modules.shared"], sys.modules["concept_erasure_webui.places"]
    shared.cmd_opts = parser.parse_args([])  # type: ignore[attr-defined]
    assert not places.is_in_force() and places.folder().name == "erasures"  # type: ignore[attr-defined]
    sent = ["--concept-erasure-profile", "studio", "--concept-erasure-dir", "elsewhere"]
    shared.cmd_opts = parser.parse_args(sent)  # type: ignore[attr-defined]
    assert (places.locked_profile(), places.folder()) == ("studio", Path("elsewhere"))  # type: ignore[attr-defined]


def test_a_request_brings_no_settings_of_ours_along(extension: Extension) -> None:
    # Hosts put what a request overrides back when it ends, over what the operator has chosen meanwhile.
    p = fakes.Processing([PROMPT])
    p.override_settings = {"concept_erasure_profile": "None", "concept_erasure_other_base": True, "eta": 1}  # type: ignore[attr-defined]
    extension.script.before_process(p)
    assert p.override_settings == {"eta": 1}  # type: ignore[attr-defined]
