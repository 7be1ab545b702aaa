"""What other software makes of our files: each name is looked up as its loader does it, each sum done by its code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pico import write_checkpoint, write_pico
from random_changes import add_by_file_names, as_erasure, predict, random_deltas
from safetensors.torch import load_file, save_file

from erasure_core import DeltaSet, read_erasure, write_erasure
from erasure_core.delta import LowRankDelta
from erasure_core.errors import InvalidFile
from erasure_core.foreign import read_foreign
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.hosts.ldm_keys import CLIP_SD1, CLIP_SDXL, UNET

FAMILIES = ("sd1", "sd2", "sdxl")
PREFIXES = {"sd1": {CLIP_SD1: "lora_te"}, "sd2": {}, "sdxl": {CLIP_SDXL: "lora_te1"}}
"""Text encoders whose keys are those of files. open_clip's are not: hosts convert that part to CLIP's names first."""


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    model = DiffusersModel.load(write_pico(folder / "model", request.param, real_vocabulary=True))
    return write_checkpoint(folder / "model.safetensors", model)


@pytest.mark.parametrize("dense", [False, True])
def test_hosts_find_every_name_in_the_original_checkpoint(checkpoint: Path, dense: bool, tmp_path: Path) -> None:
    model = DiffusersModel.load(checkpoint)
    if not dense and model.family != "sdxl":
        pytest.skip("low-rank files of SD1.x and SD2.x have diffusers' names; diffusers' own loader checks them")
    deltas = random_deltas(model, "full+text-encoder" if PREFIXES[model.family] else "full", dense=dense)
    kept = {name: delta for name, delta in deltas.deltas.items() if not name.startswith("text_encoder_2.")}
    path, summed = tmp_path / "erasure.safetensors", tmp_path / "summed.safetensors"
    write_erasure(path, as_erasure(model, DeltaSet(kept)), model, torch.float32)
    prefixes = {UNET: "lora_unet", **PREFIXES[model.family]}
    save_file(add_by_file_names(load_file(checkpoint), load_file(path), prefixes), summed)
    expected = predict(model, (read_erasure(path).bind(model), 1.0))
    assert (expected - predict(model)).abs().max() > 1e-2, "the change must be visible"
    torch.testing.assert_close(predict(DiffusersModel.load(summed)), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_peft_computes_the_same_sum(kind: str) -> None:
    """peft as the oracle of the algebra: a layer with our factors and alpha computes what our hook computes."""
    from peft import LoraConfig
    from peft.tuners.lora import Conv2d as PeftConv2d
    from peft.tuners.lora import Linear as PeftLinear

    generator = torch.Generator().manual_seed(0)
    is_linear = kind == "linear"
    base = torch.nn.Linear(7, 5) if is_linear else torch.nn.Conv2d(7, 5, 3, stride=2, padding=1)
    delta = LowRankDelta.zero(base.weight.shape, 3, generator)
    delta.up.data.normal_(generator=generator)
    config = LoraConfig(r=3, lora_alpha=3)
    theirs = (PeftLinear if is_linear else PeftConv2d)(base, "default", config=config, r=3, lora_alpha=3)
    theirs.lora_A["default"].weight.data = delta.down.data
    theirs.lora_B["default"].weight.data = delta.up.data
    x = torch.randn(4, 7, generator=generator) if is_linear else torch.randn(2, 7, 6, 6, generator=generator)
    with torch.no_grad():
        plain = base(x)
        with DeltaSet({"layer": delta}, 0.7).attached({"layer": base}):
            ours = base(x)
        torch.testing.assert_close(ours - plain, 0.7 * (theirs(x) - plain), atol=1e-5, rtol=1e-5)
        theirs.merge()
        torch.testing.assert_close(theirs.get_base_layer()(x), theirs(x))
        theirs.unmerge()
        torch.testing.assert_close(base(x), plain, atol=1e-5, rtol=1e-5)


def test_factors_by_all_names_that_diffusers_has_had(pico: DiffusersModel, tmp_path: Path) -> None:
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    up, down = torch.randn(32, 2), torch.randn(2, 64)
    for first, second in (
        ("to_k.lora_A", "to_k.lora_B"),
        ("to_k.lora.down", "to_k.lora.up"),
        ("processor.to_k_lora.down", "processor.to_k_lora.up"),
    ):
        path = tmp_path / f"{first}.safetensors"
        save_file({f"unet.{module}.{first}.weight": down, f"unet.{module}.{second}.weight": up}, path)
        found = read_foreign(path, pico, pico.other_parameters()).deltas
        assert list(found) == [f"unet.{module}.to_k"]
        torch.testing.assert_close(found[f"unet.{module}.to_k"].change(), up @ down)


@pytest.mark.parametrize("prefix", ["text_encoder.text_model.", "text_encoder.", "base_model.model.text_model.",
                                    "base_model.model."])  # fmt: skip
def test_text_encoders_by_the_names_of_both_transformers_and_of_peft(
    pico: DiffusersModel, tmp_path: Path, prefix: str
) -> None:
    up, down = torch.randn(64, 2), torch.randn(2, 64)
    module = f"{prefix}encoder.layers.0.self_attn.q_proj"
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, tmp_path / "te.safetensors")
    found = read_foreign(tmp_path / "te.safetensors", pico, pico.other_parameters()).deltas
    assert list(found) == ["text_encoder.text_model.encoder.layers.0.self_attn.q_proj"]
    torch.testing.assert_close(next(iter(found.deltas.values())).change(), up @ down)


def test_a_pickled_lora_by_kohyas_names(pico: DiffusersModel, tmp_path: Path) -> None:
    deltas = random_deltas(pico, "cross-attention", 3)
    write_erasure(tmp_path / "a.safetensors", as_erasure(pico, deltas), pico)
    torch.save(load_file(tmp_path / "a.safetensors"), tmp_path / "a.pt")
    found = read_foreign(tmp_path / "a.pt", pico, pico.other_parameters()).deltas
    torch.testing.assert_close(predict(pico, (found, 1.0)), predict(pico, (deltas, 1.0)), atol=1e-3, rtol=1e-2)
    torch.save({"lora_unet_conv_in.lora_up.weight": torch.zeros(2, 2), "lora_x": torch.zeros(2)}, tmp_path / "b.pt")
    with pytest.raises(InvalidFile, match="no plain LoRA"):
        read_foreign(tmp_path / "b.pt", pico, pico.other_parameters())


def test_an_sdxl_lora_by_diffusers_names(pico_models: dict[str, DiffusersModel], tmp_path: Path) -> None:
    model = pico_models["sdxl"]
    name = next(name for name in model.layers() if name.endswith("attn2.to_k"))
    rows, columns = model.base_weight(name).shape
    up, down = torch.randn(rows, 2), torch.randn(2, columns)
    module = "lora_" + name.replace(".", "_")
    save_file({f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down}, tmp_path / "a.safetensors")
    found = read_erasure(tmp_path / "a.safetensors").bind(model)
    torch.testing.assert_close(found[name].change(), up @ down)


@pytest.mark.parametrize("alpha", [4, 8])
def test_a_lora_that_diffusers_trained_keeps_its_scale(
    pico_folders: dict[str, Path], pico: DiffusersModel, alpha: int, tmp_path: Path
) -> None:
    """Saved by diffusers with its notes on alpha, read by us: both predict the same."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = StableDiffusionPipeline.from_pretrained(pico_folders["sd1"])
    config = LoraConfig(r=4, lora_alpha=alpha, init_lora_weights=False, target_modules=["to_k", "to_v"])
    torch.manual_seed(0)
    pipeline.unet.add_adapter(config)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    notes = {"unet_lora_adapter_metadata": config.to_dict()}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **notes)
    found = read_foreign(tmp_path / "pytorch_lora_weights.safetensors", pico, pico.other_parameters())
    theirs = DiffusersModel(pipeline.unet, pico.text_encoders, pico.tokenizers, pico.schedule)
    expected = predict(theirs)
    assert (expected - predict(pico)).abs().max() > 1e-2, "the change must be visible"
    torch.testing.assert_close(predict(pico, (found.deltas, 1.0)), expected, atol=1e-5, rtol=1e-4)
