"""measure what erasures leak and what else they harm, as a report card"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..boundary.report import ReportSettings, Subjected, report
from ..boundary.report_page import merge_into_manifest, refuse_other_figures, write_report
from ..boundary.verdict import refuse_mixed
from .erasure_arguments import read_all
from .explore import add_search_arguments, searched_concept, tried_prompts
from .model_arguments import add_model_arguments, load_chosen_model
from .picture_check import chosen_check
from .terminal import check_folder, printable, terminal_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, "the model that the erasures are used with")
    parser.add_argument(
        "--erasure",
        action="append",
        required=True,
        metavar="FILE[:STRENGTH]",
        help="an erasure to measure; repeat it to compare several side by side",
    )
    add_search_arguments(parser)
    parser.add_argument(
        "--steps", type=int, default=ReportSettings.steps, help="sampling steps of its pictures (default %(default)s)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="without pictures before and after")
    parser.add_argument(
        "--show-explicit", action="store_true", help="with blurred pictures of a concept that is sexual or violent"
    )
    parser.add_argument("--merge", action="store_true", help="write the figures into the files' own manifests")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.html and report.json")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(options: argparse.Namespace) -> None:
    read = read_all(options.erasure)
    concept = searched_concept(options, [stored for stored, _ in read])
    if options.concept is None:
        refuse_mixed(concept, [(stored.path, stored.manifest) for stored, _ in read], "say with --concept")
    settings = ReportSettings(
        seconds=options.budget,
        calls=options.calls,
        states=options.states,
        steps=options.steps,
        guidance=options.guidance,
        pictures=not options.no_pictures,
        sensitive=options.sensitive,
        explicit=options.show_explicit,
        seed=options.seed,
        max_batch=options.max_batch,
    )
    for stored, strength in read if options.merge else ():
        refuse_other_figures(stored.path, stored.manifest, concept.words, strength)
    check_folder(options.out)
    detector = chosen_check(options, concept)
    model = load_chosen_model(options, options.device, pictures=not options.no_pictures or detector is not None)
    files = [
        Subjected(
            stored.path.stem,
            stored.bind(model, options.allow_other_base),
            strength,
            stored.manifest,
            stored.path.stat().st_size,
            stored.path.parent.name,
        )
        for stored, strength in read
    ]
    with terminal_progress() as progress:
        card = report(model, concept, files, settings, progress, tried_prompts(options), detector)
    write_report(card, options.out)
    if options.merge:
        for number, (stored, _) in enumerate(read):
            merge_into_manifest(stored.path, card, number)
    if options.json:
        print(json.dumps(json.loads(card.to_json())))
        return
    for file in card.files:
        print(printable(f"{file.name}:"), *(f"  {printable(sentence)}" for sentence in file.verdict), sep="\n")
    if card.not_painted and not options.no_pictures:
        print(printable(card.not_painted))
    print(options.out / "report.html")
