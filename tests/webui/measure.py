"""What the extension costs, as ratios or seconds.

    PYTHON measure.py step MODEL        a training step through the web UI's adapter on a fake host, against stand-alone
    PYTHON measure.py start             loading the extension and building its pages on a fake host, without gradio
    PYTHON measure.py toggle            switching on and off on fake hosts, with weights of SD1.5's true sizes
    PYTHON measure.py host CHECKPOINT   all of them on the real host in WEBUI_PATH that has loaded this checkpoint

Prints JSON. PYTHON has diffusers; the host runs with WEBUI_PYTHON and WEBUI_ARGS as in ``test_real_hosts.py``. Times
are CPU seconds of the process that works, so that other work on the machine does not count; only the host's own record
of its start is by the clock. For "toggle" on a real host to mean anything the checkpoint must have SD1.5's true size;
what is switched on a text encoder has the prompt encoded anew, which is a part of it.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SETTINGS = {"trajectories": 6, "trajectory_steps": 4, "batch": 2, "rank": 16, "start": "nothing"}
WORDS = {
    "layers": "text-encoder",
    "trajectories": 2,
    "trajectory_steps": 2,
    "batch": 1,
    "steps": 2,
    "learning_rate": 0.01,
}
KEYS_AND_VALUES = [(width, 768) for width, count in ((320, 5), (640, 5), (1280, 6)) for _ in range(2 * count)]
TEXT = [shape for _ in range(12) for shape in (*[(768, 768)] * 4, (3072, 768), (768, 3072))]
"""Shapes of the layers that erasures of SD1.5 change: 19 and 85 million weights."""
FEW, MANY, ROUNDS, STARTS, PAINTED = 4, 24, 3, 3, 7
SIDE, KEEP, PROMPT = 64, "a red box", "a red ball"
SCRIPT, PAGES = "load scripts/concept_erasure.py", "create ui"


def per_step(train: Callable[[int, int], float]) -> float:
    """Seconds of one step, from a short and a long training: what comes before the first step falls out."""
    return statistics.median((train(MANY, seed) - train(FEW, seed)) / (MANY - FEW) for seed in range(ROUNDS))


def trained(model: Any) -> Callable[[int, int], float]:
    """CPU seconds of a training in this process."""
    from erasure_core import Concept, erase
    from erasure_core.methods import find_method

    def train(steps: int, seed: int) -> float:
        settings = find_method("esd").settings(**SETTINGS, steps=steps, seed=seed)
        start = time.process_time()
        erase(model, Concept(("ball",), keep=(KEEP,)), "esd", settings)
        return time.process_time() - start

    return train


def stand_alone(path: str) -> Any:
    from erasure_core.hosts.diffusers import DiffusersModel

    model = DiffusersModel.load(Path(path), "cpu", pictures=False)
    model.latent_shape = (4, SIDE // 8, SIDE // 8)
    return model


def step(path: str) -> dict[str, float]:
    sys.modules.update(_fakes().install(Path(tempfile.gettempdir())))
    from erasure_core.hosts.webui import WebuiModel

    alone = stand_alone(path)
    host = WebuiModel(_fakes().SdModel(copy.deepcopy(alone)), SIDE // 8)
    return _compared(per_step(trained(host)), per_step(trained(alone)))


def _compared(host: float, alone: float) -> dict[str, float]:
    return {"seconds_in_host": host, "seconds_stand_alone": alone, "ratio": host / alone}


def _fakes() -> Any:
    sys.path.insert(0, str(HERE))
    import fakes

    return fakes


def start() -> dict[str, float]:
    made = _fakes().install(Path(tempfile.mkdtemp()))
    import fake_gradio
    import safetensors.torch
    from fake_host import Extension, web_framework

    made |= web_framework() | {"gradio": fake_gradio.Page()}
    extension = Extension(made)
    sys.modules.update(made)
    shared: Any = made["modules.shared"]
    shared.cmd_opts.api = True
    assert safetensors.torch, "the host has imported torch, numpy, safetensors and Pillow before any extension"
    for name in [name for name in sys.modules if name.split(".")[0] == "erasure_core"]:
        del sys.modules[name]
    times = [time.process_time()]
    for work in (extension.execute, extension.start_ui):
        work()
        times.append(time.process_time())
    return {"script": times[1] - times[0], "pages_without_gradio": times[2] - times[1], "all": times[2] - times[0]}


def toggle() -> dict[str, Any]:
    sys.modules.update(_fakes().install(Path(tempfile.gettempdir())))
    sys.modules["backend.memory_management"] = _fakes().memory
    found: dict[str, Any] = {}
    for kind in ("a1111", "forge", "classic"):
        for part, shapes in (("unet", KEYS_AND_VALUES), ("text_encoder", TEXT)):
            times = [_toggled(kind, part, shapes) for _ in range(ROUNDS)]
            found[f"{kind}, {part}"] = {
                "on": statistics.median(on for on, _ in times),
                "off": statistics.median(off for _, off in times),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
    return found


def _toggled(kind: str, part: str, shapes: list[tuple[int, int]]) -> tuple[float, float]:
    """CPU seconds of putting a change of rank 16 on, with what the fake host does for it, and of taking it off."""
    import torch
    from torch import nn

    from erasure_core.delta import DeltaSet, LowRankDelta
    from erasure_core.hosts.webui_hosts import host_of
    from erasure_core.hosts.webui_patching import patcher_for
    from erasure_core.hosts.webui_slots import Applied

    torch.set_num_threads(1)
    unet = nn.Module()
    unet.layers = nn.ModuleList(nn.Linear(inputs, rows, bias=False) for rows, inputs in shapes).requires_grad_(False)
    deltas = {
        f"{part}.layers.{place}": LowRankDelta(torch.randn(16, inputs), 0.01 * torch.randn(rows, 16)).requires_grad_(
            False
        )
        for place, (rows, inputs) in enumerate(shapes)
    }
    root, text = nn.Module(), part == "text_encoder"
    root.diffusion_model = unet
    if kind == "a1111":
        sd_model: Any = nn.Module()
        sd_model.model = root
    else:
        made, objects = _fakes().Patcher if kind == "forge" else _fakes().OldPatcher, _fakes().Objects
        _fakes().memory.current_loaded_models.clear()
        sd_model = SimpleNamespace(forge_objects=objects(made(root), _fakes().clip_of(made(root))))
        sd_model.forge_objects_original = sd_model.forge_objects.shallow_copy()
    layers = dict(zip(deltas, unet.layers, strict=True))
    model = SimpleNamespace(
        sd_model=sd_model, host=host_of(sd_model), unet=unet, family="sd1", texts=[], layers=lambda: layers
    )
    patcher: Any = patcher_for(model)  # type: ignore[arg-type]  # as much of one as patching takes

    def switch(*wanted: Applied) -> float:
        start = time.process_time()
        if kind == "a1111":
            patcher.apply(wanted)
        else:
            sd_model.forge_objects = sd_model.forge_objects_original.shallow_copy()
            patcher.apply(wanted, text=text)
            with torch.inference_mode():
                objects = sd_model.forge_objects
                _fakes().memory.load_model_gpu(objects.clip.patcher if text else objects.unet)
        assert patcher.in_effect(wanted) if kind == "a1111" else patcher.in_effect(wanted, text=text)
        return time.process_time() - start

    return switch(Applied("one", "digest", DeltaSet(deltas))), switch()


def seconds_of(pid: int) -> float:
    """CPU seconds of a process so far, on Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _started(*more: str, ready: str | None = None) -> Any:
    sys.path.insert(0, str(HERE))
    from real_host import OURS, WebUi, interpreter

    return closing(WebUi(Path(os.environ["WEBUI_PATH"]), interpreter(), list(more), ready=ready or OURS))


def _erased(web: Any, **given: Any) -> tuple[float, str]:
    """CPU seconds of an erasing in the host, and the tag's name of the file."""
    before = seconds_of(web.process.pid)
    status, answer = web.erase("ball", keep=[KEEP], side=SIDE, **given)
    assert status == 200 and answer["status"] == "done", answer
    return seconds_of(web.process.pid) - before, Path(answer["file"]).stem


def _painted(web: Any, *prompts: str) -> list[float]:
    """CPU seconds of a generation of each prompt, of several with these in turn; the first ones are left out."""
    times: dict[str, list[float]] = {prompt: [] for prompt in prompts}
    for turn in range(PAINTED):
        for prompt in prompts:
            before = seconds_of(web.process.pid)
            assert web.paint(prompt) is not None, web.said
            times[prompt] += [seconds_of(web.process.pid) - before] if turn else []
    return [statistics.median(each) for each in times.values()]


def _switched(web: Any, name: str) -> dict[str, float]:
    """CPU seconds that a generation takes longer which has to switch an erasure on, and off."""
    erase = f"{PROMPT}<erase:{name}:1>"
    (without,), (erased,) = _painted(web, PROMPT), _painted(web, erase)
    on, off = _painted(web, erase, PROMPT)
    return {"on": on - erased, "off": off - without}


def host(checkpoint: str) -> dict[str, Any]:
    sys.path[:0] = [str(HERE)]
    from real_host import installed

    from erasure_core.library import Library
    from erasure_core.profile import make_profile, write_profile

    found: dict[str, Any] = {"checkpoint": Path(checkpoint).name}
    with tempfile.TemporaryDirectory() as name, installed(Path(os.environ["WEBUI_PATH"])):
        library = Path(name)
        ours = ("--concept-erasure-dir", name)
        with _started(*ours) as web:
            in_host = per_step(lambda steps, seed: _erased(
                web, method="esd", settings={**SETTINGS, "steps": steps, "seed": seed})[0])  # fmt: skip
            found["step"] = _compared(in_host, per_step(trained(stand_alone(checkpoint))))
            _, ball = _erased(web)
            _, words = _erased(web, method="esd", settings=WORDS)
            found["toggle_seconds"] = {"unet": _switched(web, ball), "text_encoder": _switched(web, words)}
            (without,) = _painted(web, PROMPT)
        write_profile(library, make_profile("studio", Library([library]), [(f"{ball}.safetensors", 1.0, 1.0)]))
        with _started(*ours, "--concept-erasure-profile", "studio") as web:
            found["profile"] = {"seconds": _painted(web, PROMPT)[0], "seconds_without": without}
            found["profile"]["ratio"] = found["profile"]["seconds"] / without
    print(json.dumps(found), file=sys.stderr)  # what was measured so far is not lost where a start fails
    found["start"] = _starts()
    return found


def _starts() -> dict[str, float]:
    """The host's own record of its start, the quickest of several, with the extension and without."""
    from real_host import OURS, installed

    def records(ready: str) -> dict[str, float]:
        with _started(ready=ready) as web:
            while True:  # the host answers before it has summed up its start
                status, told = web.get("/internal/profile-startup")
                assert status == 200, told
                if told is not None and told.get("records") is not None:
                    return dict(told["records"])
                time.sleep(0.5)

    without = [records("/sdapi/v1/cmd-flags") for _ in range(STARTS)]
    with installed(Path(os.environ["WEBUI_PATH"])):
        with_us = [records(OURS) for _ in range(STARTS)]
    script = min(one[SCRIPT] for one in with_us)
    pages = min(one[PAGES] for one in with_us) - min(one[PAGES] for one in without)
    return {"script": script, "pages": pages, "all": script + pages}


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT))
    work: dict[str, Callable[..., dict[str, Any]]] = {"step": step, "start": start, "toggle": toggle, "host": host}
    print(json.dumps(work[sys.argv[1]](*sys.argv[2:]), indent=1))
