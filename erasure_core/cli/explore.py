"""find the prompts that still reach a concept, and show them on a map"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path

from .. import guard
from ..boundary.explore import ExploreSettings, explore
from ..boundary.map import write_map
from ..boundary.searches import LADDER
from ..boundary.subject import GUIDANCE
from ..concept import Concept, apart_from
from ..erasure_file import StoredErasure
from ..errors import InvalidConcept
from .concept_arguments import tell_commas
from .erasure_arguments import add_other_base_argument, read_all
from .model_arguments import add_model_arguments, load_chosen_model
from .picture_check import add_clip_argument, chosen_check
from .terminal import check_folder, printable, read_lines, terminal_progress

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def search_range(name: str) -> tuple[float, float]:
    """The least and the most that a setting of searches may be."""
    (setting,) = (one for one in fields(ExploreSettings) if one.name == name)
    return setting.metadata["low"], setting.metadata["high"]


def seconds(text: str) -> float:
    """Read how long a search may take, such as ``60s``, ``5m`` or ``90``.

    >>> seconds("5m")
    300.0

    Raises:
        ArgumentTypeError: no duration, or one that no search takes; argparse names the flag.
    """
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1.0)
    try:
        duration = float(number) * unit
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a duration such as 60s or 5m, got {text!r}") from None
    low, high = search_range("seconds")
    if not low <= duration <= high:
        raise argparse.ArgumentTypeError(f"it is {text}; give {low:g}s to {high / UNITS['h']:g}h")
    return duration


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """What is searched for, and with which means; read by ``searched_concept``."""
    parser.add_argument("--concept", help="what to search for (default: what the erasure's manifest says)")
    parser.add_argument("--word", action="append", default=[], help="another word for it; may be repeated")
    parser.add_argument("--keep", action="append", default=[], help="a prompt near it that is meant to stay")
    parser.add_argument("--try", dest="tries", action="append", default=[], help="a prompt of your own to try")
    parser.add_argument("--try-file", type=Path, help="file with one prompt to try a line")
    parser.add_argument(
        "--budget",
        type=seconds,
        default=60.0,
        help="how long to search, such as 5m (default 60s); preparing comes on top, on a CPU minutes at full size",
    )
    parser.add_argument(
        "--calls",
        type=int,
        help="most predictions of the network in a search, in place of the time; then the seed decides the result",
    )
    parser.add_argument("--states", type=int, default=8, help="noisy latents at which prompts are compared (default 8)")
    parser.add_argument(
        "--guidance",
        type=float,
        default=GUIDANCE,
        help=f"guidance scale of the pictures that the model makes for itself (default {GUIDANCE:g})",
    )
    parser.add_argument(
        "--sensitive", action="store_true", help="blur pictures of the concept, whatever its words say of it"
    )
    add_clip_argument(parser)
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    parser.add_argument("--max-batch", type=int, default=64, help="most latents in one call (default 64)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    add_other_base_argument(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, "the model to explore")
    parser.add_argument(
        "--erasure", action="append", default=[], metavar="FILE[:STRENGTH]", help="an erasure to apply; may be repeated"
    )
    add_search_arguments(parser)
    levels = "; ".join(f"{level.name}: {level.help}" for level in LADDER)
    parser.add_argument(
        "--levels", default=ExploreSettings.levels, help=f"searches to run, joined by + (default: all). {levels}"
    )
    parser.add_argument(
        "--look", type=int, default=48, help="worst prompts that are looked at as pictures (default 48)"
    )
    parser.add_argument("--pictures", action="store_true", help="keep small pictures of them on the map")
    parser.add_argument("--out", type=Path, required=True, help="folder for the map and the list")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def searched_concept(options: argparse.Namespace, stored: list[StoredErasure]) -> Concept:
    """The concept that was asked for, or that of the first erasure; of what the erasure kept, all but that.

    Raises:
        InvalidConcept: neither says one, or what was asked for cannot be one.
    """
    told = next((file.manifest.concept for file in stored if file.manifest is not None), None)
    tell_commas([options.concept, *options.word], "for several words of a concept give each further one as --word")
    if options.concept is not None:
        asked = Concept((options.concept, *options.word), None, options.keep)
    elif told is not None:
        asked = replace(told, words=(*told.words, *options.word), keep=tuple(options.keep), groups=())
    else:
        raise InvalidConcept("There is nothing to search for; give --concept, or an erasure with a manifest.")
    return replace(asked, keep=(*asked.keep, *apart_from(asked.words, told.keep if told else ())))


def tried_prompts(options: argparse.Namespace) -> list[str]:
    """The user's own prompts."""
    return [*options.tries, *(read_lines(options.try_file) if options.try_file else [])]


def run(options: argparse.Namespace) -> None:
    read = read_all(options.erasure)
    concept = searched_concept(options, [stored for stored, _ in read])
    settings = ExploreSettings(
        seconds=options.budget if options.calls is None else None,
        calls=options.calls,
        levels=options.levels,
        states=options.states,
        look=options.look,
        guidance=options.guidance,
        pictures=options.pictures,
        sensitive=options.sensitive,
        seed=options.seed,
        max_batch=options.max_batch,
    )
    check_folder(options.out)
    detector = chosen_check(options, concept)
    model = load_chosen_model(options, options.device, pictures=options.pictures or detector is not None)
    erasures = [(stored.bind(model, options.allow_other_base), strength) for stored, strength in read]
    with terminal_progress() as progress:
        found = explore(model, concept, erasures, settings, progress, tried_prompts(options), detector)
    paths = write_map(found, options.out)
    if options.json:
        print(
            json.dumps({"summary": found.summary(), "leaking": found.leaking_words(), "files": list(map(str, paths))})
        )
        return
    print(printable(found.summary()))
    for origin, (leaking, every) in found.shares().items():
        print(f"  {origin:<12} {leaking} of {every}")
    if found.coverage():
        print(f"  The scan has {found.coverage()}.")
    if options.pictures and found.explicit:
        words = ", ".join(f"“{word}”" for word in guard.explicit_words(concept)) or "the concept"
        print(printable(f"  Pictures are blurred, as {words} is taken as sexual or violent."))
    print(options.out / "map.html")
