"""erase a concept from a model and write the change as one small file"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..boundary.explore import ExploreSettings
from ..boundary.harden import harden
from ..checkpoint import checkpoint_path
from ..chosen_words import chosen_words
from ..concept import Concept
from ..effort import EFFORTS, Effort, effort_of
from ..erasure_file import Erasure, write_erasure
from ..errors import Cancelled, ErasureError, InvalidSettings, OutOfMemory, OutputError
from ..manifest import Manifest
from ..methods import METHODS, RECOMMENDED, Method, SolverSettings, find_method
from ..presets import about_preset
from ..safe_files import exclusive
from ..trainer import SAVE_EVERY
from .concept_arguments import add_concept_arguments, chosen_concept, implied_settings, tell_commas
from .hardening import add_harden_arguments, search_settings, tell_round
from .model_arguments import add_model_arguments, load_chosen_model
from .picture_arguments import add_picture_arguments, chosen_pictures, wants_pictures
from .terminal import check_new_file, printable, terminal_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "concept-erasure erase --model MODEL (--concept CONCEPT | --prompt-file FILE) --out FILE [options]"
    add_model_arguments(parser, "the model to erase from")
    add_concept_arguments(parser)
    add_picture_arguments(parser)
    add_harden_arguments(parser)
    parser.add_argument("--method", default=RECOMMENDED, help=f"one of {', '.join(METHODS)}; default {RECOMMENDED}")
    parser.add_argument("--effort", choices=EFFORTS, help="; ".join(f"{n}: {what}" for n, what in EFFORTS.items()))
    parser.add_argument("--out", type=Path, required=True, help="the erasure file (.safetensors)")
    parser.add_argument("--resume", action="store_true", help="go on with a training that was stopped")
    parser.add_argument(
        "--save-every",
        type=float,
        default=SAVE_EVERY,
        help=f"seconds between saves of the resumable state (default {SAVE_EVERY:g})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    _add_settings(parser.add_argument_group("settings of the methods"))


def _flag_type(method: Method, setting: Field[Any]) -> type:
    hint = get_type_hints(method.settings)[setting.name]
    plain = [t for t in get_args(hint) if t is not type(None)]
    chosen: type = plain[0] if plain else hint
    return chosen


def _add_settings(group: argparse._ArgumentGroup) -> None:
    """One flag for each setting of each method; the methods' dataclasses are the schema."""
    users: dict[str, list[tuple[Method, Field[Any]]]] = {}
    for method in METHODS.values():
        for setting in fields(method.settings):
            users.setdefault(setting.name, []).append((method, setting))
    for name, uses in users.items():
        method, setting = uses[0]
        text = f"{_meaning(uses)} (default {_defaults(uses)})".replace("%", "%%")
        flag = f"--{name.replace('_', '-')}"
        if _flag_type(method, setting) is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            group.add_argument(flag, type=_flag_type(method, setting), default=None, help=text)


def _defaults(uses: Sequence[tuple[Method, Field[Any]]]) -> str:
    """The default of most methods, then those of the others."""
    methods: dict[str, list[str]] = {}
    for method, setting in uses:
        default: Any = setting.default
        shown = "on" if default is True else "off" if default is None or default is False else f"{default}"
        methods.setdefault(shown, []).append(method.name)
    usual, *others = sorted(methods, key=lambda value: -len(methods[value]))
    return "; ".join([usual, *(f"{', '.join(methods[value])}: {value}" for value in others)])


def _meaning(uses: Sequence[tuple[Method, Field[Any]]]) -> str:
    """What a setting does in most methods, then what it does in those where that is something else."""
    methods: dict[str, list[str]] = {}
    for method, setting in uses:
        choices = f": {', '.join(setting.metadata['choices'])}" if setting.metadata["choices"] else ""
        methods.setdefault(f"{setting.metadata['help']}{choices}", []).append(method.name)
    usual, *others = sorted(methods, key=lambda text: -len(methods[text]))
    return "; ".join([usual, *(f"{', '.join(methods[text])}: {text}" for text in others)])


def _settings(options: argparse.Namespace, method: Method) -> tuple[SolverSettings, Effort]:
    every = {f.name for m in METHODS.values() for f in fields(m.settings)}
    given = {name: getattr(options, name) for name in every if getattr(options, name) is not None}
    foreign = sorted(given.keys() - {f.name for f in fields(method.settings)})
    if foreign:
        raise InvalidSettings(
            f"--{foreign[0].replace('_', '-')} is not a setting of the method {method.name}; leave it out."
        )
    effort = effort_of(options.effort, method, given, "--effort")
    implied = implied_settings(options, method)
    if options.preset:
        print(about_preset(options.preset, method, implied.keys() & given), file=sys.stderr)
    return method.settings(**implied | given), effort


def _check_output(path: Path, overwrite: bool, resume: bool, model: Path) -> Path:
    """Refuse before the work what would fail after it. Returns the checkpoint's path."""
    check_new_file(path, overwrite, model)
    checkpoint = checkpoint_path(path)
    if checkpoint.is_dir():
        raise OutputError(f"{checkpoint}, where an unfinished training would be, is a folder; choose another name.")
    if checkpoint.exists() and not resume and not overwrite:
        raise OutputError(
            f"{checkpoint} holds an unfinished training; go on with --resume or start anew with --overwrite."
        )
    return checkpoint


def _erase(
    options: argparse.Namespace,
    concept: Concept,
    method: Method,
    settings: SolverSettings,
    effort: Effort,
    search: ExploreSettings,
    checkpoint: Path,
) -> tuple[Manifest, int, dict[str, float]]:
    """Do the work and write the file; returns its manifest, the number of changed layers, and the last figures that the
    method took of the training (with --harden, of the first one)."""
    if options.resume and not checkpoint.exists():
        print(f"There is no {checkpoint}; starting from the beginning.", file=sys.stderr)
    model = load_chosen_model(options, options.device, pictures=wants_pictures(options, method))
    pictures = chosen_pictures(options, model)
    if not options.resume:
        checkpoint.unlink(missing_ok=True)
    finished: list[Erasure] = []
    try:
        with terminal_progress() as progress:
            erasure, history, _ = harden(
                model,
                concept,
                options.harden,
                method.name,
                settings,
                search,
                progress,
                checkpoint,
                options.save_every,
                pictures,
                tell_round,
                finished.append,
                effort=effort,
            )
    except ErasureError as stopped:
        if finished:  # an erasing that took hours must not be lost to a search behind it
            write_erasure(options.out, finished[-1], model)
            again = "--resume --overwrite" if checkpoint.exists() else "--overwrite"
            what = f"{options.out} holds the erasure as it was before."
            raise type(stopped)(f"{stopped} {what} To harden it again, repeat the command with {again}.") from stopped
        advice = " Repeat the command with --resume to go on." if checkpoint.exists() else ""
        if isinstance(stopped, OutOfMemory):
            flags = "A smaller --size or --rank, fewer --layers or --device cpu need less."
            raise OutOfMemory(f"{stopped}{advice} {flags}") from stopped
        if not isinstance(stopped, Cancelled):
            raise
        raise Cancelled(f"{stopped}{advice}") from None
    manifest = write_erasure(options.out, erasure, model)
    checkpoint.unlink(missing_ok=True)
    return manifest, len(erasure.deltas), history.figures[-1][1] if history.figures else {}


def run(options: argparse.Namespace) -> None:
    concept = chosen_concept(options)
    how = "for several concepts give each further one as --also, for several words of one concept each as --word"
    tell_commas([options.concept, *options.word, *options.also], how)
    method = find_method(options.method)
    settings, effort = _settings(options, method)
    if not options.save_every >= 0:
        raise InvalidSettings(f"--save-every is {options.save_every}; it must be a number of seconds, 0 or more.")
    if options.harden < 0:
        raise InvalidSettings(f"--harden is {options.harden}; it must be a number of rounds, 0 or more.")
    search = search_settings(options)
    checkpoint = _check_output(options.out, options.overwrite, options.resume, options.model)
    started = time.monotonic()
    with exclusive(options.out):
        _check_output(
            options.out, options.overwrite, options.resume, options.model
        )  # another process may just have made it
        manifest, layers, figures = _erase(options, concept, method, settings, effort, search, checkpoint)
    result = {
        "path": str(options.out),
        "method": method.name,
        "words": list(concept.words),
        "added": list(manifest.words[len(concept.words) :]),
        "alternative": manifest.alternative,
        "instead": [list(pair) for pair in manifest.instead],
        "layers": layers,
        "steps": manifest.steps_done,
        "bytes": options.out.stat().st_size,
        "seconds": round(time.monotonic() - started, 2),
        "figures": figures,
    }
    if options.json:
        json.dump(result, sys.stdout)
        print()
    else:
        done = f"{', '.join(concept.words)} erased with {method.title} in {result['seconds']} s"
        print(printable(f"{options.out}: {done}; {chosen_words(concept, manifest)}."))
        if figures:
            print("At the end of training: " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()))
