"""Erasing through the host against erasing on the command line, on the same twin with the same seed and settings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_client import Graphs, Host, picture_of, sampler
from PIL import Image
from safetensors.torch import load_file

from erasure_core import Concept, read_erasure, write_erasure
from erasure_core.erasing import applied, erase
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.hosts.ldm_checkpoint import ModelParts, checkpoint_tensors
from erasure_core.methods import find_method

STEPS = 8
SETTINGS = {"steps": STEPS, "trajectories": 6, "trajectory_steps": 5, "batch": 2, "rank": 4}
BALL = Concept(("ball",), keep=("a red box",))


@pytest.fixture(scope="module")
def graphs(host: Host) -> Graphs:
    return Graphs(host)


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """||A - B|| / ||B|| of two files' whole changes."""
    names = {key.removesuffix(".lora_up.weight") for key in theirs if key.endswith(".lora_up.weight")}
    changes = [
        [f[f"{n}.lora_up.weight"].float() @ f[f"{n}.lora_down.weight"].float() for n in names] for f in (ours, theirs)
    ]
    missed = sum(float((a - b).double().square().sum()) for a, b in zip(*changes, strict=True))
    return float((missed / sum(float(b.double().square().sum()) for b in changes[1])) ** 0.5)


@pytest.mark.parametrize("method", ["closed_form", "esd"])
def test_the_node_makes_the_file_that_the_command_line_makes(
    host: Host, graphs: Graphs, twin: Path, tmp_path: Path, method: str
) -> None:
    settings: dict[str, Any] = SETTINGS if method == "esd" else {}
    outputs = host.run({**graphs.paint("erase"), **graphs.erase(method, **settings)})
    ours = load_file(host.base / "models/erasures" / outputs["erase"]["erasure"][0]["file"])
    model = DiffusersModel.load(twin, "cpu", pictures=False)
    erasure, _ = erase(model, BALL, method, find_method(method).settings(**settings))
    write_erasure(tmp_path / "theirs.safetensors", erasure, model)
    assert apart(ours, load_file(tmp_path / "theirs.safetensors")) < 0.02


def holds(checkpoint: Path, model: DiffusersModel) -> bool:
    """Whether a file holds a model's very numbers."""
    parts = ModelParts(model.unet, model.text_encoders, model.tokenizers, model.schedule, model.vae)
    wanted, found = checkpoint_tensors(parts), load_file(checkpoint)
    return wanted.keys() == found.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def euler(model: DiffusersModel, prompt: str, noise: torch.Tensor, steps: int, scale: float) -> torch.Tensor:
    """ComfyUI's "euler" with its "simple" steps, on the stand-alone model."""
    schedule = model.schedule
    sigmas = schedule.noise / schedule.signal
    places = [len(sigmas) - 1 - int(i * len(sigmas) / steps) for i in range(steps)]
    x = noise * (1 + sigmas[places[0]] ** 2).sqrt()
    conditioning = model.encode(["", prompt])
    for i, place in enumerate(places):
        sigma = sigmas[place]
        scaled = (x / (1 + sigma**2).sqrt()).repeat(2, 1, 1, 1)
        without, within = model.predict(scaled, torch.full((2,), place), conditioning).chunk(2)
        following = sigmas[places[i + 1]] if i + 1 < steps else 0.0
        x = x + (without + scale * (within - without)) * (following - sigma)
    return x


def test_a_narrow_erasure_widened_paints_on_the_host_what_the_narrow_model_paints(
    host: Host, graphs: Graphs, twin: Path, tmp_path: Path
) -> None:
    from proving_ground.painting import load_model
    from proving_ground.widen import widen_erasure, widen_model

    narrow = load_model()
    wide = widen_model(narrow)
    if not holds(twin, wide):
        pytest.skip("PROVING_GROUND_TWIN is not the bundled model's twin: make it anew, or unset it")
    erasure, _ = erase(narrow, BALL, "closed_form")
    write_erasure(host.base / "models/erasures/widened.safetensors", widen_erasure(erasure, wide), wide, torch.float32)
    write_erasure(tmp_path / "narrow.safetensors", erasure, narrow, torch.float32)
    graph = {**sampler(["apply", 0], ["apply", 1], steps=STEPS), **graphs.apply("widened.safetensors")}
    graph["paint"]["inputs"] |= {"sampler_name": "euler", "scheduler": "simple"}
    with Image.open(io.BytesIO(host.picture_bytes(picture_of(host.run(graph))))) as picture:
        theirs = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).view(64, 64, 3)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    deltas = read_erasure(tmp_path / "narrow.safetensors").bind(narrow)
    with torch.no_grad(), applied(narrow, [(deltas, 1.0)]):
        ours = narrow.decode(euler(narrow, "a red ball", noise, STEPS, 5.0))[0].movedim(0, -1)
    assert (ours.float() - theirs.float()).abs().mean() < 1.0
