"""What devices say and do that no test machine has, acted."""

from __future__ import annotations

import gc
import mmap
import platform
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure_core import Concept, batches, erase, memory
from erasure_core.batches import Batches
from erasure_core.boundary import ExploreSettings, explore
from erasure_core.boundary.probe import Probe
from erasure_core.boundary.report import ReportSettings, report
from erasure_core.boundary.subject import Budget, Subject
from erasure_core.errors import DeviceOutOfMemory, ModelError, OutOfMemory, is_out_of_memory, telling_memory
from erasure_core.hosts.diffusers import DiffusersModel, _device
from erasure_core.memory import giving_back
from erasure_core.methods.esd import EsdSettings
from erasure_core.model import Conditioning
from erasure_core.progress import Report, Silent
from erasure_core.purify import invert, purify
from erasure_core.sampling import sample
from erasure_core.schedule import NoiseSchedule
from erasure_core.trainer import Trainer

BALL = Concept(("ball",), None, ("a red box",))
SHORT = EsdSettings(
    replace=False, steps=2, trajectories=4, trajectory_steps=2, batch=2, rank=2, contexts=2, neighbours=0
)
FULL = (
    "CUDA error: out of memory",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "MPS backend out of memory (MPS allocated: 8.0 GB, max allowed: 9.07 GB)",
    "Invalid buffer size: 16.00 GB",
    "Could not allocate tensor with 67108864 bytes. There is not enough GPU video memory available!",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory",
)


@pytest.mark.parametrize("message", FULL)
def test_every_device_that_is_full_is_told_as_one_error(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    with pytest.raises(DeviceOutOfMemory), telling_memory():
        raise RuntimeError(message)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught, telling_memory():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert type(caught.value) is RuntimeError


def test_a_training_steps_down_on_any_full_device(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, stages = DiffusersModel.predict, []

    class Listening(Silent):
        def update(self, report: Report) -> None:
            stages.append(report.stage)

    def scarce(self: DiffusersModel, latents: Tensor, *others: Any) -> Tensor:
        if torch.is_grad_enabled() and len(latents) > 2:
            raise RuntimeError("MPS backend out of memory")
        return forward(self, latents, *others)

    monkeypatch.setattr(DiffusersModel, "predict", scarce)
    made, _ = erase(pico, BALL, "esd", SHORT, Listening())
    assert made.manifest.settings["batch"] == 1
    assert "memory is short, going on with smaller pieces" in stages


def test_a_training_leaves_nothing_behind(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would stay on the device until Python happens to look for it, beside the next try in smaller pieces."""
    begun: list[weakref.ref[Trainer]] = []
    begin = Trainer.begin

    def noting(self: Trainer) -> None:
        assert not any(one() for one in begun)
        begun.append(weakref.ref(self))
        begin(self)
        if len(begun) == 1:
            raise DeviceOutOfMemory("acted")

    monkeypatch.setattr(Trainer, "begin", noting)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    gc.disable()
    try:
        erase(pico, BALL, "esd", SHORT)
        assert len(begun) == 2 and begun[-1]() is None
    finally:
        gc.enable()


class Behind(Tensor):
    """A result that is still being computed: the time passes where somebody looks."""

    slept: list[str] = []  # noqa: RUF012

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        self.slept.append("waited")
        return self.as_subclass(Tensor).cpu()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what was freed")
def test_what_was_freed_is_the_system_s_again() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE

    with giving_back():
        blocks = [b"%d" % number * 15_000 for number in range(4000)]
        pins = blocks[::40]  # between those that are freed, as what a host makes meanwhile is: its heap cannot shrink
        del blocks
        kept = resident()
    assert pins and kept - resident() > 100_000_000


def test_the_pace_of_a_search_is_known_when_the_device_is_done(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Batches.predict
    monkeypatch.setattr(Batches, "predict", lambda *given: own(*given).as_subclass(Behind))
    subject = Subject(pico, (), Silent(), Budget(None))
    with subject.opened(), torch.no_grad():
        subject.predict(torch.zeros(1, 4, 8, 8), torch.tensor([5]), pico.encode([""]))
    assert Behind.slept == ["waited"]


def test_prompts_are_repeated_for_one_call_at_a_time(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of SDXL, those of a search's preparation would take gigabytes all at once."""
    subject = Subject(pico, (), Silent(), Budget(None), max_batch=4)
    sizes: list[int] = []
    own = Conditioning.__getitem__

    def noting(self: Conditioning, index: Any) -> Conditioning:
        sizes.append(len(index))
        return own(self, index)

    with subject.opened(), torch.no_grad():
        states = torch.randn(3, 4, 8, 8)
        probe = Probe(
            states, torch.tensor([10, 400, 900]), torch.zeros_like(states), torch.zeros_like(states), torch.ones(3)
        )
        read = pico.encode(["a ball", "a cat", "a red box"])
        repeated = read[[0, 0, 0, 1, 1, 1, 2, 2, 2]]
        monkeypatch.setattr(Conditioning, "__getitem__", noting)
        found = probe.directions(subject, read, erased=False)
        assert max(sizes) == 4
        whole = Batches(4).predict(pico, states.repeat(3, 1, 1, 1), probe.t.repeat(3), repeated, Silent())
    assert torch.equal(found, probe.weighed(whole.reshape(3, 3, -1)))


def test_no_schedule_needs_float64_of_a_device() -> None:
    """Apple's have none."""

    class Theirs(Tensor):
        def double(self) -> Tensor:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

        def cpu(self) -> Tensor:  # type: ignore[override]
            return self.as_subclass(Tensor)

    alphas = torch.linspace(0.99, 0.01, 10)
    wanted = NoiseSchedule.from_alphas_cumprod(alphas)
    found = NoiseSchedule.from_alphas_cumprod(alphas.as_subclass(Theirs))
    assert torch.equal(found.signal, wanted.signal) and torch.equal(found.noise, wanted.noise)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [((), "cpu"), (("mps",), "mps"), (("xpu",), "xpu"), (("cuda", "xpu"), "cuda")],
)
def test_auto_takes_what_torch_finds(monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], wanted: str) -> None:
    for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps)):
        monkeypatch.setattr(module, "is_available", lambda kind=kind: kind in there)
    assert _device("auto") == torch.device(wanted)


def test_a_device_that_is_not_there_is_told_which_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError, match="choose from auto, cpu, xpu"):
        _device("phone")


def test_no_more_is_asked_at_once_than_a_card_has_room_for(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some drivers put what does not fit into the computer's memory, without an error."""
    free = {"cuda": 10 * 2**30, "mps": 2**20, "xpu": None}
    monkeypatch.setattr(memory, "free_memory", lambda device: free[device.type])
    rooms = [memory.predicted_at_once(torch.device(kind), torch.float16, 128 * 128) for kind in free]
    assert rooms == [27, 1, None] and memory.predicted_at_once(torch.device("cpu"), torch.float16, 64) is None
    sizes: list[int] = []
    monkeypatch.setattr(batches, "predicted_at_once", lambda *_: 2)
    monkeypatch.setattr(DiffusersModel, "predict", lambda self, z, *_: sizes.append(len(z)) or z)
    given = torch.randn(5, 4, 8, 8)
    assert torch.equal(Batches(4).predict(pico, given, torch.zeros(5), pico.encode([""] * 5), Silent()), given)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(
    ("fitting", "given", "wanted"), [(1, 4, [2, 1, 1, 1, 1]), (2, 4, [2, 2]), (0, 4, [2, 1]), (0, 1, [1])]
)
def test_what_does_not_fit_is_halved_from_what_was_tried(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch, fitting: int, given: int, wanted: list[int]
) -> None:
    """Halving what was only allowed would repeat the same failing call."""
    tried: list[int] = []

    def scarce(self: DiffusersModel, latents: Tensor, *others: Any) -> Tensor:
        tried.append(len(latents))
        if len(latents) > fitting:
            raise DeviceOutOfMemory("acted")
        return latents

    monkeypatch.setattr(batches, "predicted_at_once", lambda *_: 2)
    monkeypatch.setattr(DiffusersModel, "predict", scarce)
    latents, t, prompts = torch.randn(given, 4, 8, 8), torch.zeros(given), pico.encode([""] * given)
    with nullcontext() if fitting else pytest.raises(DeviceOutOfMemory):
        assert torch.equal(Batches(64).predict(pico, latents, t, prompts, Silent()), latents)
    assert tried == wanted


def test_pictures_that_do_not_fit_are_sampled_in_turns(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, forward = sample(pico, ["a ball", "a cat"], [1, 2], 2), DiffusersModel.predict

    def scarce(self: DiffusersModel, latents: Tensor, *others: Any) -> Tensor:
        if len(latents) > 1:
            raise DeviceOutOfMemory("acted")
        return forward(self, latents, *others)

    monkeypatch.setattr(DiffusersModel, "predict", scarce)
    assert torch.allclose(sample(pico, ["a ball", "a cat"], [1, 2], 2), wanted, atol=1e-4)


def test_pictures_that_do_not_fit_are_purified_in_turns(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    given, forward = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), DiffusersModel.predict
    wanted = purify(pico, given, ["a ball", "a cat"], [], 2)

    def scarce(self: DiffusersModel, latents: Tensor, *others: Any) -> Tensor:
        if len(latents) > 1:
            raise DeviceOutOfMemory("acted")
        return forward(self, latents, *others)

    monkeypatch.setattr(DiffusersModel, "predict", scarce)
    assert torch.allclose(purify(pico, given, ["a ball", "a cat"], [], 2), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "work",
    [
        lambda model: erase(model, BALL, "closed_form"),
        lambda model: explore(model, BALL, (), ExploreSettings(calls=1)),
        lambda model: report(model, BALL, [], ReportSettings(calls=1)),
        lambda model: purify(model, torch.zeros(1, 4, 8, 8), ["a ball"], [], 2),
        lambda model: invert(model, torch.zeros(1, 4, 8, 8), 2),
    ],
    ids=["erase", "explore", "report", "purify", "invert"],
)
def test_too_little_memory_is_an_error_for_the_user(
    pico: DiffusersModel, work: Callable[[DiffusersModel], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Tensor:
        raise DeviceOutOfMemory("acted")

    monkeypatch.setattr(DiffusersModel, "predict", full)
    monkeypatch.setattr(DiffusersModel, "encode", full)
    with pytest.raises(OutOfMemory, match="use the CPU"):
        work(pico)


def test_pictures_that_do_not_fit_are_decoded_and_read_in_tiles(
    pico_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest picture of a search or a report would else lose all that was found."""
    model = DiffusersModel.load(pico_folders["sd1"], "cpu")
    latents = torch.randn(1, 4, 16, 16)
    vae: Any = model.vae
    for name, given in (("decode", latents), ("encode", model.decode(latents))):
        own, vae.use_tiling = getattr(vae, name), False

        def scarce(whole: Tensor, own: Any = own) -> Any:
            if not vae.use_tiling:
                raise RuntimeError("CUDA out of memory")
            return own(whole)

        monkeypatch.setattr(vae, name, scarce)
        found = model.decode(given) if name == "decode" else model.latents_of(given)
        assert vae.use_tiling and found.shape[-1] == (128 if name == "decode" else 16)
