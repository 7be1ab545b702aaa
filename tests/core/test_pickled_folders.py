"""A pickle in a model's folder is never read: it may run whatever a stranger wrote into it."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
from transformers import CLIPConfig, CLIPModel

from erasure_core import Concept
from erasure_core.cli.picture_check import PictureCheck
from erasure_core.errors import ErasureError, InvalidFile
from erasure_core.hosts.clip_vision import ClipVision
from erasure_core.hosts.diffusers import DiffusersModel


class Hostile:
    """Makes a folder of its name when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def pickled(folder: Path, name: str) -> Path:
    """In the place of a folder's weights a pickle; returns what it would make."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    mark = folder / "it ran"
    (folder / name).write_bytes(pickle.dumps(Hostile(mark)))
    return mark


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "diffusion_pytorch_model.bin"),
        ("vae", "diffusion_pytorch_model.bin"),
        ("text_encoder", "pytorch_model.bin"),
    ],
)
def test_models(pico_folders: dict[str, Path], tmp_path: Path, part: str, name: str) -> None:
    folder = shutil.copytree(pico_folders["sd1"], tmp_path / "model")
    mark = pickled(folder / part, name)
    with pytest.raises(InvalidFile, match=rf"{name} is a pickle.*get the same weights as \.safetensors"):
        DiffusersModel.load(folder)
    shutil.copy(
        pico_folders["sd1"] / "vae" / "diffusion_pytorch_model.safetensors", folder / part / "other.safetensors"
    )
    with pytest.raises(ErasureError):  # what is beside it does not make it welcome
        DiffusersModel.load(folder)
    assert not mark.exists()


def test_clip_models(tmp_path: Path) -> None:
    side = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPModel(CLIPConfig(text_config=side, vision_config=side, projection_dim=16)).save_pretrained(tmp_path)
    mark = pickled(tmp_path, "pytorch_model.bin")
    for load in (ClipVision.load, lambda folder: PictureCheck.load(folder, Concept(("ball",)))):
        with pytest.raises(InvalidFile, match=r"pytorch_model\.bin is a pickle"):
            load(tmp_path)
    (tmp_path / "other.safetensors").touch()
    for load in (ClipVision.load, lambda folder: PictureCheck.load(folder, Concept(("ball",)))):
        with pytest.raises(InvalidFile, match="is not a CLIP"):
            load(tmp_path)
    assert not mark.exists()
