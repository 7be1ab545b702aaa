"""What an erasing took: seconds, and the peak of its device's memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

GIB = 2**30
clock = time.monotonic
"""By a name of its own, for tests compare whole files and let it stand still."""


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._began = clock()

    def seconds(self) -> float:
        """Since it was made."""
        return clock() - self._began


class Meter(Stopwatch):
    """Measures what is done on a device from now on.

    Of a CPU it tells no memory: only the peak of the whole program is known, a host's with all that it has loaded.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._card: Any = getattr(torch, device.type) if device.type in ("cuda", "xpu") else None
        if self._card is not None:
            self._card.reset_peak_memory_stats(device)

    def cost(self, seconds: float) -> dict[str, float]:
        """What ``Manifest.cost`` holds, of work that took so many seconds."""
        found: dict[str, float] = {"seconds": round(seconds, 2)}
        if self._card is not None:
            found["peak_bytes"] = self._card.max_memory_allocated(self._device)
        return found


def together(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """What two pieces of work took, one after the other."""
    found = {"seconds": round(first.get("seconds", 0.0) + second.get("seconds", 0.0), 2)}
    peaks = [cost["peak_bytes"] for cost in (first, second) if "peak_bytes" in cost]
    return found | ({"peak_bytes": max(peaks)} if peaks else {})


def cost_text(cost: Mapping[str, float]) -> str:
    """For people; empty where nothing was recorded."""
    parts = [f"{cost['seconds']:,.0f} s"] if "seconds" in cost else []
    if "peak_bytes" in cost:
        parts.append(f"at most {cost['peak_bytes'] / GIB:.1f} GiB of the device's memory, the model with it")
    return ", ".join(parts)
