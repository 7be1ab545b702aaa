"""The adapter tells the same of a web UI's model as the stand-alone one does of the same weights."""

from __future__ import annotations

import copy
import importlib
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
import torch
from torch import nn

from erasure_core import Concept, erase
from erasure_core.errors import ModelError, PromptTooLong
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.hosts.ldm_modules import canonical_unet_names
from erasure_core.hosts.training import recomputing
from erasure_core.hosts.webui import WebuiModel
from erasure_core.hosts.webui_text import TextSide
from erasure_core.hosts.webui_training import OutOfPlace, out_of_place, recomputed_blocks
from erasure_core.methods.esd import EsdSettings
from erasure_core.naming import ldm_paths

SHORT = EsdSettings(replace=False, steps=3, batch=1, trajectories=1, trajectory_steps=2, rank=2, refresh=2)


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_names_of_ldm_modules_are_the_inverse_of_file_names(
    family: str, pico_models: dict[str, DiffusersModel]
) -> None:
    names = [path for path, module in pico_models[family].unet.named_modules() if module._parameters]
    there = ldm_paths(names)
    back = canonical_unet_names(there.values())
    assert len(there) == len(names)
    assert {back[path]: path for path in there.values()} == there


@pytest.mark.parametrize("kind", ["a1111", "forge"])
def test_it_agrees_with_the_stand_alone_adapter(
    kind: str, source: DiffusersModel, request: pytest.FixtureRequest
) -> None:
    model = WebuiModel(request.getfixturevalue(kind).model, latent_side=8)
    assert (model.family, model.latent_shape) == (source.family, source.latent_shape)
    assert model.layers().keys() == source.layers().keys()
    torch.testing.assert_close(model.schedule.signal, source.schedule.signal)
    mine, theirs = model.encode(["a red ball", ""]), source.encode(["a red ball", ""])
    assert mine.ends == theirs.ends
    torch.testing.assert_close(mine.context, theirs.context)
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
    torch.testing.assert_close(model.predict(z, t, mine), source.predict(z, t, theirs))


def test_in_32_bits_no_half_precision_is_entered(a1111: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:  # as of old versions for "mps", switched off or not
        raise RuntimeError("User specified an unsupported autocast device_type")

    model = WebuiModel(a1111.model, latent_side=8)
    monkeypatch.setattr(torch, "autocast", refuse)
    model.predict(torch.randn(1, 4, 8, 8), torch.tensor([5]), model.encode(["a red ball"]))


def test_prompts_taken_apart_encode_to_the_same_bits(
    a1111: SimpleNamespace, source: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = WebuiModel(a1111.model)
    ids = model.tokenize(["a red ball"])
    assert model.detokenize(ids[0]) == source.detokenize(ids[0])
    rows, ends = model.token_rows(ids)
    vectors = [table[row] for table, row in zip(model.token_tables(), rows, strict=True)]
    whole = model.encode(["a red ball"]).context
    assert torch.equal(model.encode_embeddings(vectors, ends).context, whole)
    # Text is read from left to right, so a search need not encode the padding; nor where the encoder reads it anyway.
    (side,) = model.texts
    for is_open_clip in (False, True):
        side.is_open_clip = is_open_clip
        monkeypatch.setattr(
            type(model.texts[0]), "embedding", model.texts[0].network.text_model.embeddings.token_embedding
        )
        short = model.encode_embeddings([vector[:, : ends[0] + 2] for vector in vectors], ends).context
        torch.testing.assert_close(short, whole[:, : ends[0] + 2])
    with pytest.raises(PromptTooLong, match=r"The prompt 'ball.* 76 tokens, but only 75 are read"):
        model.token_rows(model.tokenize(["ball " * 76]))


def test_text_blocks_that_the_host_stops_before_are_not_there() -> None:
    """SD2's text encoder leaves out its last block; SDXL's second one pools what it says."""

    def names(**wrapped: Any) -> set[str]:
        blocks = [nn.ModuleDict({"mlp": nn.ModuleDict({"c_fc": nn.Linear(2, 2)})}) for _ in range(3)]
        network: Any = nn.Module()
        network.token_embedding, network.transformer = nn.Embedding(2, 2), nn.Module()
        network.transformer.resblocks = nn.ModuleList(blocks)
        engine = SimpleNamespace(wrapped=SimpleNamespace(model=network, **wrapped))
        return {name.split(".")[4] for name, _ in TextSide(engine, "text_encoder").layers()}

    assert names(layer_idx=1) == {"0", "1"}
    assert names(layer_idx=0) == names(layer_idx=1, return_pooled=True) == {"0", "1", "2"}


@pytest.mark.parametrize("kind", ["a1111", "forge"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_gives_the_same_change_and_leaves_the_host_as_it_was(
    kind: str, checkpointing: bool, source: DiffusersModel, request: pytest.FixtureRequest
) -> None:
    settings = EsdSettings(**{**SHORT.__dict__, "checkpointing": checkpointing})
    wanted, _ = erase(copy.deepcopy(source), Concept(("ball",)), "esd", settings)
    host = request.getfixturevalue(kind).model
    unet = host.model.diffusion_model if kind == "a1111" else host.forge_objects.unet.model.diffusion_model
    flags = [p.requires_grad for p in unet.parameters()]
    before = _weights(unet)
    made, _ = erase(WebuiModel(host, latent_side=8), Concept(("ball",)), "esd", settings)
    assert made.manifest.base_fingerprint == wanted.manifest.base_fingerprint
    for name in wanted.deltas:
        torch.testing.assert_close(made.deltas[name].change(), wanted.deltas[name].change(), rtol=1e-3, atol=1e-7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert [p.requires_grad for p in unet.parameters()] == flags
    assert not any("forward" in module.__dict__ for module in unet.modules())


def moves(patcher: Any) -> None:
    """A host whose memory is short: it moves a network in for each call, in its own mode, and another one out."""
    assert torch.is_inference_mode_enabled(), fakes.MOVED
    for module in patcher.model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.data = parameter.data.clone()


def test_what_the_host_moves_during_a_training_can_still_be_trained(
    forge: SimpleNamespace, source: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EsdSettings(**{**SHORT.__dict__, "layers": "text-encoder+cross-attention-kv"})
    wanted, _ = erase(copy.deepcopy(source), Concept(("ball",)), "esd", settings)
    monkeypatch.setattr(fakes.memory, "load_model_gpu", moves)
    made, _ = erase(WebuiModel(forge.model, latent_side=8), Concept(("ball",)), "esd", settings)
    for name in wanted.deltas:
        torch.testing.assert_close(made.deltas[name].change(), wanted.deltas[name].change(), rtol=1e-3, atol=1e-7)


def test_a_network_that_is_there_is_not_asked_for_again(
    forge: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host would make room for a picture first, and move the other network out in the middle of a training."""
    asked: list[Any] = []

    def loads(patcher: Any) -> None:
        asked.append(patcher)
        fakes.memory.current_loaded_models.append(SimpleNamespace(model=patcher))

    monkeypatch.setattr(fakes.memory, "load_model_gpu", loads)
    model = WebuiModel(forge.model, latent_side=8)
    with model.trainable():
        for _ in range(3):
            model.predict(torch.randn(1, 4, 8, 8), torch.tensor([5]), model.encode(["a ball"]))
    objects = forge.model.forge_objects_original
    assert len(asked) == 2 and {id(one) for one in asked} == {id(objects.clip.patcher), id(objects.unet)}


def test_where_torch_has_no_half_precision_of_its_own_the_host_has(
    a1111: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any, **__: Any) -> Any:
        raise RuntimeError("User specified an unsupported autocast device_type 'mps'")

    entered: list[str] = []
    monkeypatch.setattr(torch, "autocast", unsupported)
    sys.modules["modules.devices"].autocast = lambda: entered.append("the host's") or nullcontext()  # type: ignore
    model = WebuiModel(a1111.model.half(), latent_side=8)
    with model._precision():
        assert entered == ["the host's"]


def test_pictures_are_decoded_where_the_network_is(a1111: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a search has painted is kept in main memory until it is shown."""
    model, places = WebuiModel(a1111.model, latent_side=8), []

    def decode(latents: torch.Tensor) -> torch.Tensor:
        places.append(latents.device.type)
        return torch.zeros(len(latents), 3, 64, 64)

    monkeypatch.setattr(model.host, "decode", decode)
    model.device = torch.device("meta")
    model.decode(torch.zeros(1, 4, 8, 8))
    assert places == ["meta"]


def overflowing(given: torch.Tensor) -> torch.Tensor:
    """SDXL's autoencoder in 16 bits."""
    return torch.full((len(given), 3, 8, 8), torch.nan if given.dtype == torch.float16 else 0.0)


def test_an_autoencoder_that_overflows_is_asked_again_in_32_bits(
    a1111: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, vae = sys.modules["modules.devices"], a1111.model.vae[0].half()
    monkeypatch.setattr(devices, "dtype_vae", torch.float16)
    monkeypatch.setattr(a1111.model, "decode_first_stage", overflowing)
    monkeypatch.setattr(a1111.model, "encode_first_stage", lambda given: SimpleNamespace(mode=lambda: given))
    monkeypatch.setattr(a1111.model, "get_first_stage_encoding", overflowing)
    model = WebuiModel(a1111.model, latent_side=8)
    assert model.decode(torch.zeros(1, 4, 8, 8)).unique().tolist() == [128]
    assert model.latents_of(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).isfinite().all()
    assert vae.dtype == devices.dtype_vae == torch.float16, "the host's own"


@pytest.mark.parametrize(("kind", "cure"), [("a1111", "under Settings, VAE"), ("forge", "--vae-in-fp32")])
def test_an_autoencoder_without_numbers_is_told_as_such(
    kind: str, cure: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else pictures would be black, and a strength be blamed for what is read."""
    model = WebuiModel(request.getfixturevalue(kind).model, latent_side=8)
    for name in ("decode", "encode"):
        monkeypatch.setattr(model.host, name, lambda given: torch.full((1, 3, 8, 8), torch.nan))
    with pytest.raises(ModelError, match=rf"\(VAE\) gives no finite numbers; .*{cure}"):
        model.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ModelError, match=r"\(VAE\) gives no finite numbers"):
        model.latents_of(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


class BasicTransformerBlock(torch.nn.Module):
    """Forge's way: ``x += n``, which overwrites what backward needs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = torch.tanh(self.a(x))
        x = x * n
        n += x
        return n * x


@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_place_additions_get_right_gradients(checkpointing: bool) -> None:
    net = torch.nn.Sequential(BasicTransformerBlock(), BasicTransformerBlock()).double()
    x = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    plain = net(x).detach()

    def run(x: torch.Tensor) -> torch.Tensor:
        if not checkpointing:
            with OutOfPlace():
                return net(x)
        with recomputing(recomputed_blocks(net), out_of_place), OutOfPlace():
            return net(x)

    assert torch.equal(run(x), plain)
    assert torch.autograd.gradcheck(lambda x: _backward_inside(net, x, checkpointing), (x,))


def _backward_inside(net: torch.nn.Module, x: torch.Tensor, checkpointing: bool) -> torch.Tensor:
    with OutOfPlace():
        if not checkpointing:
            return net(x)
        with recomputing(recomputed_blocks(net), out_of_place):
            return net(x)


def test_an_in_place_addition_fails_without_the_cure() -> None:
    net, x = BasicTransformerBlock(), torch.randn(3, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        net(x).sum().backward()


def first_weight(model: fakes.SdModel) -> torch.nn.Parameter:
    return next(p for p in model.model.diffusion_model.parameters() if p.dim() > 1)


def move_first_layer(model: fakes.SdModel) -> None:
    """To a device that every machine has."""
    layer = next(m for m in model.model.diffusion_model.modules() if "weight" in m._parameters and m.weight.dim() > 1)
    layer._parameters["weight"] = torch.nn.Parameter(layer.weight.detach().to("meta"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model, shared: setattr(model, "lowvram", True), "medvram"),
        (lambda model, shared: shared.loaded_hypernetworks.append("one"), "hypernetwork"),
        (lambda model, shared: model.model.diffusion_model.half(), None),
        (lambda model, shared: model.model.diffusion_model.to(torch.float8_e4m3fn), "quantised"),
        (lambda model, shared: setattr(first_weight(model), "gguf_cls", object), "quantised"),
        (lambda model, shared: setattr(first_weight(model), "bnb_quantized", True), "quantised"),
        (lambda model, shared: setattr(sys.modules["modules.sd_unet"], "current_unet", object()), "alternative UNet"),
        (lambda model, shared: move_first_layer(model), "several devices"),
        (
            lambda model, shared: model.model.diffusion_model.__dict__.__setitem__("forward", lambda *a: None),
            "replaced its forward",
        ),
    ],
)
def test_training_is_refused_where_it_would_be_wrong(
    spoil: object, message: str | None, a1111: SimpleNamespace
) -> None:
    spoil(a1111.model, a1111.shared)  # type: ignore[operator]
    model = WebuiModel(a1111.model)
    if message is None:
        with model.trainable():
            assert model.dtype == torch.float16
    else:
        with pytest.raises(ModelError, match=message), model.trainable():
            raise AssertionError("it must not come this far")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda unet: unet.to(torch.float8_e4m3fn), "quantised"),
        (lambda unet: setattr(next(unet.parameters()), "gguf_cls", object), "quantised"),
        (lambda unet: setattr(next(unet.parameters()), "bnb_quantized", True), "quantised"),
        (lambda unet: unet.__dict__.__setitem__("forward", lambda *a: None), "replaced its forward"),
    ],
)
@pytest.mark.parametrize("kind", ["forge", "classic"])
def test_training_is_refused_on_the_forge_family_too(
    kind: str, spoil: Any, message: str, request: pytest.FixtureRequest
) -> None:
    model = WebuiModel(request.getfixturevalue(kind).model)
    spoil(model.unet)
    before = _weights(model.unet)
    with pytest.raises(ModelError, match=message), model.trainable():
        raise AssertionError("it must not come this far")
    assert all(torch.equal(tensor.float(), before[name].float()) for name, tensor in model.unet.state_dict().items())


def test_models_of_other_kinds_are_refused(a1111: SimpleNamespace) -> None:
    a1111.model.is_sd1 = False
    with pytest.raises(ModelError, match="not supported"):
        WebuiModel(a1111.model)
    with pytest.raises(ModelError, match="No model is loaded"):
        WebuiModel(SimpleNamespace())


def test_base_weights_come_without_erasures_and_merged_loras(a1111: SimpleNamespace, lora: fakes.Lora) -> None:
    model = WebuiModel(a1111.model, latent_side=8)
    name = next(name for name in model.layers() if name.endswith("attn2.to_k"))
    layer = model.layers()[name]
    clean = model.base_weight(name).clone()
    lora.load_networks([("style", {layer: torch.ones_like(clean)})])
    model.predict(torch.randn(1, 4, 8, 8), torch.tensor([5]), model.encode([""]))
    assert not torch.equal(model.weight(name), clean)
    assert torch.equal(model.base_weight(name), clean)
    with model.trainable():
        assert torch.equal(model.weight(name), clean)


def test_forge_loads_the_chosen_checkpoint_before_it_is_worked_on(
    forge: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, forge.shared.sd_model = forge.model, SimpleNamespace(cond_stage_model=None)  # as Forge has it at first
    monkeypatch.setattr(
        sys.modules["modules.sd_models"],
        "forge_model_reload",
        lambda: setattr(forge.shared, "sd_model", loaded),
        raising=False,
    )
    working = importlib.import_module("concept_erasure_webui.working")
    assert working.loaded_model().sd_model is loaded
