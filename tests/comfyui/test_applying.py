"""Finished erasures on models that cannot be trained: inpainting networks, 8-bit and quantised storage.

Applying is allowed where every touched weight has the right shape and the base is recognised; the host's own patches do
the rest. Anything else is refused before anything is applied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_comfy import CLIP, ModelPatcher, as_host_module, loaded

from erasure_core import Concept, read_erasure, write_erasure
from erasure_core.combining import stored_form
from erasure_core.delta import Delta, DeltaSet, DenseDelta, LowRankDelta, weight_of
from erasure_core.erasing import Erasure, describe
from erasure_core.erasure_file import StoredErasure
from erasure_core.errors import ModelError, WrongBase
from erasure_core.hosts.comfyui import ComfyModel
from erasure_core.hosts.comfyui_patches import Strengths, apply_deltas, bound, lacking
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select
from erasure_core.library import Library
from erasure_core.profile import bind_profile, make_profile

CONV_IN = "unet.conv_in"
SCALE = 0.25

pytestmark = pytest.mark.usefixtures("fake_host")


@pytest.fixture
def oracle(pico_models: dict[str, DiffusersModel]) -> DiffusersModel:
    return pico_models["sd1"]


@pytest.fixture
def on_host(oracle: DiffusersModel) -> Callable[..., tuple[ModelPatcher, CLIP]]:
    def put(dtype: torch.dtype = torch.float32) -> tuple[ModelPatcher, CLIP]:
        copied = copy.deepcopy(oracle)
        copied.tokenizers = oracle.tokenizers
        return loaded(copied, dtype)[:2]

    return put


def changes(oracle: DiffusersModel, dense: bool, *more: str) -> DeltaSet:
    """Changes of all keys and values of cross-attention, and of layers named beside them."""
    generator, deltas = torch.Generator().manual_seed(0), {}
    layers = select(oracle.layers(), "cross-attention-kv")
    for name in (*layers, *more):
        delta: Delta = LowRankDelta.zero(weight_of(oracle.layers()[name]).shape, 2, generator)
        delta.up.data.normal_(0, 0.05, generator=generator)
        deltas[name] = DenseDelta(delta.change().detach()) if dense else delta
    return DeltaSet(deltas)


@pytest.fixture
def filed(oracle: DiffusersModel, tmp_path: Path) -> Callable[..., StoredErasure]:
    """An erasure file that was made on the plain model."""

    def write(deltas: DeltaSet) -> StoredErasure:
        manifest = describe(oracle, deltas, Concept(("ball",)), "esd", "a test", {})
        path = tmp_path / "ball.safetensors"
        write_erasure(path, Erasure(deltas, manifest), oracle)
        return read_erasure(path)

    return write


def check_applied(model: ComfyModel, stored: StoredErasure, strength: float) -> None:
    """Every change is on the clone's weights and none on the model's own."""
    before = {name: model.weight(name).clone() for name in bound(stored, model)}
    deltas = bound(stored, model)
    patcher, clip = apply_deltas(model, deltas, Strengths(strength))
    assert len(patcher.patches) == len(before) and model.patcher.patches == {}
    assert not lacking(patcher, {key: [(strength, held[0][1])] for key, held in patcher.patches.items()})
    changed = ComfyModel(patcher, clip)
    for name, weight in before.items():
        expected = weight.float() + strength * deltas[name].change()
        assert torch.allclose(changed.weight(name), expected, atol=1e-5), name
        assert torch.equal(model.weight(name).float(), weight.float()) and strength * deltas[name].norm() > 0.01


def as_inpainting(patcher: ModelPatcher) -> None:
    """Nine channels in: the picture's latent, the mask and the masked picture."""
    network = patcher.model.diffusion_model.inner
    wide = torch.nn.Conv2d(9, network.conv_in.out_channels, 3, padding=1)
    network.conv_in = as_host_module(wide)
    patcher.model.model_config.unet_config["in_channels"] = 9


@pytest.mark.parametrize("dense", [False, True], ids=["low-rank", "dense"])
def test_inpainting_networks_take_changes_of_layers_that_they_share(
    oracle: DiffusersModel, on_host: Any, filed: Any, dense: bool
) -> None:
    patcher, clip = on_host()
    as_inpainting(patcher)
    model = ComfyModel(patcher, clip)
    check_applied(model, filed(changes(oracle, dense)), 0.5)
    with pytest.raises(ModelError, match="9 channels"), model.trainable():
        pass


def test_a_change_of_another_shape_is_refused_as_a_whole(oracle: DiffusersModel, on_host: Any, filed: Any) -> None:
    """The host would only log a line about the one weight, and apply the others."""
    patcher, clip = on_host()
    stored = filed(changes(oracle, True, CONV_IN))
    assert CONV_IN in bound(stored, ComfyModel(patcher, clip)).changed()
    as_inpainting(patcher)
    for allow_other_base in (False, True):
        with pytest.raises(WrongBase, match="conv_in"):
            bound(stored, ComfyModel(patcher, clip), allow_other_base)
    assert patcher.patches == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_any_format_take_changes(
    oracle: DiffusersModel, on_host: Any, filed: Any, dtype: torch.dtype
) -> None:
    patcher, clip = on_host(dtype)
    model = ComfyModel(patcher, clip)
    stored = filed(changes(oracle, False))
    assert model.base_weight(next(iter(bound(stored, model)))).dtype == dtype
    check_applied(model, stored, 1.0)


def quantise(patcher: ModelPatcher) -> None:
    """8-bit weights with a scale, which their layers expand in each call."""
    for layer in patcher.model.modules():
        weight = layer._parameters.get("weight")
        if weight is not None:
            with torch.inference_mode():
                small = (weight / SCALE).to(torch.float8_e4m3fn)
                layer._parameters["weight"] = torch.nn.Parameter(small, requires_grad=False)
            layer.convert_weight = lambda held, inplace=False, **named: held.float() * SCALE


@pytest.mark.parametrize("dense", [False, True], ids=["low-rank", "dense"])
def test_quantised_weights_take_changes_of_their_base(
    oracle: DiffusersModel, on_host: Any, filed: Any, dense: bool
) -> None:
    patcher, clip = on_host()
    quantise(patcher)
    model = ComfyModel(patcher, clip)
    check_applied(model, filed(changes(oracle, dense)), 1.0)
    with pytest.raises(ModelError, match="quantised"), model.trainable():
        pass


def test_a_profile_holds_on_quantised_weights_of_its_base(
    oracle: DiffusersModel, on_host: Any, filed: Any, tmp_path: Path
) -> None:
    stored, library = filed(changes(oracle, False)), Library([tmp_path])
    profile = make_profile("studio", library, [(stored.path.name, 1.0, 1.0)])
    patcher, clip = on_host()
    quantise(patcher)
    assert bind_profile(profile, library, ComfyModel(patcher, clip))[0].deltas.changed()


def test_quantised_weights_of_another_base_are_refused(oracle: DiffusersModel, on_host: Any, filed: Any) -> None:
    stored = filed(changes(oracle, False))
    patcher, clip = on_host()
    layer = ComfyModel(patcher, clip).layers()[stored_name(oracle)]
    with torch.inference_mode():
        layer._parameters["weight"] = torch.nn.Parameter(-layer._parameters["weight"])
    quantise(patcher)
    with pytest.raises(WrongBase, match="another base"):
        bound(stored, ComfyModel(patcher, clip))


def stored_name(oracle: DiffusersModel) -> str:
    return next(iter(select(oracle.layers(), "cross-attention-kv")))


META = torch.device("meta")
"""Stands for a GPU: what is moved there is lost, so that nobody overlooks it."""


def places_of(deltas: Iterable[Delta]) -> set[str]:
    return {parameter.device.type for delta in deltas for parameter in delta.parameters()}


class Executor:
    """What the host gives to a wrapper: calls the network, and tells which one."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.class_obj = network

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x


def test_applying_leaves_nothing_on_the_device(oracle: DiffusersModel, on_host: Any, filed: Any) -> None:
    """The changes on a link live as long as the host caches the output, and it does not know of them."""
    patcher, clip = on_host()
    patcher.load_device = META
    stored, model = filed(changes(oracle, False)), ComfyModel(patcher, clip)
    assert places_of(bound(stored, model, True).deltas.values()) == {"meta"}
    assert places_of(stored.changes.values()) == {"cpu"}
    deltas = bound(stored, model, device=torch.device("cpu"))
    assert places_of(deltas.deltas.values()) == {"cpu"}
    limited = apply_deltas(model, deltas, Strengths(start=0.1))[0]
    (wrapper,) = limited.get_all_wrappers("apply_model")
    wrapper(Executor(patcher.model), torch.zeros(1, device="meta"), torch.tensor([0.1]))
    assert places_of(deltas.deltas.values()) == {"cpu"}


def test_a_converted_erasure_lies_where_one_from_a_file_does(oracle: DiffusersModel, tmp_path: Path) -> None:
    deltas = changes(oracle, False).to(META)
    with pytest.raises(NotImplementedError, match="meta"):  # it is copied, and from there nothing can be
        stored_form(oracle, deltas, None, tmp_path / "x.safetensors")
