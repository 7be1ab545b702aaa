"""What the pack costs in time: the start, a training step, sampling. ``measure_full_size.py`` has the rest.

    PYTHON measure.py start                     loading the pack on the fake host, beyond torch
    PYTHON measure.py step COMFYUI TWIN         a training step on the twin, in ComfyUI and stand-alone in turns
    PYTHON measure.py sampling COMFYUI TWIN     sampling the twin plain, erased, and erased in the second half
    PYTHON measure.py host COMFYUI TWIN         one side of ``step`` alone
    PYTHON measure.py stand-alone TWIN          the other side

Prints JSON. Times are CPU seconds of one thread, so that other work on the machine does not count. ``sampling`` and
``host`` run in ComfyUI's Python, the others in one with diffusers; for ``step``, COMFYUI_PYTHON names ComfyUI's.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SETTINGS = {"steps": 14, "trajectories": 6, "trajectory_steps": 4, "batch": 2, "rank": 16}
ROUNDS, SAMPLING_ROUNDS, PAINTED = 2, 9, 10


class Clock:
    """Notes the CPU time at the end of each training step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def update(self, report: Any) -> None:
        if report.stage == "training":
            self.times.append(time.process_time())

    def cancelled(self) -> bool:
        return False

    def step(self) -> float:
        """Seconds of the middle one, without the first two, which warm up."""
        return statistics.median(b - a for a, b in zip(self.times[1:], self.times[2:], strict=False))


def middle(values: Sequence[float]) -> dict[str, float]:
    """Median and middle half."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 4), "from": round(low, 4), "to": round(high, 4)}


def take_host(folder: str) -> None:
    """Make a ComfyUI importable, on the CPU."""
    from launch_host import define_missing_operators

    globals()["held"] = define_missing_operators()
    sys.path.insert(0, folder)
    from comfy.cli_args import args

    args.cpu = True


def import_pack() -> None:
    """This checkout as a host imports it: a package with a name of the host's choice."""
    from pack_nodes import PACK

    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)


def start() -> dict[str, Any]:
    """All that a host does before its pages are there: it imports the pack, asks for its nodes and for their schemas.

    Torch, numpy, safetensors and Pillow are there already, as in any host.
    """
    import fake_comfy
    import fake_io
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import safetensors.torch  # noqa: F401
    from pack_nodes import Nodes

    with tempfile.TemporaryDirectory() as folder:
        fake_comfy.install(Path(folder), fake_io.module(), lambda into, name, value: into.update({name: value}))
        gc.collect()
        gc.freeze()  # or torch's garbage may be collected while the clock runs
        began = time.process_time()
        import_pack()
        nodes = Nodes()
        return {"cpu_seconds": time.process_time() - began, "nodes": len(nodes.all)}


def trained(model: Any) -> dict[str, float]:
    from erasure_core import Concept, erase
    from erasure_core.methods import find_method

    clock = Clock()
    erase(model, Concept(("ball",), keep=("a red box",)), "esd", find_method("esd").settings(**SETTINGS), clock)
    return {"cpu_seconds_per_step": clock.step()}


def stand_alone(twin: str) -> dict[str, float]:
    from erasure_core.hosts.diffusers import DiffusersModel

    model = DiffusersModel.load(Path(twin), "cpu", pictures=False)
    model.latent_shape = (4, 8, 8)
    return trained(model)


def host(folder: str, twin: str) -> dict[str, float]:
    take_host(folder)
    import comfy.sd

    from erasure_core.hosts.comfyui import ComfyModel

    with torch.inference_mode():
        patcher, clip, *_ = comfy.sd.load_checkpoint_guess_config(twin, output_vae=False)
        return trained(ComfyModel(patcher, clip, resolution=64))


def step(folder: str, twin: str) -> dict[str, Any]:
    sides = {
        "host": [os.environ["COMFYUI_PYTHON"], __file__, "host", folder, twin],
        "stand-alone": [sys.executable, __file__, "stand-alone", twin],
    }
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, command in sides.items():
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[side].append(json.loads(told.splitlines()[-1])["cpu_seconds_per_step"])
    return {**found, "ratio": statistics.median(found["host"]) / statistics.median(found["stand-alone"])}


def sampling(folder: str, twin: str) -> dict[str, Any]:
    take_host(folder)
    import comfy.sample
    import comfy.sd

    from erasure_core import Concept, erase
    from erasure_core.hosts.comfyui import ComfyModel
    from erasure_core.hosts.comfyui_patches import Strengths, apply_deltas

    with torch.inference_mode():
        patcher, clip, *_ = comfy.sd.load_checkpoint_guess_config(twin, output_vae=False)
        loaded = ComfyModel(patcher, clip, resolution=64)
        with torch.inference_mode(False), torch.no_grad():
            deltas = erase(loaded, Concept(("ball",), keep=("a red box",)), "closed_form")[0].deltas
            models = {
                "plain": patcher,
                "erased": apply_deltas(loaded, deltas, Strengths())[0],
                "erased in the second half": apply_deltas(loaded, deltas, Strengths(start=0.5))[0],
            }
        prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a red ball", "")]
        latent = torch.zeros(1, 4, 8, 8)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))

        def painted(model: Any, steps: int) -> float:
            began = time.process_time()
            comfy.sample.sample(model, noise, steps, 5.0, "euler", "simple", *prompts, latent, disable_pbar=True)
            return time.process_time() - began

        return in_turns({kind: lambda steps, model=model: painted(model, steps) for kind, model in models.items()})


def in_turns(kinds: dict[str, Callable[[int], float]]) -> dict[str, Any]:
    """Seconds of each kind, and the ratios to the first kind of the same round.

    Before each, two steps are sampled without counting: the host then takes the last kind's patches off the weights
    and puts the next one's on, as with any LoRA.
    """
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for place in range(SAMPLING_ROUNDS + 1):
        for kind, paint in kinds.items():
            paint(2)
            taken = paint(PAINTED)
            if place:  # the first round warms up
                seconds[kind].append(taken)
    first, *others = seconds
    ratios = {k: middle([a / b for a, b in zip(seconds[k], seconds[first], strict=True)]) for k in others}
    return {"seconds a step": {k: middle([s / PAINTED for s in v]) for k, v in seconds.items()}, "ratios": ratios}


def run(works: dict[str, Callable[..., Any]]) -> None:
    """What the command line asks for, in one thread."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    kind, *arguments = sys.argv[1:]
    print(json.dumps(works[kind](*arguments)))


if __name__ == "__main__":
    run({"start": start, "step": step, "sampling": sampling, "host": host, "stand-alone": stand_alone})
