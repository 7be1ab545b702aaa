"""``--prediction`` and ``--size``: what a model's files do not tell, for every command that loads one."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from pico import write_checkpoint, write_pico
from PIL import Image

from erasure_core import Concept, erase, read_erasure, sample
from erasure_core.cli.main import main, parser
from erasure_core.cli.model_arguments import load_chosen_model, pixels
from erasure_core.errors import ModelError
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import find_method


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd2")
    model = DiffusersModel.load(write_pico(folder / "model", "sd2", real_vocabulary=True))
    return write_checkpoint(folder / "model.safetensors", model)


def chosen(*arguments: object) -> DiffusersModel:
    return load_chosen_model(parser().parse_args(["inspect", "x", *map(str, arguments)]))


def test_a_size_is_one_side_or_two() -> None:
    assert pixels("512") == (512, 512) and pixels("768x512") == (512, 768) and pixels("64X4096") == (4096, 64)
    for wrong in ("", "x", "512x", "1x2x3", "-64", "100", "8", "4104", "64.0", "٦٤x", "9" * 400):
        with pytest.raises(argparse.ArgumentTypeError):
            pixels(wrong)


def test_what_is_said_overrules_the_files(checkpoint: Path, pico_folders: dict[str, Path]) -> None:
    assert chosen("--model", checkpoint).latent_shape == (4, 8, 8)
    assert chosen("--model", checkpoint, "--size", "128x64").latent_shape == (4, 8, 16)
    assert chosen("--model", checkpoint).schedule.prediction == "epsilon", "a pico's shapes bear no mark of v"
    assert chosen("--model", checkpoint, "--prediction", "v_prediction").schedule.prediction == "v_prediction"
    assert chosen("--model", pico_folders["sd1"], "--prediction", "v_prediction").schedule.prediction == "v_prediction"
    assert chosen("--model", pico_folders["sd2"], "--size", "64").schedule.prediction == "v_prediction"


def test_a_model_that_starts_from_pure_noise(pico_folders: dict[str, Path], tmp_path: Path) -> None:
    """As real v models do: it trains and paints, and is not taken for one that predicts epsilon."""
    folder = tmp_path / "model"
    shutil.copytree(pico_folders["sd2"], folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rescale_betas_zero_snr": True}))
    model = chosen("--model", folder)
    assert model.schedule.signal[-1] == 0
    quick = {"steps": 2, "rank": 2, "trajectories": 2, "trajectory_steps": 2, "batch": 2, "most_words": 1}
    settings = find_method("auto").settings(**quick)
    _, history = erase(model, Concept(("ball",), None, ("a box",)), "auto", settings)
    assert all(math.isfinite(value) for losses in history.losses for value in losses.values())
    assert torch.isfinite(sample(model, ["a ball"], [0], 4)).all()
    with pytest.raises(ModelError, match="starts from pure noise"):
        chosen("--model", folder, "--prediction", "epsilon")


@pytest.mark.parametrize("command", ["erase", "generate", "inspect", "merge", "convert", "bake"])
def test_every_command_takes_them(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert "--prediction {epsilon,v_prediction}" in shown and "--size PIXELS" in shown and "checkpoint" in shown


def test_they_reach_the_work(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "ball.safetensors"
    model = ["--model", str(checkpoint), "--prediction", "v_prediction"]
    quick = [
        "--method",
        "esd",
        "--no-replace",
        "--steps",
        "2",
        "--rank",
        "2",
        "--trajectories",
        "2",
        "--trajectory-steps",
        "2",
        "--batch",
        "1",
    ]
    assert main(["erase", *model, "--size", "128x64", "--concept", "ball", "--out", str(out), *quick]) == 0
    stored = read_erasure(out).manifest
    assert stored is not None and stored.prediction == "v_prediction"
    painting = ["--prompt", "a ball", "--steps", "2", "--out", str(tmp_path / "p")]
    assert main(["generate", *model, "--size", "128x64", *painting]) == 0
    assert Image.open(tmp_path / "p" / "0000_0.png").size == (128, 64)


def test_a_file_made_with_another_prediction_is_told(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ball.safetensors"
    base = ["--model", str(checkpoint), "--concept", "ball", "--method", "closed_form", "--out", str(out)]
    assert main(["erase", *base, "--prediction", "v_prediction"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["prediction"] == "v_prediction"
