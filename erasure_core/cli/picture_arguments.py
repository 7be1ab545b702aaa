"""Pictures of the concept on the command line: a folder, and the image adapter that reads them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..concept_pictures import ConceptPictures, read_pictures, reads_pictures
from ..errors import InvalidSettings
from ..hosts.clip_vision import ClipVision
from ..hosts.diffusers import DiffusersModel
from ..image_prompt import ImageAdapter
from ..methods import METHODS, Method
from ..model import PATCH


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """Read by ``chosen_pictures``."""
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="pictures of the concept, for the methods that read them"
    )
    parser.add_argument(
        "--ip-adapter", type=Path, metavar="FILE", help="IP-Adapter of the base model; without it tokens are learned"
    )
    parser.add_argument("--clip-vision", type=Path, metavar="FOLDER", help="the CLIP vision model that it reads")


def wants_pictures(options: argparse.Namespace, method: Method) -> bool:
    """Whether the autoencoder is needed.

    Raises:
        InvalidSettings: an adapter without pictures or vision model, or pictures for a method that reads none.
    """
    if (options.ip_adapter is None) != (options.clip_vision is None):
        raise InvalidSettings("--ip-adapter and --clip-vision belong together; give both or neither.")
    if options.ip_adapter is not None and options.pictures is None:
        raise InvalidSettings("--ip-adapter reads pictures; give a folder of them with --pictures.")
    if options.pictures is not None and not reads_pictures(method):
        able = ", ".join(name for name, other in METHODS.items() if reads_pictures(other))
        raise InvalidSettings(
            f"The method {method.name} reads no pictures; leave --pictures out, or choose one that does: {able}."
        )
    return options.pictures is not None


def chosen_pictures(options: argparse.Namespace, model: DiffusersModel) -> ConceptPictures | None:
    """The pictures that were asked for.

    Raises:
        InvalidFile: a picture, adapter or vision model cannot be read or does not fit.
    """
    if options.pictures is None:
        return None
    _, height, width = model.latent_shape
    pictures = read_pictures(options.pictures, (PATCH * height, PATCH * width))
    if options.ip_adapter is None:
        return ConceptPictures(latents=model.latents_of(pictures))
    adapter = ImageAdapter.read(options.ip_adapter, model)
    assert adapter.projector is not None
    embedded = ClipVision.load(options.clip_vision)(pictures)
    return ConceptPictures(tokens=adapter.projector(embedded.to(model.device)), adapter=adapter)
