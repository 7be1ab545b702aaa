"""paint given pictures again without a concept, keeping as much of them as can be"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from itertools import count, groupby, islice
from pathlib import Path

import torch
from torch import Tensor

from ..concept_pictures import cut_to, picture_paths, whole_picture
from ..errors import InvalidSettings
from ..model import LoadedModel
from ..purify import caption_misses, check_captions, painted_size, purify
from ..safe_files import check_regular, write_bytes
from .erasure_arguments import add_other_base_argument, read_all
from .generate import png
from .model_arguments import add_model_arguments, load_chosen_model
from .numbering import next_number
from .terminal import check_folder, printable, say, terminal_progress

LONGEST_STEM = 50
"""Characters of a given picture's name that its new one repeats: file systems allow 255 bytes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, "the model to paint with")
    parser.add_argument(
        "--erasure",
        action="append",
        required=True,
        metavar="FILE[:STRENGTH]",
        help="an erasure to apply; may be repeated",
    )
    add_other_base_argument(parser)
    parser.add_argument(
        "--picture", type=Path, action="append", required=True, help="picture file or folder; may be repeated"
    )
    parser.add_argument("--caption", required=True, help="what the pictures show, in words that say the concept")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures (PNG); none in it is replaced")
    parser.add_argument("--share", type=float, default=0.8, help="how far to go back to noise, 0 to 1 (default 0.8)")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps of the whole way (default 50)")
    parser.add_argument("--guidance", type=float, default=5.0, help="classifier-free guidance scale (default 5)")
    parser.add_argument("--batch", type=int, default=4, help="pictures at once (default 4)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--json", action="store_true", help="print one JSON line for each picture")


def run(options: argparse.Namespace) -> None:
    check_captions([options.caption])  # before a model is read for nothing
    paths = [found for path in options.picture for found in _files(path)]
    model = load_chosen_model(options, options.device, pictures=True)
    for name, value, low, high in (
        ("steps", options.steps, 1, len(model.schedule)),
        ("batch", options.batch, 1, 4096),
        ("guidance", options.guidance, -100.0, 100.0),
    ):
        if not low <= value <= high:
            raise InvalidSettings(f"--{name} is {value}; it must lie between {low} and {high}.")
    read = read_all(options.erasure)
    erasures = [(stored.bind(model, options.allow_other_base), strength) for stored, strength in read]
    if told := caption_misses(options.caption, (stored.manifest for stored, _ in read)):
        say(printable(told))
    check_folder(options.out)
    numbers = count(next_number(options.out))
    with terminal_progress() as progress:
        for sources, pictures in _batches(model, paths, options.batch):
            latents, captions = model.latents_of(pictures), [options.caption] * len(sources)
            clean = purify(model, latents, captions, erasures, options.steps, options.guidance, options.share, progress)
            for source, picture in zip(sources, model.decode(clean), strict=True):
                path = options.out / f"{next(numbers):04d}_{source.stem[:LONGEST_STEM]}.png"
                write_bytes(path, png(picture))
                print(json.dumps({"source": str(source), "path": str(path)}) if options.json else path, flush=True)


def _batches(model: LoadedModel, paths: Sequence[Path], most: int) -> Iterator[tuple[list[Path], Tensor]]:
    """Up to ``most`` paths at once whose pictures follow each other and are painted at one size, and these pictures,
    uint8 [B, 3, H, W]; raises as ``whole_picture``."""
    read = ((path, _picture(model, path)) for path in paths)
    for _, of_one_size in groupby(read, lambda pair: pair[1].shape):
        while some := list(islice(of_one_size, most)):
            yield [path for path, _ in some], torch.stack([picture for _, picture in some])


def _picture(model: LoadedModel, path: Path) -> Tensor:
    """A picture at the size at which it is painted again, uint8 [3, H, W]; raises as ``whole_picture``."""
    picture = whole_picture(path)
    return cut_to(picture, painted_size(model, picture.height, picture.width))


def _files(path: Path) -> list[Path]:
    if os.path.isdir(path):  # pathlib raises an error for a name that is too long
        return picture_paths(path)
    check_regular(path)
    return [path]
