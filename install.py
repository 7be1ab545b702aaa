"""What both hosts run once after an installation. There is nothing to install: all that is used comes from the host."""

from __future__ import annotations

import importlib.util

NEEDED = ("torch", "numpy", "safetensors", "PIL")


def missing() -> list[str]:
    """What this Python lacks of what every supported host ships."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


if __name__ == "__main__" and missing():
    print(f"Concept Erasure: {', '.join(missing())} cannot be imported; run the host's own installation again.")
