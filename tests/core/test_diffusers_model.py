"""The stand-alone model with configurations that leave something open or claim too much."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from erasure_core.errors import ModelError, PromptTooLong
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.model import Conditioning


def changed(folder: Path, copy: Path, file: str, **entries: object) -> Path:
    """A copy of a model folder with entries of one JSON file changed; ``None`` takes one out."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / file).read_text()) | entries
    (copy / file).write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return copy


@pytest.mark.parametrize("length", [None, 512])
def test_a_tokenizer_that_does_not_know_its_length(
    pico: DiffusersModel, pico_folders: dict[str, Path], tmp_path: Path, length: int | None
) -> None:
    file = "tokenizer/tokenizer_config.json"
    model = DiffusersModel.load(changed(pico_folders["sd1"], tmp_path / "x", file, model_max_length=length))
    assert torch.equal(model.encode(["a red ball"]).context, pico.encode(["a red ball"]).context)
    assert torch.equal(model.token_rows([[5, 6]])[0][0], pico.token_rows([[5, 6]])[0][0])
    with pytest.raises(PromptTooLong, match=r"The prompt 'cat cat .* 80 tokens, but only 75 are read"):
        model.token_rows(model.tokenize(["cat " * 80]))


@pytest.mark.parametrize(("family", "side"), [("sd1", 64), ("sd2", 96), ("sdxl", 128)])
def test_a_unet_that_does_not_know_its_size(
    pico_folders: dict[str, Path], tmp_path: Path, family: str, side: int
) -> None:
    folder = changed(pico_folders[family], tmp_path / "x", "unet/config.json", sample_size=None)
    assert DiffusersModel.load(folder, pictures=False).latent_shape == (4, side, side)


def test_pictures_that_the_autoencoder_reads_as_no_numbers(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the strength of what is painted from them would be blamed."""
    monkeypatch.setattr(pico.vae.config, "scaling_factor", torch.nan)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"\(VAE\) gives no finite numbers"):
        pico.latents_of(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_an_end_token_of_id_0_stands_in_its_place_alone(
    pico_models: dict[str, DiffusersModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder pools at the first end token: padding must not look like one."""
    model, rows = pico_models["sdxl"], []

    def seen(ids: list[Tensor], ends: tuple[int, ...]) -> Conditioning:
        rows.extend(ids)
        return Conditioning(torch.zeros(1, 77, 128), ends, None)

    monkeypatch.setattr(model, "_encode", seen)
    for tokenizer in model.tokenizers:
        monkeypatch.setattr(type(tokenizer), "eos_token_id", 0, raising=False)
    model.encode_embeddings([torch.zeros(1, 77, 64)] * 2, [3])
    assert [(row == 0).int().argmax(1).tolist() for row in rows] == [[3], [3]]
