"""``make demo``: erase one object from the bundled model and show what became of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from erasure_core import Concept, applied, erase, read_erasure, write_erasure
from erasure_core.cli.terminal import terminal_progress
from erasure_core.methods import RECOMMENDED, find_method

from .demo_page import page
from .evaluation import Evaluation, evaluate
from .judge import load_judge
from .lexicon import CONCEPTS
from .painting import load_model, paint

CONCEPT = "ball"
METHOD = RECOMMENDED
KEEP = ("a ring", "a red box", "a house", "a blue star", "a green tree", "a striped fish", "a boat", "a heart")
"""What a user might want to stay; none of it is a prompt that is measured."""
COUNT = 6
"""Pictures in each measured group: few, so that the demonstration takes about three minutes."""
SHORT = {"steps": 140, "trajectory_steps": 10}
"""Fewer than by default, for the same reason: enough for one object."""
SEEDS = (1, 2, 3, 4)
SCALE = 2
ROWS = (
    ("erased", "a red ball"),
    ("erased", "a photo of a sphere in the sky"),
    ("other words", "a green orb on the grass"),
    ("other words", "a striped globe in the desert"),
    ("described", "the blue round thing that rolls"),
    ("look-alike", "a yellow ring at night"),
    ("look-alike", "a purple hoop in the sky"),
    ("others", "a dotted house in the desert"),
    ("others", "a white fish at night"),
    ("others", "a red star next to a blue box"),
)


def _strip(pictures: Tensor) -> Image.Image:
    row = torch.cat(list(pictures), dim=2).permute(1, 2, 0).numpy()
    image = Image.fromarray(row)
    return image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.LANCZOS)


def grid(before: Tensor, after: Tensor) -> Image.Image:
    """One row for each prompt: the pictures of the untouched model left, of the erased model right, same seeds."""
    font, bold = ImageFont.load_default(14), ImageFont.load_default(17)
    each, text = len(SEEDS), 250
    strips = [(_strip(before[i : i + each]), _strip(after[i : i + each])) for i in range(0, len(before), each)]
    width, height = strips[0][0].size
    sheet = Image.new("RGB", (text + 2 * width + 28, 44 + len(ROWS) * (height + 8)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((text, 14), "untouched model", fill="black", font=bold)
    draw.text((text + width + 20, 14), f"“{CONCEPT}” erased, same seeds", fill="black", font=bold)
    for row, ((group, prompt), (left, right)) in enumerate(zip(ROWS, strips, strict=True)):
        top = 44 + row * (height + 8)
        draw.text((8, top + height // 2 - 22), group, fill="#777777", font=font)
        draw.text((8, top + height // 2 - 2), prompt, fill="black", font=font)
        sheet.paste(left, (text, top))
        sheet.paste(right, (text + width + 20, top))
    return sheet


def _as_json(evaluation: Evaluation) -> dict[str, dict[str, object]]:
    figures = [*evaluation.shares.values(), evaluation.intact]
    return {f.name: {"share": f.share, "count": f.count, "interval": f.interval} for f in figures}


def run_demo(out: Path) -> None:
    """Leave ``erased_ball.safetensors``, ``before_after.png``, ``summary.html`` and ``figures.json`` in ``out``."""
    started = time.monotonic()
    model, judge, lexicon = load_model(), load_judge(), CONCEPTS[CONCEPT]
    path = out / f"erased_{CONCEPT}.safetensors"
    print(f"Erasing {', '.join(lexicon.named)} with {METHOD} …")
    with terminal_progress() as progress:
        settings = find_method(METHOD).settings(**SHORT)
        erasure, _ = erase(model, Concept(lexicon.named, None, KEEP), METHOD, settings, progress)
    manifest = write_erasure(path, erasure, model)
    trained = time.monotonic() - started
    erasures = [(read_erasure(path).bind(model), 1.0)]
    prompts = [prompt for _, prompt in ROWS for _ in SEEDS]
    seeds = [seed for _ in ROWS for seed in SEEDS]
    before = paint(model, prompts, seeds)
    with applied(model, erasures):
        after = paint(model, prompts, seeds)
    grid(before, after).save(out / "before_after.png")
    figures = {}
    for name, applied_now in (("untouched", []), ("erased", erasures)):
        print(f"Measuring the {name} model …")
        figures[name] = evaluate(model, judge, lexicon, applied_now, count=COUNT)
    content = {name: _as_json(evaluation) for name, evaluation in figures.items()}
    (out / "figures.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (out / "summary.html").write_text(page(manifest, figures, path.stat().st_size, trained), encoding="utf-8")
    for name in ("summary.html", "before_after.png", path.name, "figures.json"):
        print(f"  {out / name}")
    print(f"Done in {time.monotonic() - started:.0f} s.")
