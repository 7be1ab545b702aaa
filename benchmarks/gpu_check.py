"""What only a GPU can show, in one command without network: ``make gpu-check``.

Every check runs on the CPU too (``--device cpu``, which the tests do), where memory limits are acted.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from erasure_core import (
    METHODS,
    Concept,
    Erasure,
    LoadedModel,
    Report,
    Silent,
    applied,
    erase,
    read_erasure,
    write_erasure,
)
from erasure_core.boundary import ExploreSettings, explore
from erasure_core.effort import plan
from erasure_core.errors import Cancelled, DeviceOutOfMemory
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import RECOMMENDED
from erasure_core.methods.esd import EsdSettings
from erasure_core.purify import purify
from erasure_core.sampling import sample

from .architectures import SIDES, build
from .report import GIB

MODEL = Path(__file__).parent.parent / "proving_ground" / "model"
CONCEPT = Concept(("ball",), None, ("a red box",))
QUICK = {"rank": 4, "trajectories": 6, "trajectory_steps": 4, "batch": 2, "contexts": 6, "neighbours": 0}
STEPS = 4
SHORT = {
    **QUICK, "steps": 2, "search": False, "replace": False, "warm_up": 1, "check_every": 1, "check_starts": 2,
    "check_steps": 2, "text_prompts": 4, "inversion_steps": 1, "own_pictures": 1,
}  # fmt: skip
"""What makes each method short, as far as it has such settings."""
LEFT = 2**26
"""Bytes that may stay on the device after a method: what libraries take for themselves in between."""
SMALL_CARD = {"sd15": 6, "sdxl": 10}
"""GiB that a training with ``low-vram`` has to do with."""
SCARCE = 2**22
"""Bytes said to be free where a small card is acted."""
EXACT, CLOSE, ROUNDED = 1e-3, 2e-2, 5e-2
"""Relative distances allowed between devices: one call in float32, a training in float32, one call in 16 bits."""


@dataclass(frozen=True)
class Bench:
    """Where to check, and on how large a model.

    Args:
        device: ``cuda``, or ``cpu`` for a rehearsal.
        tiny: a tenth of the channels.
    """

    device: str
    tiny: bool

    def model(
        self,
        dtype: torch.dtype = torch.float32,
        device: str | None = None,
        tiny: bool = True,
        family: str = "sd15",
    ) -> DiffusersModel:
        is_tiny = tiny or self.tiny
        return build(family, 64 if is_tiny else SIDES[family], device or self.device, dtype, tiny=is_tiny)


class StopAt(Silent):
    """A user who stops after a step of the training."""

    def __init__(self, step: int) -> None:
        self.step, self.done = step, 0

    def update(self, report: Report) -> None:
        if report.stage == "training":
            self.done = report.step

    def cancelled(self) -> bool:
        return self.done >= self.step


def weights_hash(model: DiffusersModel) -> str:
    """SHA-256 over all weights of the network and the text encoders, bit by bit."""
    digest = hashlib.sha256()
    for module in (model.unet, *model.text_encoders):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def prediction(model: LoadedModel, count: int = 2) -> Tensor:
    """What the model predicts for fixed noise and the concept's prompt, on the CPU."""
    z = torch.randn(count, *model.latent_shape, generator=torch.Generator().manual_seed(1)).to(model.device)
    t = torch.full((count,), 500, device=model.device)
    return model.predict(z, t, model.encode(["a ball"] * count)).cpu()


def apart(first: Tensor, second: Tensor) -> float:
    """Relative distance ||first - second|| / ||second||."""
    return float((first.double() - second.double()).norm() / second.double().norm())


def expect(holds: bool, what: str) -> None:
    """Raises:
    AssertionError: it does not hold (unlike ``assert``, also under ``python -O``).
    """
    if not holds:
        raise AssertionError(what)


def trains_and_restores(bench: Bench, dtype: torch.dtype) -> str:
    """Trains at true size in 16 bits; written, read and applied, the change acts; off, every bit is as before."""
    model = bench.model(dtype, tiny=False)
    weights, before = weights_hash(model), prediction(model)
    erasure, history = erase(model, CONCEPT, "esd", EsdSettings(steps=STEPS, **QUICK))
    expect(len(history.losses) == STEPS, "all steps were run")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ball.safetensors"
        write_erasure(path, erasure, model)
        deltas = read_erasure(path).bind(model)
    with applied(model, [(deltas, 1.0)]):
        changed = apart(prediction(model), before)
    expect(changed > 0, "the erasure changes the prediction")
    expect(torch.equal(prediction(model), before), "without it the prediction is the same to the bit")
    expect(weights_hash(model) == weights, "all weights are the same to the bit")
    return f"prediction moved by {changed:.1e}; restored to the bit"


def cancels(bench: Bench) -> str:
    """Stops within a step, keeps the state, and goes on to the end."""
    model, settings = bench.model(), EsdSettings(steps=STEPS, **QUICK)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        try:
            erase(model, CONCEPT, "esd", settings, StopAt(3), state)
            raise AssertionError("it was not stopped")
        except Cancelled:
            expect(state.exists(), "the state was saved")
        _, history = erase(model, CONCEPT, "esd", settings, None, state)
    expect(len(history.losses) == STEPS, "the rest was trained")
    return "stopped at step 3, went on to the end"


@contextmanager
def memory_for(model: DiffusersModel, latents: int) -> Iterator[None]:
    """Inside, the device has memory for calls of about ``latents`` latents and no more."""
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        prediction(model, latents)
        with card_of(model.device.type, int(1.1 * torch.cuda.max_memory_reserved())):
            yield
        return
    forward = model.predict

    def scarce(z: Tensor, *rest: object) -> Tensor:
        if len(z) > latents:
            raise DeviceOutOfMemory("acted: the device is full")
        return forward(z, *rest)  # type: ignore[arg-type]

    model.predict = scarce  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.predict  # type: ignore[attr-defined]


def steps_down(bench: Bench) -> str:
    """Draws trajectories in smaller pieces when a call of 64 does not fit, instead of failing."""
    model = bench.model(tiny=False)
    settings = EsdSettings(steps=1, max_batch=64, **{**QUICK, "trajectories": 32, "trajectory_steps": 1, "batch": 1})
    sizes: list[int] = []
    handle = model.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    with memory_for(model, 8):
        erasure, _ = erase(model, CONCEPT, "esd", settings)
    handle.remove()
    expect(len(erasure.deltas.changed()) > 0, "the training finished")
    drawn = max(size for i, size in enumerate(sizes) if i + 1 == len(sizes) or sizes[i + 1] >= size)
    expect(drawn < 64, "calls of 64 did not fit")
    return f"called with 64, went through with {drawn}"


def fits(bench: Bench, family: str) -> str:
    """A training of the default batch with ``low-vram`` on a small card, the model's own weights included."""
    on_gpu = bench.device != "cpu"
    whole = EsdSettings(steps=2, trajectories=8, trajectory_steps=2) if on_gpu else EsdSettings(steps=1, **QUICK)
    with card_of(bench.device, SMALL_CARD[family] * GIB):
        model = bench.model(torch.bfloat16 if on_gpu else torch.float32, tiny=False, family=family)
        left = SMALL_CARD[family] * GIB - torch.cuda.memory_allocated() if on_gpu else SCARCE
        chosen = plan("low-vram", whole, model, left)
        _, history = erase(model, CONCEPT, "esd", chosen.settings)
        peak = torch.cuda.max_memory_reserved() / GIB if on_gpu else 0.0
        del model
    expect(len(history.losses) == whole.steps, "the training finished")
    return f"peak {peak:.2f} GiB of {SMALL_CARD[family]}; {chosen.sentence}"


@contextmanager
def card_of(device: str, size: int) -> Iterator[None]:
    """Inside, this process gets ``size`` bytes of the device's memory and no more; a CPU has no such limit."""
    if device == "cpu":
        yield
        return
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    share = size / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def equals_the_cpu(bench: Bench) -> str:
    """One call and a short training, the same as on the CPU but for rounding."""
    here, there = bench.model(), bench.model(device="cpu")
    call = apart(prediction(here), prediction(there))
    expect(call <= EXACT, f"one call in float32 differs by {call:.1e}")
    settings = EsdSettings(steps=5, learning_rate=1e-4, **QUICK)
    ours, theirs = (erase(model, CONCEPT, "esd", settings)[0] for model in (here, there))
    training = apart(_flat(ours), _flat(theirs))
    expect(training <= CLOSE, f"a training in float32 differs by {training:.1e}")
    rounded = {
        dtype: apart(prediction(bench.model(dtype)), prediction(there)) for dtype in (torch.bfloat16, torch.float16)
    }
    for dtype, distance in rounded.items():
        expect(distance <= ROUNDED, f"one call in {dtype} differs by {distance:.1e}")
    return f"call {call:.1e}, training {training:.1e}, bf16 {rounded[torch.bfloat16]:.1e}"


def _flat(erasure: Erasure) -> Tensor:
    return torch.cat([parameter.detach().cpu().flatten() for parameter in erasure.deltas.parameters()])


def every_method(bench: Bench) -> str:
    """Each method makes a change on the device, and leaves nothing there but that."""
    on_gpu = bench.device != "cpu"
    model = bench.model(torch.float16 if on_gpu else torch.float32)
    names = list(METHODS) if on_gpu else [RECOMMENDED]
    sizes = []
    for name in names:
        known = {field.name for field in fields(METHODS[name].settings)}
        settings = METHODS[name].settings(**{key: value for key, value in SHORT.items() if key in known})
        made, _ = erase(model, CONCEPT, name, settings)
        expect(len(made.deltas.changed()) > 0, f"{name} changes something")
        del made
        sizes.append(torch.cuda.memory_allocated() if on_gpu else 0)
    # The libraries' own memory comes with the first.
    expect(max(sizes) - sizes[0] <= LEFT, f"{max(sizes) - sizes[0]} bytes stay on the device")
    return ", ".join(names)


def pictures(bench: Bench) -> str:
    """The bundled model paints, reads and purifies; on a GPU its boundary is searched, with pictures of what leaks."""
    model = DiffusersModel.load(MODEL, bench.device)
    made, _ = erase(model, CONCEPT, "closed_form")
    erasures = [(made.deltas, 1.0)]
    shown = model.decode(sample(model, ["a ball"], [0], 4).cpu())
    latents = purify(model, model.latents_of(shown), ["a ball"], erasures, 4)
    expect(model.decode(latents).shape == shown.shape, "a picture is painted again")
    if bench.device == "cpu":
        return "painted and painted again"
    found = explore(model, CONCEPT, erasures, ExploreSettings(seconds=20.0, look=4, pictures=True))
    expect(any(point.thumbnail for point in found.points), "what was looked at is shown")
    return f"{len(found.points)} prompts tried in {found.seconds:.0f} s by {', '.join(found.levels)}"


CHECKS: dict[str, Callable[[Bench], str]] = {
    "equality with the CPU": equals_the_cpu,
    "training in bfloat16, apply and restore": lambda bench: trains_and_restores(bench, torch.bfloat16),
    "training in float16, apply and restore": lambda bench: trains_and_restores(bench, torch.float16),
    "every method in float16": every_method,
    "pictures and a search": pictures,
    "cancel and go on": cancels,
    "out of memory": steps_down,
    "SD1.5 on a card of 6 GiB": lambda bench: fits(bench, "sd15"),
    "SDXL on a card of 10 GiB": lambda bench: fits(bench, "sdxl"),
}


def run_checks(bench: Bench) -> bool:
    """Run all checks and print a line for each; returns whether all held."""
    failed = 0
    for name, check in CHECKS.items():
        started = time.monotonic()
        try:
            verdict = f"ok      {check(bench)}"
        except Exception as error:  # a check that breaks is a failed check; the others still run
            failed += 1
            verdict = f"FAILED  {type(error).__name__}: {error}"
        print(f"{name:42} {time.monotonic() - started:6.1f} s  {verdict}", flush=True)
    return not failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--tiny", action="store_true", help="small models only")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU")
        return 0
    # TensorFloat-32 keeps 10 bits: float32 on both sides would not be compared with itself.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}")
    return 0 if run_checks(Bench(options.device, options.tiny)) else 1


if __name__ == "__main__":
    sys.exit(main())
