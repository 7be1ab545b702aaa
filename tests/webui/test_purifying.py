"""Painting a given picture again: with the erasure, within bounds, and not whatever a caption asks for."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from generation import write_negated
from PIL import Image

from erasure_core.errors import InvalidConcept, InvalidSettings, ModelError, OutOfMemory, WrongBase
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.hosts.webui import WebuiModel
from erasure_core.profile import ProfileFailed


@pytest.fixture
def purifying(a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With a model for pictures of 64 pixels, in the place of its family's 512."""
    part = importlib.import_module("concept_erasure_webui.purifying")
    load = part.loaded_model
    monkeypatch.setattr(part, "loaded_model", lambda: load(8))
    return part


def test_purify_paints_a_picture_again(purifying: Any, a1111: SimpleNamespace, library: Path) -> None:
    before = {name: tensor.clone() for name, tensor in a1111.model.state_dict().items()}
    picture = Image.new("RGB", (70, 90), (200, 30, 30))
    (made,) = purifying.run_purify(picture, "a red ball", [purifying.Wish("ball")], 4, 3.0, 0.5)
    assert made.size == (64, 80) and made.tobytes() != picture.resize((64, 80)).tobytes()
    assert all(torch.equal(tensor, before[name]) for name, tensor in a1111.model.state_dict().items())
    with pytest.raises(InvalidSettings, match="Give a picture"):
        purifying.run_purify(None, "a red ball", [purifying.Wish("ball")], 4, 3.0, 0.5)


@pytest.mark.parametrize(("size", "painted"), [((2112, 2048), (64, 64)), ((1, 100_000), (16, 256))])
def test_a_large_picture_is_painted_at_the_area_of_the_model(
    purifying: Any, size: tuple[int, int], painted: tuple[int, int]
) -> None:
    (made,) = purifying.run_purify(Image.new("RGB", size), "a red ball", [purifying.Wish("ball")], 2, 3.0, 0.5)
    assert made.size == painted


def test_too_little_memory_is_told(purifying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("acted")

    monkeypatch.setattr(WebuiModel, "latents_of", full)
    with pytest.raises(OutOfMemory, match="too little memory"):
        purifying.run_purify(Image.new("RGB", (64, 64)), "a red ball", [purifying.Wish("ball")], 2, 3.0, 0.5)


def test_purify_asks_the_guard(purifying: Any, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WebuiModel, "predict", lambda *a, **k: pytest.fail("it painted"))
    with pytest.raises(InvalidConcept, match="minors"):
        purifying.run_purify(Image.new("RGB", (64, 64)), "a nude child", [purifying.Wish("ball")], 4, 3.0, 0.5)


def test_a_profile_in_force_holds_here_too(purifying: Any, a1111: SimpleNamespace, library: Path) -> None:
    part = importlib.import_module
    picture, small = Image.new("RGB", (64, 64), (200, 30, 30)), purifying.Wish("ball", 0.1)

    def made(*wishes: Any) -> bytes:
        return purifying.run_purify(picture, "a red ball", wishes, 4, 3.0, 0.5)[0].tobytes()  # type: ignore[no-any-return]

    plain, both = made(small), made(small, purifying.Wish("ball"))
    assert plain != both
    part("concept_erasure_webui.shelf").save_profile("studio", ["ball"], 1.0)
    a1111.shared.opts.concept_erasure_profile = "studio"
    assert made(small) == both
    (library / "studio.profile.json").unlink()
    with pytest.raises(ProfileFailed, match="cannot be read"):
        made(small)


def test_another_base_is_painted_with_only_where_the_setting_allows_it(
    purifying: Any, a1111: SimpleNamespace, library: Path
) -> None:
    picture, wishes = Image.new("RGB", (64, 64)), [purifying.Wish("ball")]
    with torch.no_grad():
        for weight in a1111.model.model.diffusion_model.parameters():
            weight.mul_(1.1)
    with pytest.raises(WrongBase):
        purifying.run_purify(picture, "a red ball", wishes, 4, 3.0, 0.5)
    a1111.shared.opts.concept_erasure_other_base = True
    assert purifying.run_purify(picture, "a red ball", wishes, 4, 3.0, 0.5)


def test_a_model_that_cannot_be_used_is_told_in_words_that_fit(
    purifying: Any, a1111: SimpleNamespace, library: Path
) -> None:
    a1111.shared.loaded_hypernetworks = [object()]
    with pytest.raises(ModelError, match="paint pictures again, now: a hypernetwork"):
        purifying.run_purify(Image.new("RGB", (64, 64)), "a red ball", [purifying.Wish("ball")], 4, 3.0, 0.5)


def test_a_profile_is_not_undone_here(
    purifying: Any, a1111: SimpleNamespace, library: Path, source: DiffusersModel
) -> None:
    write_negated(library, source, "ball")
    importlib.import_module("concept_erasure_webui.shelf").save_profile("studio", ["ball"], 1.0)
    a1111.shared.opts.concept_erasure_profile = "studio"
    with pytest.raises(ProfileFailed, match="would leave 0% of"):
        purifying.run_purify(Image.new("RGB", (64, 64)), "a red ball", [purifying.Wish("ball-negated")], 4, 3.0, 0.5)


def test_the_tab_takes_the_file_that_was_chosen(purifying: Any, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tab = importlib.import_module("concept_erasure_webui.purify_tab")
    asked: list[str] = []
    monkeypatch.setattr(purifying, "run_purify", lambda picture, caption, wishes, *_: asked.extend(map(str, wishes)))
    (library / "people").mkdir()
    for name in ("words", "bob"):  # one of them is the name of another file in the folder above
        (library / "people" / f"{name}.safetensors").write_bytes((library / "ball.safetensors").read_bytes())
    for name in ("people/words", "people/bob.safetensors", "words"):
        tab.purify("task", None, "a red ball", name, 4, 3.0, 0.5)
    assert asked == ["people/words:1", "people/bob:1", "words:1"]
    for name in (None, "None", "bob", "../bob"):
        assert "error" in tab.purify("task", None, "a red ball", name, 4, 3.0, 0.5)[1]
    assert len(asked) == 3


def test_a_caption_that_misses_the_concept_is_told(purifying: Any, library: Path) -> None:
    tab, picture = importlib.import_module("concept_erasure_webui.purify_tab"), Image.new("RGB", (64, 64))
    said = [tab.purify("task", picture, caption, "ball", 4, 3.0, 0.5)[1] for caption in ("a nice photo", "a red ball")]
    assert "nothing of what is erased (ball)" in said[0] and "Purified." in said[0] and "nothing" not in said[1]
