"""One-file checkpoints in the original (LDM) layout: the same function as the diffusers folder, by the same names."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch
from pico import write_checkpoint, write_pico
from safetensors.torch import load_file, save_file

from erasure_core.errors import ErasureError, InvalidFile, ModelError
from erasure_core.hosts.diffusers import DiffusersModel

FAMILIES = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[DiffusersModel, Path]:
    """A pico model with the real vocabulary, and the same model as one file."""
    folder = tmp_path_factory.mktemp(request.param)
    model = DiffusersModel.load(write_pico(folder / "model", request.param, real_vocabulary=True))
    return model, write_checkpoint(folder / "model.safetensors", model)


def test_same_function_as_the_folder(both: tuple[DiffusersModel, Path]) -> None:
    model, path = both
    read = DiffusersModel.load(path, prediction=model.schedule.prediction)
    assert (read.family, read.latent_shape) == (model.family, model.latent_shape)
    assert set(read.layers()) == set(model.layers())
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])
    with torch.no_grad():
        ours, theirs = read.encode(["a red ball", ""]), model.encode(["a red ball", ""])
        torch.testing.assert_close(ours.context, theirs.context, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(read.predict(z, t, ours), model.predict(z, t, theirs), atol=1e-5, rtol=1e-4)
    assert (read.decode(z).int() - model.decode(z).int()).abs().max() <= 1
    torch.testing.assert_close(read.schedule.signal, model.schedule.signal)


def test_diffusers_own_conversion_agrees(both: tuple[DiffusersModel, Path]) -> None:
    """The keys are the original ones: diffusers' converter finds every UNet and autoencoder tensor under them."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    model, path = both
    state = load_file(path)
    unet = convert_ldm_unet_checkpoint(dict(state), dict(model.unet.config))  # type: ignore[arg-type]
    vae = convert_ldm_vae_checkpoint(dict(state), dict(model.vae.config))  # type: ignore[arg-type, union-attr]
    for converted, module in ((unet, model.unet), (vae, model.vae)):
        expected = module.state_dict()  # type: ignore[union-attr]
        assert set(converted) == set(expected)
        assert all(torch.equal(converted[name].reshape(expected[name].shape), expected[name]) for name in expected)


def test_diffusers_own_open_clip_conversion_agrees(both: tuple[DiffusersModel, Path]) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    model, path = both
    prefix = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}.get(model.family)
    if prefix is None:
        pytest.skip("SD1.x has no open_clip text encoder")
    encoder = model.text_encoders[-1]
    converted = convert_open_clip_checkpoint(encoder, load_file(path), prefix=prefix)  # type: ignore[arg-type]
    for name, tensor in encoder.state_dict().items():
        found = converted.get(name, converted.get(f"text_model.{name}"))
        assert found is not None and torch.equal(found, tensor), name


def test_v_prediction_marks() -> None:
    from erasure_core.hosts.ldm_checkpoint import V_PROBE, _Source, prediction_of

    wide = {V_PROBE: torch.randn(1000)}
    narrow = {V_PROBE: 0.01 * torch.randn(1000)}

    def source(tensors: dict[str, torch.Tensor]) -> _Source:
        return _Source(tensors.__getitem__, {k: v.shape for k, v in tensors.items()}, torch.float32)

    assert prediction_of(source(wide), "sd2", {}) == "v_prediction"
    assert prediction_of(source(narrow), "sd2", {}) == "epsilon"
    assert prediction_of(source(wide), "sd1", {}) == "epsilon"
    said = {kind: {"modelspec.prediction_type": kind} for kind in ("v", "epsilon")}
    assert prediction_of(source({}), "sd1", said["v"]) == "v_prediction"
    assert prediction_of(source({}), "sd1", {"modelspec.predict_key": "v"}) == "v_prediction"
    for mark in ("edm_mean", "edm_vpred.sigma_max"):
        with pytest.raises(ModelError, match="EDM"):
            prediction_of(source({mark: torch.zeros(1), "v_pred": torch.zeros(0)}), "sdxl", {})
    for kind in said:
        assert prediction_of(source({"v_pred": torch.zeros(0)}), "sdxl", said[kind]) == "v_prediction"


@pytest.mark.parametrize(("prediction", "side"), [("v_prediction", 96), ("epsilon", 64)])
def test_sd2_is_of_two_sizes(both: tuple[DiffusersModel, Path], tmp_path: Path, prediction: str, side: int) -> None:
    """Where the file does not say it: 2.1 was made for 768 pixels, 2.1-base for 512."""
    model, path = both
    if model.family != "sd2":
        pytest.skip("the other families are of one size")
    save_file(load_file(path), tmp_path / "silent.safetensors")
    read = DiffusersModel.load(tmp_path / "silent.safetensors", pictures=False, prediction=prediction)
    assert read.latent_shape == (4, side, side)


def test_a_checkpoint_that_starts_from_pure_noise(both: tuple[DiffusersModel, Path], tmp_path: Path) -> None:
    _, path = both
    marked = tmp_path / "noobs.safetensors"
    save_file(load_file(path) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, marked)
    schedule = DiffusersModel.load(marked, "cpu").schedule
    assert schedule.prediction == "v_prediction" and schedule.signal[-1] == 0 and schedule.signal[-2] > 0
    with pytest.raises(ModelError, match="if it predicts v, say so"):
        DiffusersModel.load(marked, "cpu", prediction="epsilon")


def test_damaged_and_foreign_files(both: tuple[DiffusersModel, Path], tmp_path: Path) -> None:
    _, path = both
    tensors = load_file(path)
    cases = {
        "no_unet": {k: v for k, v in tensors.items() if not k.startswith("model.")},
        "no_text": {k: v for k, v in tensors.items() if k.startswith(("model.", "first_stage"))},
        "one_missing": {k: v for k, v in tensors.items() if not k.endswith("out.2.weight")},
        "inpainting": tensors | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)},
        "lora": {"lora_unet_x.diff": torch.zeros(2, 2)},
        "whole": {k: v.int() if k.endswith("out.2.weight") else v for k, v in tensors.items()},
        "narrow": {k: v[:, :1].contiguous() if k.endswith("out.2.weight") else v for k, v in tensors.items()},
    }
    says = {"lora": "an erasure or another LoRA", "whole": "torch.int32", "narrow": "size mismatch"}
    for name, content in cases.items():
        save_file(content, tmp_path / name)
        with pytest.raises(ModelError) as caught:
            DiffusersModel.load(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
        assert says.get(name, "") in str(caught.value)
    (tmp_path / "cut").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InvalidFile):
        DiffusersModel.load(tmp_path / "cut")


def lying(rng: random.Random, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint with a few keys dropped, renamed, or of other shapes."""
    changed = dict(tensors)
    for key in rng.sample(sorted(changed), 3):
        tensor = changed.pop(key)
        kind = rng.choice(["drop", "rename", "empty", "vector", "longer", "turned", "type"])
        if kind == "rename":
            number = re.search(r"\d+", key)
            changed[key.replace(number[0], "77", 1) if number else f"x{key}"] = tensor
        elif kind != "drop":
            changed[key] = {
                "empty": tensor[:0],
                "vector": tensor.flatten(),
                "longer": torch.cat([tensor, tensor]),
                "turned": tensor.movedim(0, -1),
                "type": tensor.to(torch.int64),
            }[kind].contiguous()
    return changed


@pytest.mark.parametrize("seed", range(5))
def test_a_checkpoint_that_lies_is_refused_or_loaded_whole(
    both: tuple[DiffusersModel, Path], tmp_path: Path, seed: int
) -> None:
    rng, tensors = random.Random(seed), load_file(both[1])
    path = tmp_path / "x.safetensors"
    save_file(lying(rng, tensors), path)
    try:
        read = DiffusersModel.load(path)
    except ErasureError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        with torch.no_grad():
            read.predict(torch.zeros(1, 4, 8, 8), torch.tensor([5]), read.encode([""]))


def test_claims_beyond_the_files_size_take_no_memory(both: tuple[DiffusersModel, Path], tmp_path: Path) -> None:
    """Ten thousand layers, each claimed by one small tensor, are refused before one of them is made."""
    tensors = load_file(both[1])
    layer = re.compile(r"(.*(?:layers|resblocks)\.)\d+(\..*)")
    key, found = next((key, m) for key in tensors if (m := layer.match(key)))
    tensors |= {f"{found[1]}{i}{found[2]}": tensors[key][:1].clone() for i in range(2, 10_000)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="blocks or layers of one kind"):
        DiffusersModel.load(tmp_path / "x.safetensors")
