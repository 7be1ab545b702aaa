"""Pictures of a concept: read in bounded memory, and made in calls of bounded size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from erasure_core.cli.purify import _files as given_pictures_of_a_command
from erasure_core.concept_pictures import own_latents, read_picture, read_pictures, reads_pictures
from erasure_core.errors import InvalidFile
from erasure_core.hosts.clip_vision import MEAN, SPREAD, ClipVision
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import METHODS
from erasure_core.progress import Silent


@pytest.mark.parametrize("size", [(1, 60), (60, 1)])
def test_a_strip_is_cut_before_it_is_scaled(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def noted(self: Image.Image, size: tuple[int, int], *args: Any, **options: Any) -> Image.Image:
        made.append(tuple(size))
        return resize(self, size, *args, **options)

    Image.new("RGB", size, "red").save(tmp_path / "strip.png")
    monkeypatch.setattr(Image.Image, "resize", noted)
    assert read_picture(tmp_path / "strip.png", (64, 96)).shape == (3, 64, 96)
    assert made == [(96, 64)]


def test_the_middle_is_what_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 40:80] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert read_picture(tmp_path / "wide.png", (40, 40)).float().mean() == 255


def test_pictures_are_read_as_people_see_them(tmp_path: Path) -> None:
    ramp = np.linspace(0, 2**16 - 1, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    grey = read_picture(tmp_path / "deep.png", (64, 64)).float()
    assert abs(grey.mean() - 127) < 2 and grey.std() > 60
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    turned = Image.Exif()
    turned[0x0112] = 3  # the camera was held upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    assert read_picture(tmp_path / "turned.png", (32, 32))[:, 16:].float().mean() == 255


def made(path: Path, mode: str) -> Path:
    """A picture whose left half is blue and whose right half is transparent, with red hidden below."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, :16] = (0, 0, 255, 255)
    pixels[:, 16:] = (255, 0, 0, 0)
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture.quantize(2).save(path)
    elif mode == "one colour":
        picture.convert("RGB").save(path, transparency=(255, 0, 0))
    elif mode == "LA":
        picture.convert("LA").save(path)
    else:
        picture.save(path, lossless=True)
    return path


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "RGBA"), ("a.webp", "RGBA"), ("a.png", "LA"), ("a.png", "P"), ("a.png", "one colour")]
)
def test_what_is_transparent_is_white(tmp_path: Path, name: str, mode: str) -> None:
    read = read_picture(made(tmp_path / name, mode), (32, 32)).float()
    assert read[:, :, 20:].min() > 250 and read[0, :, :12].max() < 60


def test_moving_pictures_and_colours_for_print_are_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for name in ("a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert read_picture(tmp_path / name, (16, 16))[0].float().mean() > 250, "the first frame"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    assert read_picture(tmp_path / "print.jpg", (16, 16)).float().mean((1, 2)).tolist() == pytest.approx(
        [254, 0, 0], abs=3
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """Nobody writes into these pipes: whoever opens one waits for ever."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(InvalidFile, match=r"b\.png cannot be read: it is a folder, a pipe or a device"):
        read_pictures(tmp_path, (8, 8))
    with pytest.raises(InvalidFile, match="a pipe"):
        given_pictures_of_a_command(tmp_path / "b.png")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidFile, match="a pipe"):
        ClipVision.load(tmp_path)


def test_a_clip_folder_says_how_pictures_are_normalised_or_is_refused(tmp_path: Path) -> None:
    config = CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    assert (ClipVision.load(tmp_path).mean, ClipVision.load(tmp_path).spread) == (MEAN, SPREAD)
    told = tmp_path / "preprocessor_config.json"
    told.write_text('{"image_mean": [0.5, 0.5, 0.25], "image_std": [1, 1, 1]}')
    assert ClipVision.load(tmp_path).mean == (0.5, 0.5, 0.25) and ClipVision.load(tmp_path).spread == (1, 1, 1)
    for text, reason in (
        ("[]", "it is no object"),
        ("{", "Expecting"),
        ('{"image_mean": 0.5}', "not three numbers each"),
        ('{"image_mean": [0.5, 0.5]}', "not three numbers each"),
        ('{"image_mean": ["a", "b", "c"]}', "not three numbers each"),
        ('{"image_std": null}', "not three numbers each"),
        ('{"image_std": [1, 0, 1]}', "image_std is not above 0"),
    ):
        told.write_text(text)
        with pytest.raises(InvalidFile, match=rf"_config\.json does not say .*{reason}.*get a fresh copy\.$"):
            ClipVision.load(tmp_path)


def test_broken_pictures_are_told_with_what_to_do(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:4000])
    (tmp_path / "text.png").write_text("hello")
    for name, reason in (("cut.png", "damaged: "), ("text.png", "it is no PNG, JPEG, WebP or BMP")):
        with pytest.raises(InvalidFile, match=f"{reason}.*; save it anew as PNG or JPEG, or take it out"):
            read_picture(tmp_path / name, (8, 8))
    with (tmp_path / "bomb.png").open("wb") as file:
        Image.new("1", (20_000, 20_000)).save(file, format="PNG")
    with pytest.raises(InvalidFile, match="megapixels; make it smaller"):
        read_picture(tmp_path / "bomb.png", (8, 8))
    with pytest.raises(InvalidFile, match=r"does not exist.*check the path"):
        read_pictures(tmp_path / "nowhere", (8, 8))
    with pytest.raises(InvalidFile, match="is no folder; give the folder"):
        read_pictures(tmp_path / "cut.png", (8, 8))


def test_own_pictures_are_made_a_few_at_a_time(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    predict = pico.predict

    def noted(latents: Tensor, *args: Any) -> Tensor:
        sizes.append(len(latents))
        return predict(latents, *args)

    monkeypatch.setattr(pico, "predict", noted)
    with torch.no_grad():
        many = own_latents(pico, "ball", 9, 3, 2, 5.0, Silent())
        few = own_latents(pico, "ball", 9, 3, 2, 5.0, Silent(), max_batch=4)
    assert sizes == [16, 16, 2, 2] + [4] * 8 + [2] * 2
    torch.testing.assert_close(few, many, atol=1e-4, rtol=1e-4)


def test_methods_that_read_pictures() -> None:
    assert [name for name in sorted(METHODS) if reads_pictures(METHODS[name])] == ["auto", "co_erasing"]
