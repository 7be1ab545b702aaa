"""What the adapter costs on SD1.5 at true size, with random weights.

    PYTHON measure_full_size.py applying COMFYUI    CPU seconds of loading and applying a file, and of the stock loader
    PYTHON measure_full_size.py memory COMFYUI      memory that a training adds to the loaded model's, on Linux

Prints JSON. PYTHON is ComfyUI's.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import import_pack, run, take_host

TIMES, PROMPTS = 7, 20
SIZE = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "num_heads": 8, "context_dim": 768, "adm_in_channels": None, "legacy": False,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "use_checkpoint": False,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_temporal_attention": False, "use_temporal_resblock": False, "dtype": torch.float32,
}  # fmt: skip


def models(folder: str) -> tuple[Any, Any]:
    """MODEL and CLIP of SD1.5's shapes, made as the host makes them."""
    take_host(folder)
    import comfy.model_patcher
    import comfy.sd
    import comfy.supported_models

    with torch.inference_mode():
        model = comfy.supported_models.SD15(dict(SIZE)).get_model({}, "", device=None)
        clip = comfy.sd.CLIP(comfy.supported_models.SD15(dict(SIZE)).clip_target({}))
        for root in (model.diffusion_model, clip.cond_stage_model):
            for weight in root.parameters():
                weight.normal_(std=0.02)
        device = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device), clip


def applying(folder: str) -> dict[str, Any]:
    """*Load* and *Apply* as the host runs them, against what the stock *Load LoRA* does with the same file.

    ``first``: the host has seen neither file nor model: it is read, hashed and checked, and its base recognised.
    ``again``: another strength; both loaders then hold the file's content.
    """
    patcher, clip = models(folder)
    import comfy.sd
    import comfy.utils
    import folder_paths
    from pack_nodes import PACK

    import_pack()
    nodes = importlib.import_module(f"{PACK}.nodes.erasures")
    nodes_host = importlib.import_module(f"{PACK}.nodes.host")
    patches = importlib.import_module(f"{PACK}.erasure_core.hosts.comfyui_patches")
    core = importlib.import_module(f"{PACK}.erasure_core")
    closed_form = importlib.import_module(f"{PACK}.erasure_core.methods").find_method("closed_form")
    hosted = importlib.import_module(f"{PACK}.erasure_core.hosts.comfyui")
    found: dict[str, list[float]] = {"first": [], "stock, first": [], "again": [], "stock, again": []}
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder_paths.add_model_folder_path(nodes_host.FOLDER, name, is_default=True)
        folder_paths.folder_names_and_paths[nodes_host.FOLDER] = ([name], {".safetensors"})
        file = Path(name) / "ball.safetensors"
        loaded = hosted.ComfyModel(patcher, clip, resolution=64)
        with torch.inference_mode(False), torch.no_grad():
            alone = closed_form.settings(replace=False, neighbours=0, contexts=0)  # random weights know no other words
            made, _ = core.erase(loaded, core.Concept(("ball",), keep=("a red box",)), "closed_form", alone)
            core.write_erasure(file, made, loaded)
        inputs = nodes.ApplyErasure.define_schema().inputs
        widgets = {each.id: each.default for each in inputs if hasattr(each, "default")}

        def apply(erasure: Any, strength: float) -> None:
            given = {"model": patcher, "clip": clip, "erasure": erasure, "strength": strength}
            nodes.ApplyErasure.execute(**{**widgets, **given})

        for _ in range(TIMES):
            patches._RECOGNISED.clear()
            nodes._content.cache_clear()
            times = [time.process_time()]
            nodes.LoadErasure.fingerprint_inputs(file.name)
            (erasure,) = nodes.LoadErasure.execute(file.name, "").args
            apply(erasure, 1.0)
            times.append(time.process_time())
            lora = comfy.utils.load_torch_file(str(file), safe_load=True)
            comfy.sd.load_lora_for_models(patcher, clip, lora, 1.0, 1.0)
            times.append(time.process_time())
            apply(erasure, 0.5)
            times.append(time.process_time())
            comfy.sd.load_lora_for_models(patcher, clip, lora, 0.5, 0.5)
            times.append(time.process_time())
            for kind, began, ended in zip(found, times, times[1:], strict=False):
                found[kind].append(ended - began)
        size = file.stat().st_size / 2**20
    seconds = {kind: statistics.median(each[1:]) for kind, each in found.items()}  # the first ones import modules
    ratios = {kind: seconds[kind] / seconds[f"stock, {kind}"] for kind in ("first", "again")}
    return {"file, MB": round(size, 2), "cpu_seconds": seconds, "ratios": ratios}


def _status(name: str) -> float:
    """A figure of this process's memory in MB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def added(work: Callable[[], Any]) -> float:
    """The most memory that some work holds beyond what is held before it, MB."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is only held for later would hide what the work takes
    Path("/proc/self/clear_refs").write_text("5")  # begins the count of the most memory anew
    before = _status("VmRSS")
    work()
    return round(_status("VmHWM") - before, 1)


def memory(folder: str) -> dict[str, float]:
    """MB added by training keys and values of cross-attention at 64 pixels, batch 1: a whole training, however short,
    with its prompts, its trajectories and the optimiser's moments."""
    patcher, clip = models(folder)
    from erasure_core import Concept, erase
    from erasure_core.hosts.comfyui import ComfyModel
    from erasure_core.methods import find_method

    concept, found = Concept(("ball",), keep=("a red box",)), {}
    short = {"steps": 2, "trajectories": 2, "trajectory_steps": 1, "batch": 1, "neighbours": 0, "contexts": PROMPTS}
    with torch.inference_mode():
        model = ComfyModel(patcher, clip, resolution=64)
        for rank in (16, 0):
            for again in (True, False):
                settings = find_method("esd").settings(**short, rank=rank, checkpointing=again)
                kind = ("dense", f"rank {rank}")[rank > 0] + (", checkpointing" if again else "")
                found[kind] = added(lambda settings=settings: erase(model, concept, "esd", settings))
                print(kind, found[kind], file=sys.stderr)
    return found


if __name__ == "__main__":
    run({"applying": applying, "memory": memory})
