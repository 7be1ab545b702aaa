"""Erasure files: what is written is read back, other software loads it, and nothing strange gets through."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from erasure_core import Concept, DeltaSet, Erasure, applied, erase, read_erasure, write_erasure
from erasure_core.delta import DenseDelta, LowRankDelta
from erasure_core.erasing import describe
from erasure_core.errors import InvalidFile, OutputError, TrainingFailed, WrongBase
from erasure_core.fingerprint import SAMPLES, TOLERANCE, distance, fingerprint, sketch
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select
from erasure_core.manifest import Manifest
from erasure_core.naming import file_names, ldm_paths

CONCEPT = Concept(("ball", "orb"), "box", ("a red box",))


def random_erasure(model: DiffusersModel, groups: str, dense: bool = False) -> Erasure:
    """A closed form's manifest around random changes of the given layers."""
    known, _ = erase(model, CONCEPT, "closed_form")
    layers = select(model.layers(), groups)
    generator = torch.Generator().manual_seed(0)
    deltas: dict[str, LowRankDelta | DenseDelta] = {}
    for name, layer in layers.items():
        shape = layer.weight.shape
        full = 0.1 * torch.randn(shape, generator=generator)
        delta = LowRankDelta.zero(shape, 3, generator)
        delta.up.data.normal_(0, 0.3, generator=generator)
        deltas[name] = DenseDelta(full) if dense else delta
    manifest = replace(known.manifest, base_fingerprint=fingerprint(model, layers), base_sketch=sketch(model, layers))
    return Erasure(DeltaSet(deltas), manifest)


def prediction(model: DiffusersModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    z, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([20, 800])
    with torch.no_grad():
        return model.predict(z, t, model.encode(["a red ball", "cat"]))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("dense", [False, True])
def test_round_trip(pico_models: dict[str, DiffusersModel], family: str, dense: bool, tmp_path: Path) -> None:
    model, path = pico_models[family], tmp_path / "erasure.safetensors"
    erasure = random_erasure(model, "full+text-encoder", dense)
    written = write_erasure(path, erasure, model)
    stored = read_erasure(path)
    assert stored.manifest == written
    assert written.storage_error < (1e-9 if dense else 1e-3)
    with applied(model, [(erasure.deltas, 1.0)]):
        trained = prediction(model)
    with applied(model, [(stored.bind(model), 1.0)]):
        read = prediction(model)
    torch.testing.assert_close(read, trained, atol=0 if dense else 5e-3, rtol=0 if dense else 1e-2)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_diffusers_loads_a_low_rank_file_as_a_plain_lora(
    pico_folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    model, path = DiffusersModel.load(pico_folders[family]), tmp_path / "erasure.safetensors"
    write_erasure(path, random_erasure(model, "cross-attention+text-encoder"), model)
    with applied(model, [(read_erasure(path).bind(model), 1.0)]):
        expected = prediction(model)
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipeline = kind.from_pretrained(pico_folders[family])
    pipeline.load_lora_weights(str(path))
    encoders = [pipeline.text_encoder, *([pipeline.text_encoder_2] if family == "sdxl" else [])]
    tokenizers = [pipeline.tokenizer, *([pipeline.tokenizer_2] if family == "sdxl" else [])]
    theirs = prediction(DiffusersModel(pipeline.unet, encoders, tokenizers, model.schedule))
    assert (expected - prediction(model)).abs().max() > 1e-2, "the change must be visible"
    torch.testing.assert_close(theirs, expected, atol=1e-5, rtol=1e-4)


def test_untrained_text_attention_is_filled_with_zeros(pico: DiffusersModel, tmp_path: Path) -> None:
    erasure = random_erasure(pico, "text-encoder")
    only_v = {name: delta for name, delta in erasure.deltas.deltas.items() if name.endswith("v_proj")}
    write_erasure(tmp_path / "v.safetensors", Erasure(DeltaSet(only_v), erasure.manifest), pico)
    keys = set(load_file(tmp_path / "v.safetensors"))
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert f"lora_te_text_model_encoder_layers_0_self_attn_{part}.lora_up.weight" in keys
    own = fingerprint(pico, only_v), sketch(pico, only_v)
    manifest = replace(erasure.manifest, base_fingerprint=own[0], base_sketch=own[1])
    write_erasure(tmp_path / "v.safetensors", Erasure(DeltaSet(only_v), manifest), pico)
    assert read_erasure(tmp_path / "v.safetensors").bind(pico).changed() == sorted(only_v)


def test_metadata_names_what_hosts_look_for(pico: DiffusersModel, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "ball.safetensors"
    write_erasure(path, erase(pico, CONCEPT, "closed_form")[0], pico)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "sd_v1" and metadata["ss_output_name"] == "ball"
    manifest = json.loads(metadata["erasure"])
    assert manifest["words"] == ["ball", "orb"] and manifest["settings"]["damping"] == 0.1


def test_strength_is_linear_in_the_layers_output(pico: DiffusersModel) -> None:
    erasure = random_erasure(pico, "cross-attention-kv")
    name, delta = next(iter(erasure.deltas.deltas.items()))
    layer, x = pico.layers()[name], torch.randn(3, pico.layers()[name].weight.shape[1])
    outputs = []
    for strength in (0.0, 0.5, 1.0):
        with torch.no_grad(), DeltaSet({name: delta}, strength).attached(pico.layers()):
            outputs.append(layer(x))
    torch.testing.assert_close(outputs[1] - outputs[0], (outputs[2] - outputs[0]) / 2, atol=1e-5, rtol=1e-4)


def test_other_base_and_other_kind_are_refused(
    pico_models: dict[str, DiffusersModel], pico_folders: dict[str, Path], tmp_path: Path
) -> None:
    from pico import write_pico

    path = tmp_path / "erasure.safetensors"
    write_erasure(path, erase(pico_models["sd1"], CONCEPT, "closed_form")[0], pico_models["sd1"])
    stored = read_erasure(path)
    with pytest.raises(WrongBase, match="another kind of model"):
        stored.bind(pico_models["sdxl"])
    other = DiffusersModel.load(write_pico(tmp_path / "other", "sd1", seed=1))
    with pytest.raises(WrongBase, match="made on another base model"):
        stored.bind(other)
    assert len(stored.bind(other, allow_other_base=True)) == 8


def test_truncation_at_any_point_is_noticed(pico: DiffusersModel, tmp_path: Path) -> None:
    path = tmp_path / "whole.safetensors"
    write_erasure(path, erase(pico, CONCEPT, "closed_form")[0], pico)
    content = path.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 40)):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(InvalidFile):
            read_erasure(tmp_path / "cut")


def test_a_failed_write_leaves_nothing(pico: DiffusersModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_erasure(tmp_path / "file" / "x.safetensors", erase(pico, CONCEPT, "closed_form")[0], pico)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_layer_has_its_own_file_name(pico_models: dict[str, DiffusersModel], family: str) -> None:
    layers = pico_models[family].layers()
    for dense in (False, True):
        names = file_names(layers, family, dense)
        assert set(names) == set(layers) and len(set(names.values())) == len(layers)


def test_ldm_names_of_the_original_layout() -> None:
    """Spot checks against names of the original SD1.5 checkpoint: two blocks a level, four levels."""
    per_level = [f"down_blocks.0.resnets.{i}.conv1" for i in range(2)]
    known = {
        "conv_in": "input_blocks.0.0",
        "down_blocks.0.attentions.1.norm": "input_blocks.2.1.norm",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "down_blocks.3.resnets.1.conv2": "input_blocks.11.0.out_layers.3",
        "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
        "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
        "up_blocks.0.resnets.2.conv_shortcut": "output_blocks.2.0.skip_connection",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
        "up_blocks.1.attentions.2.proj_out": "output_blocks.5.1.proj_out",
        "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
        "up_blocks.3.attentions.2.transformer_blocks.0.ff": "output_blocks.11.1.transformer_blocks.0.ff",
        "conv_out": "out.2",
    }
    paths = ldm_paths([*per_level, *known])
    assert {name: paths[name] for name in known} == known


def test_manifest_survives_json() -> None:
    manifest = Manifest(("a", "b"), None, ("c",), "esd", "status", {"steps": 3}, 3, "sd1", "00", [0.5], "epsilon")
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_giant_product_is_described_without_being_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8 MB of factors stand for a weight of 4 TB."""
    from erasure_core.cli.main import main

    factors = {"lora_unet_x.lora_up.weight": torch.ones(10**6, 1), "lora_unet_x.lora_down.weight": torch.ones(1, 10**6)}
    save_file(factors, tmp_path / "giant.safetensors")
    assert main(["inspect", str(tmp_path / "giant.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["norm"] == pytest.approx(1e6)


def test_a_change_too_large_for_float16_is_stored_in_float32(pico: DiffusersModel, tmp_path: Path) -> None:
    erasure = random_erasure(pico, "cross-attention-kv")
    for delta in erasure.deltas.deltas.values():
        delta.up.data *= 1e6  # type: ignore[union-attr, operator]
    manifest = write_erasure(tmp_path / "x.safetensors", erasure, pico)
    assert manifest.dtype == "float32" and manifest.storage_error < 1e-6
    assert read_erasure(tmp_path / "x.safetensors").manifest == manifest


def test_a_change_that_is_not_finite_is_not_written(pico: DiffusersModel, tmp_path: Path) -> None:
    erasure = random_erasure(pico, "cross-attention-kv", dense=True)
    next(iter(erasure.deltas.parameters())).data[0, 0] = float("nan")
    with pytest.raises(TrainingFailed, match="not a finite number"):
        write_erasure(tmp_path / "x.safetensors", erasure, pico)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_base_is_recognised_in_other_number_formats(pico_folders: dict[str, Path], dtype: torch.dtype) -> None:
    model, other = DiffusersModel.load(pico_folders["sd1"]), DiffusersModel.load(pico_folders["sd1"])
    other.unet.to(dtype)
    names = sorted(select(model.layers(), "full"))
    assert 0 < distance(sketch(model, names), sketch(other, names)) <= TOLERANCE


def test_a_sketch_is_the_same_for_ever() -> None:
    """Files hold it: with another one no erasure would know its model."""
    weights = {"small": torch.arange(100.0), "large": torch.arange(3.0 * SAMPLES).remainder(7)}
    model: Any = SimpleNamespace(base_weight=weights.__getitem__)
    assert sketch(model, ["small"])[:8] == [64, -66, 64, -64, -64, -74, -76, 64]
    assert sha256(str(sketch(model, weights)).encode()).hexdigest()[:16] == "1e2c1bd7ef62b338"


def test_the_distance_of_sketches_is_that_of_the_weights(pico_folders: dict[str, Path]) -> None:
    model, other = DiffusersModel.load(pico_folders["sd1"]), DiffusersModel.load(pico_folders["sd1"])
    names = sorted(select(model.layers(), "full"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in names:
            weight = other.base_weight(name)
            noise = torch.randn(weight.shape, generator=generator)
            weight += 0.03 * noise * weight.norm() / noise.norm()
    assert distance(sketch(model, names), sketch(other, names)) == pytest.approx(0.03, rel=0.4)


def test_a_change_too_small_for_the_file_does_not_hide_the_base(pico: DiffusersModel, tmp_path: Path) -> None:
    erasure, _ = erase(pico, Concept(("ball",)), "closed_form")
    first = next(iter(erasure.deltas))
    faint = erasure.deltas[first]
    with torch.no_grad():
        faint.up.mul_(1e-12)  # type: ignore[operator, union-attr]
    erasure = Erasure(erasure.deltas, describe(pico, erasure.deltas, Concept(("ball",)), "closed_form", "", {}))
    write_erasure(tmp_path / "faint.safetensors", erasure, pico)
    bound = read_erasure(tmp_path / "faint.safetensors").bind(pico)
    assert first not in bound.changed() and len(bound.changed()) == len(erasure.deltas) - 1
