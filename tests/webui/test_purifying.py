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

from erasure_core.errors import InvalidConcept, InvalidSettings, ModelError, WrongBase
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.hosts.webui import WebuiModel
from erasure_core.profile import ProfileFailed


@pytest.fixture
def purifying(a1111: SimpleNamespace, library: Path) -> Any:
    return importlib.import_module("concept_erasure_webui.purifying")


def test_purify_paints_a_picture_again(purifying: Any, a1111: SimpleNamespace, library: Path) -> None:
    before = {name: tensor.clone() for name, tensor in a1111.model.state_dict().items()}
    picture = Image.new("RGB", (70, 90), (200, 30, 30))
    (made,) = purifying.run_purify(picture, "a red ball", [purifying.Wish("ball")], 4, 3.0, 0.5)
    assert made.size == (64, 64) and made.tobytes() != picture.resize((64, 64)).tobytes()
    assert all(torch.equal(tensor, before[name]) for name, tensor in a1111.model.state_dict().items())
    with pytest.raises(InvalidSettings, match="Give a picture"):
        purifying.run_purify(None, "a red ball", [purifying.Wish("ball")], 4, 3.0, 0.5)


@pytest.mark.parametrize("size", [(2112, 2048), (1, 100_000)])
def test_a_picture_too_large_to_paint_is_refused(purifying: Any, size: tuple[int, int], monkeypatch: Any) -> None:
    monkeypatch.setattr(Image.Image, "resize", lambda *a, **k: pytest.fail("it was worked on"))
    with pytest.raises(InvalidSettings, match="megapixels"):
        purifying.run_purify(Image.new("RGB", size), "a red ball", [purifying.Wish("ball")], 4, 3.0, 0.5)


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
