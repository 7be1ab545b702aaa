"""At which size a given picture is painted again: one rule for every front end."""

from __future__ import annotations

import math
from copy import copy
from pathlib import Path

import pytest
from PIL import Image

from erasure_core import Concept, erase, write_erasure
from erasure_core.cli.main import main
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.purify import painted_size


def _halvings(model: DiffusersModel) -> int:
    return sum(".downsamplers." in name for name in model.layers())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (480, 640), (1000, 600), (3000, 1000), (1, 1)])
def test_a_picture_keeps_its_proportions_at_the_area_of_the_model(
    pico_models: dict[str, DiffusersModel], height: int, width: int
) -> None:
    model = copy(pico_models["sd1"])
    model.latent_shape = (4, 64, 64)
    step = 8 * 2 ** _halvings(model)
    found = painted_size(model, height, width)
    assert all(side % step == 0 for side in found)
    for side, wanted in zip(found, (height, width), strict=True):
        assert abs(side - wanted * 512 / math.sqrt(height * width)) <= step / 2


def test_a_long_strip_is_painted_at_no_more_than_the_area_of_the_model(pico: DiffusersModel) -> None:
    tall, wide = painted_size(pico, 100_000, 1), painted_size(pico, 1, 100_000)
    assert tall == wide[::-1] and tall[0] * tall[1] == 64 * 64


def test_the_command_line_keeps_proportions(pico_folders: dict[str, Path], tmp_path: Path) -> None:
    model = DiffusersModel.load(pico_folders["sd1"])
    erasure, _ = erase(model, Concept(("ball",), None, ("a red box",)), "closed_form")
    write_erasure(tmp_path / "ball.safetensors", erasure, model)
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    for name, size in {"a": (40, 40), "b": (90, 90), "c": (200, 50), "d": (30, 30)}.items():
        Image.effect_noise(size, 90).convert("RGB").save(given / f"{name}.png")
    asked = ["--picture", str(given), "--caption", "a ball", "--steps", "2", "--batch", "2", "--out", str(out)]
    files = ["--model", str(pico_folders["sd1"]), "--erasure", str(tmp_path / "ball.safetensors")]
    assert main(["purify", *files, *asked]) == 0
    sizes = {path.name: Image.open(path).size for path in sorted(out.iterdir())}
    height, width = painted_size(model, 50, 200)
    assert width == 4 * height and sizes == {
        "0000_a.png": (64, 64), "0001_b.png": (64, 64), "0002_c.png": (width, height), "0003_d.png": (64, 64),
    }  # fmt: skip
