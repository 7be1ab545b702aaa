"""What was tried or weighed, with the figure that a committed result holds for it, or the words "not measured"."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .report import table

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Tried:
    """One change.

    Args:
        change: its name.
        built: what it does, or that it was not built.
        share: entry of the counted shares that its figure is, or one of the ways to run the network.
        figure: what the figure says, with room for it.
    """

    change: str
    built: str
    share: str = ""
    figure: str = ""


SLOWER = "a prediction takes {:.2f} times as long as the way that is used"
TRIED = (
    Tried("learning rates grouped", "built: Adam updates all tensors of one learning rate together, in place of each "
          "tensor alone"),
    Tried("one wait in a step", "built: losses and the check of the gradients are read back together"),
    Tried("closed form, per layer", "built: products with the layers' weights in float32 on their device, in place of "
          "float64 on the CPU"),
    Tried("closed form, rank", "built: the least rank that gives up at most 1 % of what the exact solution achieves, "
          "by reduced-rank regression, in place of all singular values above 1e-4 of the largest"),
    Tried("cached keys and values of frozen prompts", "not built", "keys and values",
          "would save at most {:.2%} of a prediction's operations"),
    Tried("8-bit moments", "not built", "moments", "would save at most {:.2%} of the bytes at the peak"),
    Tried("text encoders moved away in training", "not built: ComfyUI and the web UIs move networks by themselves, on "
          "the command line the text encoders stay on the device for the whole training (and the autoencoder, loaded "
          "only where pictures are given); their bytes stand in the counted table"),
    Tried("large calls of the text encoder", "built: all prompts that a step reads go into as few calls as can be, in "
          "place of pieces of 8: on a GPU a call costs more than the prompts in it"),
    Tried("channels_last", "not built", "channels_last", SLOWER),
    Tried("CUDA graphs", "not built", "CUDA graph", SLOWER),
    Tried("torch.compile", "not built: it would have to earn back its compile time in every session"),
)  # fmt: skip


def tried_table(folder: Path) -> str:
    """All changes; the figures are those of ``counted.json`` and ``execution_*.json``."""
    shares: dict[str, float] = {}
    for path in (folder / "counted.json", *sorted(folder.glob("execution_*.json"))):
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        took = {way["name"]: way["predicting"] for way in content.get("ways", ())}
        shares |= content.get("shares", {}) | {name: seconds / took["as it is"] for name, seconds in took.items()}
    lines = [
        [one.change, one.built, one.figure.format(shares[one.share]) if one.share in shares else NOT_MEASURED]
        for one in TRIED
    ]
    return table(["change", "state", "figure"], lines)
