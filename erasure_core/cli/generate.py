"""paint pictures with a model, with or without erasures"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..erasing import applied
from ..errors import InvalidConcept, InvalidSettings
from ..progress import PartOfWhole
from ..safe_files import write_bytes
from ..sampling import sample
from .erasure_arguments import add_other_base_argument, bind_all
from .model_arguments import add_model_arguments, load_chosen_model
from .numbering import next_number
from .terminal import check_folder, read_lines, terminal_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, "the model to paint with")
    parser.add_argument(
        "--erasure", action="append", default=[], metavar="FILE[:STRENGTH]", help="an erasure to apply; may be repeated"
    )
    add_other_base_argument(parser)
    parser.add_argument("--prompt", action="append", default=[], help="what to paint; may be repeated")
    parser.add_argument("--prompts-file", type=Path, help="file with one prompt a line")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures (PNG); none in it is replaced")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture of each prompt (default 0)")
    parser.add_argument(
        "--count", type=int, default=1, help="pictures for each prompt, with seeds counting up (default 1)"
    )
    parser.add_argument("--steps", type=int, default=30, help="sampling steps (default 30)")
    parser.add_argument("--guidance", type=float, default=5.0, help="classifier-free guidance scale (default 5)")
    parser.add_argument("--batch", type=int, default=16, help="pictures sampled at once (default 16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--json", action="store_true", help="print one JSON line for each picture")


def _check_numbers(options: argparse.Namespace, longest: int) -> None:
    for name, value, low, high in (
        ("steps", options.steps, 1, longest),
        ("count", options.count, 1, 100_000),
        ("batch", options.batch, 1, 4096),
        ("guidance", options.guidance, -100.0, 100.0),
        ("seed", options.seed, 0, 2**62),
    ):
        if not low <= value <= high:
            raise InvalidSettings(f"--{name} is {value}; it must lie between {low} and {high}.")


def run(options: argparse.Namespace) -> None:
    prompts = [*options.prompt, *(read_lines(options.prompts_file) if options.prompts_file else [])]
    if not prompts:
        raise InvalidConcept("There is nothing to paint; give --prompt or --prompts-file.")
    model = load_chosen_model(options, options.device, pictures=True)
    _check_numbers(options, len(model.schedule))
    erasures = bind_all(options.erasure, model, options.allow_other_base)
    for prompt in prompts:
        model.encode([prompt])  # refuses what is too long before anything is painted
    check_folder(options.out)
    numbered = list(enumerate(prompts, next_number(options.out)))
    jobs = [(number, prompt, options.seed + i) for number, prompt in numbered for i in range(options.count)]
    with terminal_progress() as progress, applied(model, erasures):
        for start in range(0, len(jobs), options.batch):
            batch = jobs[start : start + options.batch]
            texts, seeds = [prompt for _, prompt, _ in batch], [seed for _, _, seed in batch]
            part = PartOfWhole(progress, start * options.steps, len(jobs) * options.steps, len(batch))
            latents = sample(model, texts, seeds, options.steps, options.guidance, progress=part)
            for (number, prompt, seed), picture in zip(batch, model.decode(latents), strict=True):
                path = options.out / f"{number:04d}_{seed}.png"
                write_bytes(path, png(picture))
                print(
                    json.dumps({"prompt": prompt, "seed": seed, "path": str(path)}) if options.json else path,
                    flush=True,
                )


def png(picture: Tensor) -> bytes:
    """A picture, uint8 [3, H, W], as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
