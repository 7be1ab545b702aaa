"""Pictures of a concept: read in bounded memory, and made in calls of bounded size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from erasure_core.concept_pictures import own_latents, read_picture, reads_pictures
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


def test_own_pictures_are_made_a_few_at_a_time(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    predict = pico.predict

    def noted(latents: Tensor, *args: Any) -> Tensor:
        sizes.append(len(latents))
        return predict(latents, *args)

    monkeypatch.setattr(pico, "predict", noted)
    with torch.no_grad():
        many = own_latents(pico, "ball", 9, 3, 2, Silent())
        few = own_latents(pico, "ball", 9, 3, 2, Silent(), max_batch=4)
    assert sizes == [16, 16, 2, 2] + [4] * 8 + [2] * 2
    torch.testing.assert_close(few, many, atol=1e-4, rtol=1e-4)


def test_methods_that_read_pictures() -> None:
    assert [name for name in sorted(METHODS) if reads_pictures(METHODS[name])] == ["auto", "co_erasing"]
