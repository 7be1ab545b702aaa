"""What the machine can do: matrix rate, bandwidth, and memory."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

MATRIX = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices that the rate is measured with."""
COPIED = {"cpu": 2**28, "cuda": 2**31}
"""Bytes copied to measure the bandwidth: far more than any cache holds."""


@dataclass(frozen=True)
class Rates:
    """Measured on one device.

    Args:
        flops: matrix multiplication, floating-point operations per second.
        bandwidth: bytes read or written per second.
    """

    flops: float
    bandwidth: float


def clock(device: str) -> float:
    """Seconds that only make sense as a difference. On the CPU those spent computing, so that other programs on the
    machine do not count; with one thread that is the time on an idle machine."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def wall(device: str) -> float:
    """Seconds of the wall clock that only make sense as a difference: what a user waits."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def wall_medians(works: Mapping[str, Callable[[], object]], device: str, repeats: int = 5) -> dict[str, float]:
    """Median wall-clock time of several pieces of work, by name, after one run of each to warm up.

    They take turns, so that whatever else the machine does meets all of them alike.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            started = wall(device)
            work()
            times[name].append(wall(device) - started)
    return {name: median(found) for name, found in times.items()}


def seconds(work: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Median time of a piece of work, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = clock(device)
        work()
        times.append(clock(device) - started)
    return median(times)


def measure(device: str, dtype: torch.dtype) -> Rates:
    """Multiply large matrices and copy a large tensor."""
    kind = device.split(":")[0]
    side = MATRIX[kind]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    flops = 2 * side**3 / seconds(lambda: a @ b, device)
    source = torch.zeros(COPIED[kind], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Rates(flops, 2 * len(source) / seconds(lambda: target.copy_(source), device))


def kind_of(device: str) -> str:
    """The kind of machine, in a line."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU ({capability}), {threads} thread(s), torch {torch.__version__}"
