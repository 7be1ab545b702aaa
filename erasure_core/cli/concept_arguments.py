"""What to erase, what instead and what to keep, on the command line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..concept import Concept, left_out
from ..errors import InvalidConcept
from ..methods import Method
from ..presets import PRESETS, preset_settings
from ..prompt_file import PromptFile, read_prompt_file
from .terminal import read_lines


def add_concept_arguments(parser: argparse.ArgumentParser) -> None:
    """Read by ``chosen_concept`` and ``implied_settings``."""
    parser.add_argument("--concept", help="what to erase")
    parser.add_argument("--word", action="append", default=[], help="another word for it; may be repeated")
    parser.add_argument(
        "--word-file", type=Path, metavar="FILE", help="file with one such word or phrase a line (explore: leaking.txt)"
    )
    parser.add_argument("--instead", help="what to paint in its place")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="CONCEPT[=INSTEAD]",
        help="a further concept, erased in the same run; may be repeated",
    )
    parser.add_argument("--prompt-file", type=Path, help="concepts in a YAML file as LECO and concept sliders read it")
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        help="a prompt that must stay as it is; may be repeated (default: everyday prompts)",
    )
    parser.add_argument("--keep-file", type=Path, help="file with one prompt to keep a line")
    reasons = "; ".join(f"{preset.name}: {preset.reason}" for preset in PRESETS.values())
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), help=f"settings for a kind of concept. {reasons}".replace("%", "%%")
    )


def chosen_concept(options: argparse.Namespace) -> Concept:
    """All concepts that were asked for, as one; says on standard error which prompts to keep erasing will leave out.

    Raises:
        InvalidConcept: nothing to erase, or a phrase that cannot be used.
        InvalidFile: a file cannot be read.
    """
    keep = tuple([*options.keep, *(read_lines(options.keep_file) if options.keep_file else [])])
    words = [*options.word, *(read_lines(options.word_file) if options.word_file else [])]
    concepts = [_also(text) for text in options.also]
    if options.concept is not None:
        concepts.insert(0, Concept((options.concept, *words), options.instead))
    elif words or options.instead:
        raise InvalidConcept("--word, --word-file and --instead belong to a concept; give --concept as well.")
    if options.prompt_file is not None:
        concepts.append(_prompt_file(options).concept)
    if not concepts:
        raise InvalidConcept("There is nothing to erase; give --concept, --also or --prompt-file.")
    chosen = concepts[0] if len(concepts) == 1 else Concept.joined(concepts)
    chosen = replace(chosen, keep=keep)
    if told := left_out(chosen):
        print(told, file=sys.stderr)
    return chosen


def tell_commas(phrases: Sequence[str | None], how: str) -> None:
    """Say on standard error that a phrase with commas is taken as one; it may be meant so, as a place's name is."""
    listed = next((phrase for phrase in phrases if phrase and re.search(r"[,;]", phrase.strip(" ,;"))), None)
    if listed is not None:
        print(f"concept-erasure: {listed!r} is taken as one phrase; {how}.", file=sys.stderr)


def _prompt_file(options: argparse.Namespace) -> PromptFile:
    """The prompt file that was asked for, read only once: a pipe gives its text no second time."""
    if not hasattr(options, "read_prompts"):
        options.read_prompts = read_prompt_file(options.prompt_file)
    read: PromptFile = options.read_prompts
    return read


def _also(text: str) -> Concept:
    word, equals, instead = text.partition("=")
    return Concept((word,), instead if equals else None)


def implied_settings(options: argparse.Namespace, method: Method) -> dict[str, Any]:
    """Settings that a preset or a prompt file stands for; single flags go before them."""
    settings = preset_settings(options.preset, method) if options.preset else {}
    scale = _prompt_file(options).negative if options.prompt_file is not None else None
    if scale is not None and hasattr(method.settings, "negative"):
        settings["negative"] = scale
        # LECO's target is neutral - scale (positive - unconditional): with a neutral prompt the scale counts as well.
        if method.name == "leco":
            settings["negative_beside"] = scale
    return settings
