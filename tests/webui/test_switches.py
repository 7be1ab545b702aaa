"""A hires pass with a checkpoint of its own: erased as well, or no picture, and the first model is left as it was."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fakes
import pytest
import torch
from generation import PROMPT, generate, hires
from torch import Tensor

from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.profile import make_profile, write_profile

ERASE, WORDS = f"{PROMPT}<erase:ball>", f"{PROMPT}<erase:words>"
Switch = tuple[Callable[[], None], Callable[[], None]]


def weights(model: fakes.SdModel, factor: float = 1.0) -> dict[str, Tensor]:
    return {k: factor * t if t.is_floating_point() else t.clone() for k, t in model.state_dict().items()}


@pytest.fixture(params=["another object", "the same object"])
def switching(
    request: pytest.FixtureRequest, a1111: SimpleNamespace, source: DiffusersModel, library: Path
) -> Callable[[float], Switch]:
    """To a checkpoint with weights times a factor, and back, in both ways that the host has: it keeps several models,
    or copies other weights into the parameters of the one it has."""
    fakes.Processing.cached_c[:] = [None, None]
    model, first, pristine = a1111.model, weights(a1111.model), copy.deepcopy(source)

    def show(one: fakes.SdModel) -> None:
        a1111.shared.sd_model = one

    def read(state: dict[str, Tensor], name: str) -> None:
        model.load(state, name)
        a1111.gate.model_loaded(model)

    def switch(factor: float = 1.0) -> Switch:
        second = fakes.SdModel(copy.deepcopy(pristine), "hires.safetensors")
        state = weights(second, factor)
        if request.param == "another object":
            second.load_state_dict(state)
            return lambda: show(second), lambda: show(model)
        return lambda: read(state, "hires.safetensors"), lambda: read(first, "one.safetensors")

    return switch


def test_the_hires_checkpoint_is_erased_too(a1111: SimpleNamespace, switching: Callable[..., Switch]) -> None:
    before = weights(a1111.model)
    base, erased = generate(a1111), generate(a1111, ERASE)
    assert torch.equal(hires(a1111, *switching(), ERASE), erased)
    assert torch.equal(hires(a1111, *switching(), ERASE, PROMPT), base)  # the hires prompt has its own tags
    assert torch.equal(hires(a1111, *switching(), PROMPT, ERASE), erased)
    assert torch.equal(generate(a1111, ERASE), erased) and torch.equal(generate(a1111), base)
    a1111.gate.leave()
    assert all(torch.equal(tensor, before[name]) for name, tensor in a1111.model.state_dict().items())


def test_another_base_in_the_hires_pass_gives_no_picture(
    a1111: SimpleNamespace, switching: Callable[..., Switch]
) -> None:
    base, erased = generate(a1111), generate(a1111, ERASE)
    with pytest.raises(a1111.gate.Refused, match="another base model"):
        hires(a1111, *switching(1.5), ERASE)
    assert torch.equal(generate(a1111), base) and torch.equal(generate(a1111, ERASE), erased)
    unerased = hires(a1111, *switching(1.5))
    assert not torch.equal(unerased, base)  # without a wish the host paints as it likes


def test_a_text_encoder_in_the_hires_pass_is_erased_too(
    a1111: SimpleNamespace, switching: Callable[..., Switch]
) -> None:
    base, erased = generate(a1111), generate(a1111, WORDS)
    assert not torch.equal(base, erased)
    assert torch.equal(hires(a1111, *switching(), WORDS), erased)
    assert torch.equal(generate(a1111), base)


def test_a_profile_holds_in_the_hires_pass(
    a1111: SimpleNamespace, switching: Callable[..., Switch], library: Path
) -> None:
    erased = generate(a1111, ERASE)
    profile = make_profile("studio", a1111.places.library(), [("ball.safetensors", 1.0, 1.0)])
    write_profile(library, profile)
    a1111.shared.opts.concept_erasure_profile = "studio"
    assert torch.equal(hires(a1111, *switching()), erased)
    with pytest.raises(a1111.gate.Refused, match="another base model"):
        hires(a1111, *switching(1.5))


def test_work_on_the_model_uses_the_checkpoint_that_is_chosen(
    a1111: SimpleNamespace, switching: Callable[..., Switch], library: Path
) -> None:
    """A1111 leaves a refiner's checkpoint in place until it generates again."""
    working = importlib.import_module("concept_erasure_webui.working")
    before = weights(a1111.model)
    generate(a1111, ERASE)
    switch, back = switching(1.5)
    switch()
    sys.modules["modules.sd_models"].reload_model_weights = back  # type: ignore[attr-defined]
    model = working.loaded_model()
    assert model.sd_model is a1111.model and model.title == "one.safetensors"
    assert all(torch.equal(tensor, before[name]) for name, tensor in a1111.model.state_dict().items())
