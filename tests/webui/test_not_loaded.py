"""Where the extension cannot be loaded: what a profile or a prompt wants erased is not painted, all else is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_gradio
import fakes
import pytest
import torch
from fake_host import ROOT, Extension, loaded_freshly, web_framework
from generation import PROMPT

BROKEN = ["safetensors", "gradio", "concept_erasure_webui.wishes", "on_model_loaded"]
"""What cannot be imported: a library, half an update of ours; and a callback that the host does not have."""


@pytest.fixture(params=BROKEN)
def extension(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Extension]:
    made = fakes.install(tmp_path / "models") | web_framework() | {"gradio": fake_gradio.Page()}
    made["modules.shared"].opts.data = {}  # type: ignore[attr-defined]
    found = Extension(made)
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    reported: list[str] = []
    monkeypatch.setattr(made["modules.errors"], "report", lambda text, **_: reported.append(text))
    with loaded_freshly():
        if request.param.startswith("on_"):
            monkeypatch.delitem(found.callbacks.kept, request.param.removeprefix("on_"))
        else:
            monkeypatch.setitem(sys.modules, request.param, None)
        found.execute()
        assert len(reported) == 1 and "could not be loaded" in reported[0]
        yield found


def shared_of(extension: Extension) -> Any:
    return extension.made["modules.shared"]


def processed(extension: Extension, prompt: str = PROMPT) -> fakes.Processing:
    """A generation up to its first batch."""
    shared_of(extension).state.begin()
    p = fakes.Processing([prompt])
    extension.script.process(p)
    p.prompts = p.all_prompts  # type: ignore[attr-defined]
    extension.script.before_process_batch(p, batch_number=0)
    return p


def step(extension: Extension, p: fakes.Processing | None) -> torch.Tensor:
    """One sampling step, which uses what the callbacks left."""
    params = fakes.Params(p, torch.ones(1, 4, 8, 8), torch.ones(1, 77, 8))
    for callback in extension.callbacks.kept["cfg_denoiser"]:
        callback(params)
    latent, prompts = params.x * 1.0, params.text_cond * 1.0
    return torch.cat([latent.flatten(), prompts.flatten()])


@pytest.mark.parametrize("pinned", [True, False])
def test_a_profile_keeps_every_picture_back(extension: Extension, pinned: bool) -> None:
    shared = shared_of(extension)
    if pinned:
        shared.cmd_opts.concept_erasure_profile = ""  # a pinned empty name is one that cannot be applied
    else:
        shared.opts.data["concept_erasure_profile"] = "studio"
    p = processed(extension)
    assert shared.state.interrupted and p.prompts == []  # type: ignore[attr-defined]
    assert "cannot be applied" in p.comments[-1] and "No picture was made" in p.comments[-1]
    assert p.extra_generation_params == {"Concept erasure refused": p.comments[-1]}
    for one in (p, fakes.Processing([PROMPT]), None):  # whatever started it, with scripts or without
        with pytest.raises(Exception, match="cannot be applied"):
            step(extension, one)


@pytest.mark.parametrize("chosen", [None, "", "None"])
def test_without_a_profile_the_host_works_as_usual(extension: Extension, chosen: str | None) -> None:
    shared = shared_of(extension)
    shared.opts.data["concept_erasure_profile"] = chosen
    p = processed(extension)
    assert not shared.state.interrupted and p.prompts == [PROMPT] and p.comments == []  # type: ignore[attr-defined]
    assert p.extra_generation_params == {} and torch.equal(step(extension, p), step(extension, None))


def test_a_prompt_that_asks_for_an_erasure_is_not_painted(extension: Extension) -> None:
    p = processed(extension, f"{PROMPT} <Erase:ball>")
    assert shared_of(extension).state.interrupted and "The prompt asks" in p.comments[-1]
    with pytest.raises(Exception, match="The prompt asks"):
        step(extension, fakes.Processing([f"{PROMPT}<erase:ball:1>"]))


def test_a_pinned_profile_outlasts_a_switch_of_extensions(extension: Extension) -> None:
    shared = shared_of(extension)
    shared.cmd_opts.concept_erasure_profile = "studio"
    shared.opts.data["disabled_extensions"] = [ROOT.name]
    extension.callbacks.fire("script_unloaded")
    assert shared.opts.data["disabled_extensions"] == []


def test_the_panel_is_not_there_to_be_asked(extension: Extension) -> None:
    # A request that names it is refused by the host; with its title the values would be dropped without a word.
    assert extension.script.title() != "Concept Erasure" and extension.script.ui(False) == []
