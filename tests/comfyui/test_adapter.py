"""The ComfyUI adapter against the diffusers adapter on the same pico models, under the host's conditions."""

from __future__ import annotations

import copy
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_comfy
import pytest
import torch
from fake_comfy import (
    CLIP,
    VAE,
    Continuous,
    Distilled,
    FewSteps,
    Interrupted,
    LoRAAdapter,
    ModelPatcher,
    Switches,
    loaded,
)

from erasure_core import Concept, erasure_file, read_erasure, write_erasure
from erasure_core.delta import DeltaSet, LowRankDelta, new_deltas
from erasure_core.erasing import applied, erase
from erasure_core.errors import Cancelled, InvalidSettings, ModelError, PromptTooLong, WrongBase
from erasure_core.hosts import comfyui_weights
from erasure_core.hosts.comfyui import ComfyModel
from erasure_core.hosts.comfyui_patches import Strengths, apply_deltas, bound, check_blocks, parse_blocks
from erasure_core.hosts.comfyui_weights import is_at, lent
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select
from erasure_core.making import request_key
from erasure_core.methods import find_method
from erasure_core.progress import Silent
from erasure_core.schedule import NoiseSchedule

PROMPTS = ["a red ball", "", "one blue cat"]
BALL = Concept(("ball",), keep=("a red box",))
SHORT = find_method("esd").settings(steps=3, trajectories=5, trajectory_steps=3, batch=2, rank=4)
KEY = "diffusion_model.inner.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
NAME = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"

pytestmark = pytest.mark.usefixtures("fake_host")


@pytest.fixture
def oracle(pico_models: dict[str, DiffusersModel]) -> DiffusersModel:
    return copy.deepcopy(pico_models["sd1"])


def on_host(oracle: DiffusersModel, dtype: torch.dtype = torch.float32) -> tuple[ModelPatcher, CLIP, VAE]:
    copied = copy.deepcopy(oracle)
    copied.tokenizers = oracle.tokenizers  # a copied tokenizer forgets how to decode
    parts = loaded(copied, dtype)
    parts[0].model.model_config.unet_config["context_dim"] = 1024 if oracle.family == "sd2" else 768
    return parts


def adapter(oracle: DiffusersModel, dtype: torch.dtype = torch.float32) -> ComfyModel:
    return ComfyModel(*on_host(oracle, dtype), resolution=64)


def state(model: ComfyModel) -> str:
    """A hash of all that an extension must leave alone: weights, flags and attributes of every module."""
    digest = hashlib.sha256()
    for root in (model.patcher.model, model.clip.cond_stage_model):
        for name, module in root.named_modules():
            digest.update(f"{name} {sorted(set(module.__dict__) - {'layer'})} {len(module._forward_hooks)}".encode())
            digest.update(str(len(module._forward_pre_hooks)).encode())
            for key, weight in module._parameters.items():
                if weight is not None:
                    digest.update(f"{key} {id(weight)} {weight.requires_grad} {weight.grad is None}".encode())
                    digest.update(weight.detach().float().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_encodes_and_predicts_as_diffusers_does(family: str, pico_models: dict[str, DiffusersModel]) -> None:
    oracle = pico_models[family]
    with torch.inference_mode():
        model = adapter(oracle)
        z, t = torch.randn(3, 4, 8, 8), torch.tensor([10, 500, 990])
        ours, theirs = model.encode(PROMPTS), oracle.encode(PROMPTS)
        assert ours.ends == theirs.ends and model.family == oracle.family
        assert torch.allclose(ours.context, theirs.context, atol=1e-5)
        assert torch.allclose(model.predict(z, t, ours), oracle.predict(z, t, theirs), atol=1e-4)
    assert model.schedule.prediction == oracle.schedule.prediction
    assert torch.allclose(model.schedule.signal, oracle.schedule.signal, atol=1e-5)
    assert set(oracle.layers()) - set(model.layers()) <= {n for n in oracle.layers() if "text_projection" in n}
    assert set(model.layers()) <= set(oracle.layers())


@pytest.mark.parametrize(
    ("family", "prediction", "side"),
    [
        ("sd1", "epsilon", 64),
        ("sd2", "v_prediction", 96),  # 2.1 at 768 pixels
        ("sd2", "epsilon", 64),  # 2.1-base
        ("sdxl", "epsilon", 128),
    ],
)
def test_pictures_are_as_large_as_the_model_was_made_for(
    family: str, prediction: str, side: int, pico_models: dict[str, DiffusersModel]
) -> None:
    oracle = copy.copy(pico_models[family])
    oracle.schedule = replace(oracle.schedule, prediction=prediction)
    assert ComfyModel(*on_host(oracle)).latent_shape == (4, side, side)


def test_an_autoencoder_without_numbers_is_told_as_such(
    oracle: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else pictures would be black, and a strength be blamed for what is read."""
    model = adapter(oracle)
    monkeypatch.setattr(VAE, "decode", lambda self, latents: torch.full((1, 64, 64, 3), torch.nan))
    monkeypatch.setattr(VAE, "encode", lambda self, pictures: torch.full((1, 4, 8, 8), torch.nan))
    with pytest.raises(ModelError, match=r"\(VAE\) gives no finite numbers; .*--fp32-vae"):
        model.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ModelError, match=r"\(VAE\) gives no finite numbers"):
        model.latents_of(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_networks_are_moved_in_the_mode_they_were_made_in(
    oracle: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, loading them in another mode breaks them for good, also for the host's own sampler."""
    model, loaded = adapter(oracle), []
    management = sys.modules["comfy.model_management"]
    monkeypatch.setattr(
        management, "load_models_gpu", lambda parts, **_: loaded.append(torch.is_inference_mode_enabled())
    )
    model.device = torch.device("meta")
    with model.trainable():
        assert loaded == [True] and not torch.is_inference_mode_enabled()
    latents = ComfyModel(*on_host(oracle)).latents_of(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert not latents.is_inference(), "a training may use it"


def test_room_is_made_beside_the_networks(oracle: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host keeps other models where it has room for a picture; a training needs more."""
    model, management = adapter(oracle), sys.modules["comfy.model_management"]
    other = adapter(oracle)
    held = [SimpleNamespace(model=part) for part in (other.patcher, model.patcher.clone(), None)]
    freed: list[tuple[float, Any]] = []
    asked: list[float] = []
    monkeypatch.setattr(management, "current_loaded_models", held)
    monkeypatch.setattr(management, "free_memory", lambda size, device, kept: freed.append((size, kept)))
    monkeypatch.setattr(management, "load_models_gpu", lambda parts, memory_required: asked.append(memory_required))
    model.device = torch.device("meta")
    with model.trainable():
        pass
    ((size, kept),) = freed
    assert kept == held[1:2], "its own network stays, whoever has loaded it"
    assert size > asked[0] > 0


def test_a_device_named_without_its_number_is_the_same() -> None:
    """Apple's: a tensor there is on mps:0, and the host calls the device mps."""
    here = torch.empty(1, device="meta")
    for name, same in (("meta", True), ("meta:0", here.device.index == 0), ("cpu", False)):
        assert is_at(here, torch.device(name)) == same


def test_weights_in_main_memory_are_copied_once_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer hosts keep all weights in main memory: to copy them in every call takes longer than the call."""
    module = torch.nn.Sequential(torch.nn.Linear(8, 8))
    size, device = 4 * 72, torch.device("meta")
    for free, ready in ((2 * size, True), (2 * size - 1, False), (None, False)):
        monkeypatch.setattr(comfyui_weights, "free_memory", lambda device, free=free: free)
        with lent(module, Stored(module), device, torch.float32):  # type: ignore[arg-type]
            assert (module[0].weight.device == device) == ready
            assert ("forward" in module[0].__dict__) == (not ready)
            assert module(torch.empty(2, 8, device=device)).device == device
        assert module[0].weight.device.type == "cpu" and "forward" not in module[0].__dict__


def test_text_layers_that_are_run_again_give_the_same_gradients(oracle: DiffusersModel) -> None:
    """Their weights are there in 32 bits one layer at a time; they add to their input in place."""
    model = adapter(oracle, torch.float16)
    layers = select(model.layers(), "text-encoder")
    with torch.inference_mode():
        found = [_text_gradients(model, layers, checkpointing) for checkpointing in (False, True)]
    assert any(gradient.abs().sum() > 0 for gradient in found[0])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def _text_gradients(model: ComfyModel, layers: dict[str, Any], checkpointing: bool) -> list[torch.Tensor]:
    with model.trainable(checkpointing):
        deltas = new_deltas(layers, 2, 0)
        for delta in deltas.deltas.values():
            torch.nn.init.normal_(delta.up, std=0.1, generator=torch.Generator().manual_seed(1))
        with deltas.attached(layers):
            model.encode(PROMPTS).context.square().sum().backward()
        return [parameter.grad for parameter in deltas.parameters() if parameter.grad is not None]


def test_text_is_read_where_the_model_computes(oracle: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has moved a text encoder away asks for its tokens on the CPU; the lent layers compute on the GPU."""
    model, asked = adapter(oracle), []
    own = fake_comfy.TextEncoder.process_tokens

    def noting(self: Any, tokens: Any, device: Any) -> Any:
        asked.append(device)
        return own(self, tokens, device)

    monkeypatch.setattr(fake_comfy.TextEncoder, "process_tokens", noting)
    model.encode(["a ball"])
    assert asked == [model.device], "and not what the host says, which is the word cpu here"
    assert all("process_tokens" not in getattr(model._text_root(), part).__dict__ for part in model.text_parts)


def test_training_gives_what_it_gives_stand_alone(oracle: DiffusersModel) -> None:
    with torch.inference_mode():
        model = adapter(oracle)
        before = state(model)
        with torch.inference_mode(False):
            ours, _ = erase(model, BALL, "esd", SHORT)
    theirs, _ = erase(oracle, BALL, "esd", SHORT)
    assert state(model) == before
    assert ours.manifest.base_fingerprint == theirs.manifest.base_fingerprint
    for name in theirs.deltas:
        assert torch.allclose(ours.deltas[name].change(), theirs.deltas[name].change(), atol=2e-5)


def test_text_encoder_learns_through_layers_that_add_in_place(oracle: DiffusersModel) -> None:
    settings = find_method("esd").settings(**{**SHORT.__dict__, "layers": "text-encoder+cross-attention-kv"})
    model = adapter(oracle)
    ours, theirs = erase(model, BALL, "esd", settings)[0], erase(oracle, BALL, "esd", settings)[0]
    trained = [name for name in ours.deltas if name.startswith("text_encoder")]
    assert trained and all(ours.deltas[name].norm() > 0 for name in trained)
    for name in theirs.deltas:
        assert torch.allclose(ours.deltas[name].change(), theirs.deltas[name].change(), atol=5e-5)


class RaiseAt(Silent):
    """Lets an operation of the host raise by itself in the second training step."""

    def update(self, report) -> None:
        if report.stage == "training" and report.step == 1:
            Switches.calls_until_raise = 40


def test_an_interrupt_from_inside_a_layer_leaves_the_host_untouched(oracle: DiffusersModel, tmp_path: Path) -> None:
    model, saved = adapter(oracle), tmp_path / "state"
    before = state(model)
    with pytest.raises(Cancelled):  # the node ends with the host's own again
        erase(model, BALL, "esd", SHORT, RaiseAt(), saved)
    Switches.reset()
    assert state(model) == before and saved.exists()
    resumed, whole = erase(model, BALL, "esd", SHORT, None, saved)[0], erase(model, BALL, "esd", SHORT)[0]
    assert all(torch.equal(resumed.deltas[name].change(), whole.deltas[name].change()) for name in whole.deltas)


def test_an_error_leaves_the_host_untouched(oracle: DiffusersModel) -> None:
    model = adapter(oracle)
    before = state(model)
    with pytest.raises(ZeroDivisionError), model.trainable(checkpointing=True):
        raise ZeroDivisionError
    assert state(model) == before


def lora(rank: int = 2) -> dict[str, LoRAAdapter]:
    torch.manual_seed(1)
    return {KEY: LoRAAdapter(set(), (torch.randn(64, rank), torch.randn(rank, 64), float(rank), None, None, None))}


@pytest.mark.parametrize("how", ["unloaded", "loaded", "lazily"])
def test_loras_before_the_node_count_in_every_load_state(oracle: DiffusersModel, how: str) -> None:
    patcher, clip, vae = on_host(oracle)
    patched = patcher.clone()
    assert patched.add_patches(lora(), 0.5) == [KEY]
    if how != "unloaded":
        patched.load(lazily=how == "lazily")
    model = ComfyModel(patched, clip, vae, resolution=64)
    base = oracle.base_weight(NAME)
    up, down = lora()[KEY].weights[:2]
    assert torch.equal(model.base_weight(NAME), base)
    assert torch.allclose(model.weight(NAME), base + 0.5 * up @ down, atol=1e-5)
    z, t, conditioning = torch.randn(1, 4, 8, 8), torch.tensor([500]), oracle.encode(["a ball"])
    with applied(oracle, [(DeltaSet({NAME: LowRankDelta(down, up)}), 0.5)]):
        expected = oracle.predict(z, t, conditioning)
    assert torch.allclose(model.predict(z, t, conditioning), expected, atol=1e-4)
    plain = ComfyModel(patcher, clip, vae, resolution=64)  # the same network, from the graph before the LoRA
    assert torch.allclose(plain.predict(z, t, conditioning), oracle.predict(z, t, conditioning), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_trains_on_weights_in_any_floating_format(oracle: DiffusersModel, dtype: torch.dtype) -> None:
    model = adapter(oracle, dtype)
    before = state(model)
    erasure, history = erase(model, BALL, "esd", SHORT)
    assert len(history.losses) == 3 and erasure.deltas.changed() and state(model) == before
    assert model.base_weight(NAME).dtype == dtype


def test_checkpointing_gives_the_same_gradients(oracle: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    monkeypatch.setattr("erasure_core.hosts.comfyui._blocks", lambda: (BasicTransformerBlock, ResnetBlock2D))
    model, found = adapter(oracle), []
    for checkpointing in (False, True):
        with model.trainable(checkpointing):
            deltas = new_deltas(select(model.layers(), "cross-attention"), 0, 0)
            with deltas.attached(model.layers()):
                out = model.predict(torch.ones(2, 4, 8, 8), torch.tensor([5, 900]), model.encode(["a cat", "a dog"]))
                out.square().mean().backward()
            found.append([p.grad for p in deltas.parameters()])
    assert all(torch.equal(plain, again) and plain.abs().sum() > 0 for plain, again in zip(*found, strict=True))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_token_embeddings_encode_as_their_tokens_and_carry_gradients(
    family: str, pico_models: dict[str, DiffusersModel]
) -> None:
    model = adapter(pico_models[family])
    ids, ends = model.token_rows(model.tokenize(PROMPTS))
    with model.trainable():
        rows = [table[row].requires_grad_() for table, row in zip(model.token_tables(), ids, strict=True)]
        soft, hard = model.encode_embeddings(rows, ends), model.encode(PROMPTS)
        assert torch.allclose(soft.context, hard.context, atol=1e-6) and soft.ends == hard.ends
        if family == "sdxl":
            assert soft.pooled is not None and torch.allclose(soft.pooled, hard.pooled, atol=1e-6)
        soft.context.square().mean().backward()
    assert all(row.grad is not None and row.grad.abs().sum() > 0 for row in rows)
    words = model.tokenize(["a red ball"])[0]
    assert model.detokenize(words) == pico_models[family].detokenize(words)


def test_too_long_prompts_are_refused(oracle: DiffusersModel) -> None:
    with pytest.raises(PromptTooLong, match=r"The prompt 'ball.* only 75 are read"):
        adapter(oracle).encode(["ball " * 80])


def test_what_cannot_be_trained_is_refused_in_one_sentence(oracle: DiffusersModel) -> None:
    patcher, clip, _ = on_host(oracle)
    with pytest.raises(ModelError, match="connect CLIP"), ComfyModel(patcher).trainable():
        pass
    patcher.model.model_config.unet_config["in_channels"] = 9
    with pytest.raises(ModelError, match="9 channels"), ComfyModel(patcher, clip).trainable():
        pass
    patcher.model.model_config.unet_config |= {"in_channels": 4, "context_dim": 2048}
    with pytest.raises(ModelError, match="not supported"):
        ComfyModel(patcher, clip)


def test_quantised_weights_are_not_trained(oracle: DiffusersModel) -> None:
    class QuantizedTensor(torch.Tensor): ...

    model = adapter(oracle)
    layer = model.layers()[NAME]
    layer._parameters["weight"] = layer._parameters["weight"].data.as_subclass(QuantizedTensor)
    with pytest.raises(ModelError, match="quantised"), model.trainable():
        pass


def test_models_with_another_noise_schedule_are_refused(oracle: DiffusersModel) -> None:
    for other in (Continuous, Distilled, FewSteps):
        patcher, clip, _ = on_host(oracle)
        patcher.model.model_sampling = other(patcher.model.model_sampling.sigmas)
        with pytest.raises(ModelError, match="noise schedule"):
            _ = ComfyModel(patcher, clip).schedule


def test_applied_patches_paint_as_the_deltas_do(oracle: DiffusersModel) -> None:
    erasure, _ = erase(oracle, BALL, "esd", SHORT)
    model = adapter(oracle)
    patcher, clip = apply_deltas(model, erasure.deltas, Strengths(0.5))
    assert patcher is not model.patcher and model.patcher.patches == {}
    z, t, conditioning = torch.randn(1, 4, 8, 8), torch.tensor([500]), oracle.encode(["a ball"])
    with applied(oracle, [(erasure.deltas, 0.5)]):
        expected = oracle.predict(z, t, conditioning)
    assert torch.allclose(ComfyModel(patcher, clip).predict(z, t, conditioning), expected, atol=1e-4)


def test_a_key_that_does_not_take_stops_the_graph(oracle: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host leaves unknown keys out without a word."""
    model = adapter(oracle)
    deltas = DeltaSet({NAME: LowRankDelta(torch.ones(1, 64), torch.ones(64, 1))})
    model.layers()
    monkeypatch.setitem(model._keys, NAME, KEY + "x")
    with pytest.raises(ModelError, match="did not take"):
        apply_deltas(model, deltas, Strengths())


def test_a_base_is_recognised_once_until_its_weights_move(
    oracle: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = on_host(oracle)
    model = ComfyModel(*parts, resolution=64)
    erasure, _ = erase(model, BALL, "closed_form")
    write_erasure(tmp_path / "ball.safetensors", erasure, model)
    stored, asked = read_erasure(tmp_path / "ball.safetensors"), []
    original = erasure_file.sketch
    monkeypatch.setattr(erasure_file, "sketch", lambda *a: asked.append(1) or original(*a))
    for _ in range(3):
        bound(stored, ComfyModel(*parts, resolution=64))
    assert len(asked) == 1
    layer = model.layers()[NAME]
    with torch.inference_mode():
        layer._parameters["weight"] = torch.nn.Parameter(-layer._parameters["weight"])
    with pytest.raises(WrongBase):
        bound(stored, ComfyModel(*parts, resolution=64))


def test_text_changes_need_clip(oracle: DiffusersModel) -> None:
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    patcher, clip, _ = on_host(oracle)
    deltas = DeltaSet({name: LowRankDelta(torch.ones(1, 64), torch.ones(64, 1))})
    with pytest.raises(ModelError, match="connect CLIP"):
        apply_deltas(ComfyModel(patcher), deltas, Strengths())
    _, changed = apply_deltas(ComfyModel(patcher, clip), deltas, Strengths(text=0.5))
    assert list(changed.patcher.patches) == ["clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"]
    assert clip.patcher.patches == {}


def test_block_weights_scale_the_layers_they_fit(oracle: DiffusersModel) -> None:
    erasure, _ = erase(oracle, BALL, "closed_form")
    model = adapter(oracle)
    strengths = Strengths(blocks=parse_blocks("# down less\nunet.down_blocks.* = 0.5\nunet.mid_block.* = 0"))
    patcher, _ = apply_deltas(model, erasure.deltas, strengths)
    found = {key.split(".")[2]: held[0][0] for key, held in patcher.patches.items()}
    assert found == {"down_blocks": 0.5, "up_blocks": 1.0}
    with pytest.raises(InvalidSettings, match="No changed layer fits"):
        check_blocks({"nothing.*": 0.5}, list(erasure.deltas))


@pytest.mark.parametrize("text", ["x", "= 1", "a = b", "a = 100", "a = nan"])
def test_wrong_block_weights_are_refused(text: str) -> None:
    with pytest.raises(InvalidSettings, match="no block weight"):
        parse_blocks(text)


def test_a_range_of_steps_changes_only_those(oracle: DiffusersModel) -> None:
    deltas = DeltaSet({NAME: LowRankDelta(torch.ones(1, 64), torch.ones(64, 1))})
    model = adapter(oracle)
    patcher, _ = apply_deltas(model, deltas, Strengths(start=0.0, end=0.5))
    assert patcher.patches == {} and model.patcher.wrappers == {}
    (wrapper,) = patcher.get_all_wrappers("apply_model")
    # The host may exchange the network below the wrappers: for another device, for conditioning with hooks.
    for network in (patcher.model, copy.deepcopy(patcher.model)):
        layer, hooked = network.get_submodule(model.key(NAME).removesuffix(".weight")), []

        def executor(x: torch.Tensor, t: torch.Tensor, layer: Any = layer, hooked: Any = hooked) -> torch.Tensor:
            hooked.append(len(layer._forward_hooks))
            return x

        executor.class_obj = network  # type: ignore[attr-defined]
        for sigma in (patcher.model.model_sampling.sigmas[-1], patcher.model.model_sampling.sigmas[0]):
            wrapper(executor, torch.ones(1), sigma.view(1))
        assert hooked == [1, 0] and not layer._forward_hooks
    executor.class_obj = torch.nn.Linear(2, 2)  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="has no layer"):
        wrapper(executor, torch.ones(1), patcher.model.model_sampling.sigmas[-1].view(1))


def test_what_only_counts_while_the_host_samples_is_no_part_of_a_training(oracle: DiffusersModel) -> None:
    """It is on no weight, so that an erasing, a search or a purified picture would silently leave it out."""
    model = adapter(oracle)
    deltas = DeltaSet({NAME: LowRankDelta(torch.ones(1, 64), torch.ones(64, 1))})
    limited, _ = apply_deltas(model, deltas, Strengths(end=0.5))
    bypassing = model.patcher.clone()
    bypassing.injections = {"lora": [object()]}
    for patcher, why in ((limited, "part of the sampling"), (bypassing, "bypass mode")):
        with pytest.raises(ModelError, match=why), ComfyModel(patcher, model.clip).trainable():
            pass
    assert apply_deltas(ComfyModel(limited, model.clip), deltas, Strengths())[0].patches, "but more can be applied"


def test_another_layer_of_the_text_encoder_or_another_schedule_is_another_request(oracle: DiffusersModel) -> None:
    method = find_method("closed_form")

    def key(model: ComfyModel) -> str:
        return request_key(model, Concept(("ball",)), method, method.settings())

    plain, skipping, other = adapter(oracle), adapter(oracle), adapter(oracle)
    skipping.clip = skipping.clip.clone()
    skipping.clip.layer_idx = -2
    schedule = other.schedule
    other._schedule = NoiseSchedule(schedule.signal**2, schedule.noise, schedule.prediction)
    assert len({key(plain), key(skipping), key(other)}) == 3 and key(plain) == key(adapter(oracle))


def test_a_clip_of_another_family_is_refused(pico_models: dict[str, DiffusersModel]) -> None:
    """SDXL's holds the text encoder of SD1 as well, in another state than that of the model."""
    model, other = adapter(pico_models["sd1"]), adapter(pico_models["sdxl"])
    with pytest.raises(ModelError, match="do not belong together"):
        ComfyModel(model.patcher, other.clip)


@pytest.mark.parametrize("resolution", [1, 7, 100])
def test_a_resolution_that_no_latent_has_is_refused(oracle: DiffusersModel, resolution: int) -> None:
    model = adapter(oracle)
    with pytest.raises(ModelError, match="multiple of 8"):
        ComfyModel(model.patcher, model.clip, None, resolution)


@pytest.mark.parametrize(("start", "end"), [(0.8, 0.2), (0.5, 0.5), (float("nan"), 1.0)])
def test_a_range_that_holds_no_step_is_refused(start: float, end: float) -> None:
    with pytest.raises(InvalidSettings, match="set start below end"):
        Strengths(start=start, end=end)


def test_a_range_of_steps_is_refused_on_a_compiled_model(oracle: DiffusersModel) -> None:
    """A compiled network leaves out hooks that come after its first call, without a word."""
    deltas = DeltaSet({NAME: LowRankDelta(torch.ones(1, 64), torch.ones(64, 1))})
    plain = adapter(oracle)
    compiled = plain.patcher.clone()
    compiled.add_wrapper_with_key("apply_model", "torch.compile", lambda executor, *inputs: executor(*inputs))
    with pytest.raises(ModelError, match="compiled model"):
        apply_deltas(ComfyModel(compiled), deltas, Strengths(end=0.5))
    assert apply_deltas(ComfyModel(compiled), deltas, Strengths())[0].patches, "the host's own patches are no hooks"
    # A node behind Apply may compile the model.
    (wrapper,) = apply_deltas(plain, deltas, Strengths(end=0.5))[0].get_all_wrappers("apply_model")
    told = [None, None, None, {"wrappers": compiled.wrappers}]
    for sigma in (plain.patcher.model.model_sampling.sigmas[-1], plain.patcher.model.model_sampling.sigmas[0]):
        with pytest.raises(ModelError, match="compiled model"):
            wrapper(lambda x, t, *others: x, torch.ones(1), sigma.view(1), *told)


def test_pictures_go_both_ways(oracle: DiffusersModel) -> None:
    model = adapter(oracle)
    pictures = model.decode(torch.randn(2, 4, 8, 8))
    assert pictures.shape == (2, 3, 64, 64) and pictures.dtype == torch.uint8
    assert model.latents_of(pictures).shape == (2, 4, 8, 8)
    model.vae = None
    with pytest.raises(ModelError, match="No VAE"):
        model.decode(torch.randn(1, 4, 8, 8))


def test_an_interrupt_from_inside_a_layer_cancels(oracle: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer hosts raise theirs, which is no ``Exception``, from every operation."""
    model = adapter(oracle)
    conditioning = model.encode(["a red ball"])

    def interrupted(*_: Any, **__: Any) -> Any:
        raise Interrupted

    monkeypatch.setattr(model.patcher.model.diffusion_model, "forward", interrupted)
    with pytest.raises(Cancelled, match="Interrupt"):
        model.predict(torch.randn(1, 4, 8, 8), torch.tensor([5]), conditioning)
    monkeypatch.setattr(model.clip.cond_stage_model.clip_l, "encode", interrupted)
    with pytest.raises(Cancelled, match="Interrupt"):
        model.encode(["a red ball"])


def test_an_interrupt_from_a_layer_that_a_backward_runs_again_cancels(
    oracle: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.models.attention import BasicTransformerBlock

    monkeypatch.setattr("erasure_core.hosts.comfyui._blocks", lambda: (BasicTransformerBlock,))
    model = adapter(oracle)
    before = state(model)
    with pytest.raises(Cancelled, match="Interrupt"), model.trainable(checkpointing=True):
        deltas = new_deltas(select(model.layers(), "cross-attention"), 0, 0)
        with deltas.attached(model.layers()):
            out = model.predict(torch.ones(1, 4, 8, 8), torch.tensor([5]), model.encode(["a cat"]))
            Switches.calls_until_raise = 0
            out.square().mean().backward()
    assert Switches.calls_until_raise < 0 and state(model) == before


@pytest.mark.parametrize("way", ["decode", "encode"])
def test_an_interrupt_from_inside_the_vae_cancels(
    oracle: DiffusersModel, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    model = adapter(oracle)

    def interrupted(*_: Any) -> Any:
        raise Interrupted

    monkeypatch.setattr(model.vae, way, interrupted, raising=False)
    with pytest.raises(Cancelled, match="Interrupt"):
        if way == "decode":
            model.decode(torch.zeros(1, 4, 8, 8))
        else:
            model.latents_of(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_cancelling_saves_the_state(oracle: DiffusersModel, tmp_path: Path) -> None:
    class Cancelling(Silent):
        def cancelled(self) -> bool:
            return bool(fake_comfy.ProgressBar.shown)

        def update(self, report) -> None:
            if report.stage == "training":
                fake_comfy.ProgressBar.shown.append((report.step, report.total))

    fake_comfy.ProgressBar.shown.clear()
    with pytest.raises(Cancelled):
        erase(adapter(oracle), BALL, "esd", SHORT, Cancelling(), tmp_path / "state")
    assert (tmp_path / "state").exists() and len(fake_comfy.ProgressBar.shown) == 1
    fake_comfy.ProgressBar.shown.clear()


class Stored:
    """Weights of a module as ``HostWeights`` tells of them."""

    prefix = ""

    def __init__(self, module: torch.nn.Module) -> None:
        self.tensors = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def is_patched(self, key: str) -> bool:
        return False

    def stored(self, key: str) -> torch.Tensor:
        return self.tensors[key]


def test_weights_in_another_format_are_held_once_however_often_they_are_called() -> None:
    """SDXL's text encoders are gigabytes, and one step calls them several times."""
    module = torch.nn.Sequential(torch.nn.Linear(8, 8).half())
    saved: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape == (8, 8):
            saved.append(tensor.data_ptr())
        return tensor

    x = torch.ones(2, 8, requires_grad=True)
    with lent(module, Stored(module), torch.device("cpu"), torch.float32):  # type: ignore[arg-type]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            results = [module(x) for _ in range(3)]
        torch.stack(results).sum().backward()
    assert len(saved) == 3 and len(set(saved)) == 1
    assert module[0].weight.dtype == torch.float16 and "forward" not in module[0].__dict__
