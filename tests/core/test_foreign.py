"""What others publish, by the names of each of them: what becomes an erasure, and what is told of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pico import write_checkpoint, write_pico
from random_changes import predict, random_deltas
from safetensors.torch import load_file, save_file
from torch import Tensor

from erasure_core import read_erasure
from erasure_core.cli.main import main
from erasure_core.errors import InvalidFile
from erasure_core.foreign import ForeignChange, read_foreign
from erasure_core.hosts.diffusers import DiffusersModel

CONV = "down_blocks.0.resnets.0.conv1.bias"
QUERY = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def read(path: Path, model: DiffusersModel) -> ForeignChange:
    return read_foreign(path, model, model.other_parameters())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[DiffusersModel, dict[str, Tensor]]:
    """A model, and its weights as a checkpoint in the original layout holds them."""
    folder = tmp_path_factory.mktemp("ldm")
    model = DiffusersModel.load(write_pico(folder / "model", "sd1", real_vocabulary=True))
    return model, load_file(write_checkpoint(folder / "model.safetensors", model))


def test_changed_biases_and_norms_are_told_by_the_original_names_too(
    checkpoint: tuple[DiffusersModel, dict[str, Tensor]], tmp_path: Path
) -> None:
    model, tensors = checkpoint
    unet = "model.diffusion_model."
    whole = tensors | {name: torch.rand(10) for name in ("betas", "alphas_cumprod", "sqrt_alphas_cumprod", "logvar")}
    whole |= {"model_ema.input_blocks00weight": torch.rand(2), "posterior_variance": torch.rand(10)}
    text = "cond_stage_model.transformer.text_model."
    changed = [f"{unet}{name}" for name in ("out.2.weight", "input_blocks.1.0.in_layers.2.bias", "out.0.weight")]
    changed += [f"{text}{name}" for name in ("final_layer_norm.bias", "embeddings.token_embedding.weight")]
    torch.save({"state_dict": whole | {name: whole[name] + 0.01 for name in changed}}, tmp_path / "compvis.pt")
    found = read(tmp_path / "compvis.pt", model)
    assert list(found.deltas) == ["unet.conv_out"] and found.unread == ()
    texts = [f"text_encoder.text_model.{name.removeprefix(text)}" for name in changed[3:]]
    assert found.left_out == sorted([CONV, "conv_norm_out.weight", *texts]) and 0 < found.left_out_share < 1


@pytest.mark.parametrize(
    "prefix",
    ["text_model.", "text_encoder.text_model.", "text_encoder.", "cond_stage_model.transformer.text_model.", ""],
)
def test_whole_weights_of_a_text_encoder(pico: DiffusersModel, tmp_path: Path, prefix: str) -> None:
    deltas = random_deltas(pico, "text-encoder", 3)
    state = {f"text_encoder.text_model.{name}": weight for name, weight in text_state(pico).items()}
    state |= {
        f"{name}.weight": pico.base_weight(name).detach() + delta.change() for name, delta in deltas.deltas.items()
    }
    state["text_encoder.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    named = {name.replace("text_encoder.text_model.", prefix): tensor.detach() for name, tensor in state.items()}
    torch.save(named, tmp_path / "text.pt")
    found = read(tmp_path / "text.pt", pico)
    assert set(found.deltas) == set(deltas) and found.unread == () and found.left_out == []
    torch.testing.assert_close(predict(pico, (found.deltas, 1.0)), predict(pico, (deltas, 1.0)), atol=1e-5, rtol=1e-4)


def text_state(model: DiffusersModel) -> dict[str, Tensor]:
    state = model.text_encoders[0].state_dict()
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def test_both_parts_of_a_concept_ablation(pico: DiffusersModel, tmp_path: Path) -> None:
    key = next(name for name in pico.layers() if name.endswith("attn2.to_k"))
    unet = {f"{key.removeprefix('unet.')}.weight": pico.base_weight(key).detach() + 0.01}
    text = text_state(pico) | {"encoder.layers.0.self_attn.q_proj.weight": pico.base_weight(QUERY).detach() + 0.01}
    torch.save({"unet": unet, "text_encoder": text}, tmp_path / "delta.bin")
    found = read(tmp_path / "delta.bin", pico)
    assert set(found.deltas) == {key, QUERY} and found.unread == ()


def test_a_text_encoder_of_which_only_the_embeddings_changed(pico: DiffusersModel, tmp_path: Path) -> None:
    state = {f"text_model.{name}": tensor for name, tensor in text_state(pico).items()}
    state["text_model.embeddings.token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"] + 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InvalidFile, match="changes of norms, biases and embeddings only"):
        read(tmp_path / "model.safetensors", pico)


def test_which_of_two_text_encoders_a_file_is_of_must_be_told(
    pico_models: dict[str, DiffusersModel], tmp_path: Path
) -> None:
    model, layer = pico_models["sdxl"], "text_model.encoder.layers.0.mlp.fc1"
    changed = 1.1 * model.base_weight(f"text_encoder_2.{layer}").detach()
    torch.save({f"{layer}.weight": changed}, tmp_path / "model.bin")
    with pytest.raises(InvalidFile, match="which of the model's text encoders"):
        read(tmp_path / "model.bin", model)
    torch.save({f"text_encoder_2.{layer}.weight": changed}, tmp_path / "model.bin")
    assert list(read(tmp_path / "model.bin", model).deltas) == [f"text_encoder_2.{layer}"]


@pytest.mark.parametrize("name", ["esd.pt", "esd.bin", "esd.safetensors", "peft.safetensors"])
def test_what_is_to_be_converted_first_is_told_with_the_command(
    pico_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path, key = tmp_path / name, "conv_out.lora_A.weight" if name.startswith("peft") else "conv_out.weight"
    (save_file if name.endswith(".safetensors") else torch.save)({key: torch.zeros(2, 2)}, path)
    generate = ["generate", "--model", str(pico_folders["sd1"]), "--erasure", str(path), "--prompt", "a ball"]
    for command in (["inspect", str(path)], [*generate, "--out", str(tmp_path / "made")]):
        assert main(command) == 3
        said = capsys.readouterr().err
        assert f"{path} " in said and "convert it first" in said and "fresh copy" not in said
        assert "concept-erasure convert FILE --model MODEL --concept WORD --out NEW.safetensors" in said
    assert main(["inspect", str(tmp_path / "missing.pt")]) == 3
    assert "missing.pt cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dora.pt", "dora.safetensors", "peft.safetensors"])
def test_a_dora_is_called_one(pico: DiffusersModel, tmp_path: Path, name: str) -> None:
    module, path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k", tmp_path / name
    kohya = (f"lora_unet_{module.replace('.', '_')}", "lora_down.weight", "lora_up.weight", "dora_scale")
    peft = (f"unet.{module}", "lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    layer, down, up, scale = peft if name.startswith("peft") else kohya
    rows, columns = pico.base_weight(f"unet.{module}").shape
    tensors = {f"{layer}.{down}": torch.ones(2, columns), f"{layer}.{up}": torch.ones(rows, 2)}
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors | {f"{layer}.{scale}": torch.ones(rows)}, path)
    works = [lambda: read(path, pico), *([lambda: read_erasure(path)] if name == "dora.safetensors" else [])]
    for work in works:
        with pytest.raises(InvalidFile, match="is a DoRA, no plain LoRA"):
            work()
