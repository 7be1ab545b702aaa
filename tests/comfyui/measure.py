"""What the adapter costs, in CPU seconds of one thread, so that other work on the machine does not count.

    PYTHON measure.py stand-alone TWIN              a training step on the twin, in an environment with diffusers
    PYTHON measure.py host COMFYUI TWIN             the same step in ComfyUI's environment
    PYTHON measure.py full-size COMFYUI [only]      SD1.5 at true size with random weights: applying, and added memory

Prints JSON. The same seed and settings everywhere; the first two steps of a training are left out.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {"steps": 14, "trajectories": 6, "trajectory_steps": 4, "batch": 2, "rank": 16}
FULL_SIZE = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "num_heads": 8, "context_dim": 768, "adm_in_channels": None, "legacy": False,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "use_checkpoint": False,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_temporal_attention": False, "use_temporal_resblock": False, "dtype": torch.float32,
}  # fmt: skip


class Clock:
    """Notes the CPU time at the end of each training step, and the most memory so far."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def update(self, report: Any) -> None:
        if report.stage == "training":
            self.times.append(time.process_time())

    def cancelled(self) -> bool:
        return False

    def step(self) -> float:
        return statistics.median(b - a for a, b in zip(self.times[1:], self.times[2:], strict=False))


def most_memory() -> float:
    """MB that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_now() -> float:
    """MB that this process holds. What it held most, less this, is at least what is added from here on."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def train(model: Any, **changed: Any) -> dict[str, float]:
    from erasure_core import Concept, erase
    from erasure_core.methods import find_method

    clock, before = Clock(), memory_now()
    settings = find_method("esd").settings(**{**SETTINGS, **changed})
    erase(model, Concept(("ball",), keep=("a red box",)), "esd", settings, clock)
    return {"cpu_seconds_per_step": clock.step(), "added_mb": most_memory() - before}


def stand_alone(twin: str) -> dict[str, Any]:
    from erasure_core.hosts.diffusers import DiffusersModel

    return train(DiffusersModel.load(Path(twin), "cpu", pictures=False))


def _host(folder: str) -> None:
    from launch_host import define_missing_operators

    globals()["held"] = define_missing_operators()
    sys.path.insert(0, folder)
    from comfy.cli_args import args

    args.cpu = True


def host(folder: str, twin: str) -> dict[str, Any]:
    _host(folder)
    import comfy.sd

    from erasure_core.hosts.comfyui import ComfyModel

    with torch.inference_mode():
        patcher, clip, *_ = comfy.sd.load_checkpoint_guess_config(twin, output_vae=False)
        return train(ComfyModel(patcher, clip, resolution=64))


def full_size(folder: str, only_apply: str = "") -> dict[str, Any]:
    _host(folder)
    import comfy.model_patcher
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models
    import comfy.utils

    from erasure_core.erasure_file import read_erasure
    from erasure_core.hosts.comfyui import ComfyModel
    from erasure_core.hosts.comfyui_patches import Strengths, apply_deltas, bound
    from erasure_core.library import Library
    from erasure_core.making import make_erasure
    from erasure_core.methods import find_method
    from erasure_core.progress import Silent

    with torch.inference_mode():
        model = comfy.supported_models.SD15(dict(FULL_SIZE)).get_model({}, "", device=None)
        clip = comfy.sd.CLIP(comfy.supported_models.SD15(dict(FULL_SIZE)).clip_target({}))
        for root in (model.diffusion_model, clip.cond_stage_model):
            for weight in root.parameters():
                weight.copy_(torch.randn_like(weight, dtype=torch.float32) * 0.02)
        device = torch.device("cpu")
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
        loaded = ComfyModel(patcher, clip, resolution=64)
        found: dict[str, Any] = {}
        from erasure_core import Concept

        method = find_method("closed_form")
        with tempfile.TemporaryDirectory() as name, torch.inference_mode(False), torch.no_grad():
            made = make_erasure(Library([Path(name)]), loaded, Concept(("ball",)), method, method.settings(), Silent())
            ours, stock = [], []
            for _ in range(6):
                start = time.process_time()
                fresh = ComfyModel(patcher, clip, resolution=64)
                apply_deltas(fresh, bound(read_erasure(made.path), fresh), Strengths())
                ours.append(time.process_time() - start)
                start = time.process_time()
                lora = comfy.utils.load_torch_file(str(made.path), safe_load=True)
                comfy.sd.load_lora_for_models(patcher, clip, lora, 1.0, 1.0)
                stock.append(time.process_time() - start)
        again = min(ours[1:])
        found["apply"] = {"first": ours[0], "again": again, "stock": min(stock), "ratio": again / min(stock)}
        if only_apply:
            return found
        for checkpointing in (True, False):
            few = {"steps": 4, "trajectories": 5, "trajectory_steps": 2, "batch": 1, "checkpointing": checkpointing}
            found[f"rank 16, checkpointing {checkpointing}"] = train(loaded, **few)
        return found


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    work = {"stand-alone": stand_alone, "host": host, "full-size": full_size}[sys.argv[1]]
    with torch.inference_mode(False):
        print(json.dumps(work(*sys.argv[2:])))
