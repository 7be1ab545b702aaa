"""``python -m proving_ground``: train the small world's model from nothing, measure it, erase from it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .bench import BENCH_CONCEPTS, METHODS
from .check import FLIPS
from .lexicon import CONCEPTS
from .several import FIVE
from .tokens import MODEL_DIR
from .variants import ROWS, VARIANTS

UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """Read a duration such as ``90m``, ``2h`` or ``45s``.

    >>> seconds("90m")
    5400.0
    """
    if not text or text[-1] not in UNITS:
        raise argparse.ArgumentTypeError(f"expected a duration such as 90m, got {text!r}")
    try:
        return float(text[:-1]) * UNITS[text[-1]]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a duration such as 90m, got {text!r}") from None


def _stages() -> dict[str, Callable[..., tuple[object, bool]]]:
    from .training import autoencoder, clip, judge, unet

    return {
        "clip": clip.train_clip,
        "autoencoder": autoencoder.train_autoencoder,
        "judge": judge.train_judge,
        "unet": unet.train_unet,
    }


def run_training(only: str | None, budget: float | None) -> bool:
    """Run the stages that are not complete, in order, then export. Returns whether everything is complete."""
    from .training.export import export
    from .training.resume import PART_STEPS
    from .training.state import steps_done

    deadline = None if budget is None else time.monotonic() + budget
    for name, stage in _stages().items():
        if only not in (None, name):
            continue
        if steps_done(name) >= PART_STEPS[name]:
            print(f"{name}: complete")
            continue
        _, complete = stage(deadline=deadline)
        if not complete:
            print(f"{name}: out of time after {steps_done(name)} of {PART_STEPS[name]} steps; run again to continue")
            return False
    if only is None:
        export()
        print(f"model written to {MODEL_DIR}")
    return True


def _train(options: argparse.Namespace) -> int:
    if options.resume_from:
        from .training.resume import resume_from

        for part, step in resume_from(options.resume_from).items():
            print(f"{part}: taken from {options.resume_from} after {step} steps")
    return 0 if run_training(options.only, options.budget) else 1


def _export(options: argparse.Namespace) -> None:
    from .training.export import export

    export(options.out, options.partial)


def _quality(options: argparse.Namespace) -> int:
    from .quality import report_quality

    return 0 if report_quality(options.model, options.count, options.seed, options.out) else 1


def _adapter(options: argparse.Namespace) -> int:
    from .adapter_quality import report_adapter

    if options.train:
        from .training.image_adapter import train_image_adapter

        if not train_image_adapter(None if options.budget is None else time.monotonic() + options.budget):
            print("out of time; run again to continue")
            return 1
    report_adapter(options.count)
    return 0


def _words(options: argparse.Namespace) -> None:
    from .evaluation import KINDS
    from .painting import load_model
    from .words import nearness

    model = load_model(options.model)
    print(*(nearness(model, kind).line() for kind in KINDS), sep="\n")


def _bench(options: argparse.Namespace) -> None:
    from .bench import cells, missing, read_results, run_bench
    from .bench_table import cell_table, summary

    wanted = cells(options.method, options.concept, options.seeds)
    wanted = missing(wanted, options.searched) if options.missing else wanted
    for place, result in enumerate(run_bench(wanted, options.budget, options.searched)):
        print(*cell_table([result])[0 if place == 0 else -1 :], sep="\n", flush=True)
    print("", summary(read_results()), sep="\n")


def _table(options: argparse.Namespace) -> None:
    from .bench import read_results
    from .bench_table import tables, write_tables

    if options.write:
        write_tables(options.write, read_results())
        print(options.write)
    else:
        print(tables(read_results()))


def _strips(options: argparse.Namespace) -> None:
    from .strips import write_strips

    write_strips(options.concept, options.out, options.method)
    print(options.out)


def _several(options: argparse.Namespace) -> None:
    from .several import report_several

    report_several(options.method, options.concept, options.count)


def _check(options: argparse.Namespace) -> int:
    from .check import report
    from .judge import load_judge
    from .painting import load_model

    missed = 0
    for figure in report(load_model(), load_judge(), ("esd",) if options.flip else METHODS, options.flip):
        print(figure.line(), flush=True)
        missed += not figure.reached
    return 1 if missed else 0


def _pool(options: argparse.Namespace) -> None:
    from .documents import DOCS
    from .pool_bench import run_pool, write_figures

    if not options.docs:
        run_pool(options.concept, options.steps, options.count)
    write_figures(DOCS / "quality.md")


def _widen(options: argparse.Namespace) -> None:
    from erasure_core import Erasure, read_erasure, write_erasure

    from .painting import load_model
    from .widen import widen_erasure, widen_model, write_twin

    narrow = load_model(options.model)
    wide = widen_model(narrow)
    write_twin(options.out, wide)
    print(options.out)
    if options.erasure:
        stored = read_erasure(options.erasure)
        if stored.manifest is None:
            raise SystemExit(f"{options.erasure} has no manifest: it was not made by this software")
        path = options.out.with_name(f"{options.erasure.stem}_sd15.safetensors")
        write_erasure(path, widen_erasure(Erasure(stored.bind(narrow), stored.manifest), wide), wide)
        print(path)


def _boundary(options: argparse.Namespace) -> None:
    from .boundary_bench import run_boundary, write_figures

    if not options.docs:
        run_boundary(options.part, options.concept, options.method, options.budget, options.missing)
    write_figures()


def _demo(options: argparse.Namespace) -> None:
    from .demo import run_demo

    run_demo(options.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m proving_ground", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int | None], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=run)
        command.add_argument("--threads", type=int, help="CPU threads, by default torch's choice")
        return command

    train = add("train", _train, "train what is not trained yet; an interrupted training continues")
    train.add_argument("--only", choices=("clip", "autoencoder", "judge", "unet"), help="one part, without export")
    train.add_argument("--budget", type=seconds, help="stop after so long, for example 90m")
    train.add_argument("--resume-from", type=Path, help="an exported model whose training goes on, where no state is")
    export = add("export", _export, "write the trained parts as a diffusers folder")
    export.add_argument("--partial", action="store_true", help="also when training has not ended")
    export.add_argument("--out", type=Path, default=MODEL_DIR, help="folder to write")
    quality = add("quality", _quality, "measure the bundled model and its judge; exit code 1 if a target is missed")
    quality.add_argument("--model", type=Path, default=MODEL_DIR, help="diffusers folder with judge.safetensors")
    quality.add_argument("--count", type=int, default=1000, help="pictures to sample")
    quality.add_argument("--seed", type=int, default=0)
    quality.add_argument("--out", type=Path, help="folder for quality.json and contact_sheet.png")
    adapter = add("adapter", _adapter, "what the bundled IP-Adapter tells the model of a picture")
    adapter.add_argument("--train", action="store_true", help="train it first, for the bundled model as it is")
    adapter.add_argument("--budget", type=seconds, help="stop training after so long, for example 20m")
    adapter.add_argument("--count", type=int, default=200, help="pictures to show")
    words = add("words", _words, "how near the words of a concept are in what the UNet reads")
    words.add_argument("--model", type=Path, default=MODEL_DIR, help="diffusers folder")
    bench = add("bench", _bench, "measure erasing methods; every result is a file in results/")
    bench.add_argument(
        "--method",
        nargs="+",
        default=list(ROWS),
        metavar="ROW",
        help=f"from {', '.join(VARIANTS)} (default: the first {len(ROWS)})",
    )
    bench.add_argument("--concept", nargs="+", default=list(BENCH_CONCEPTS), choices=list(CONCEPTS), metavar="CONCEPT")
    bench.add_argument("--seeds", nargs="+", type=int, default=[0], help="training seeds")
    bench.add_argument("--missing", action="store_true", help="only what has no result file yet")
    bench.add_argument("--searched", action="store_true", help="also search for prompts and embeddings that leak")
    bench.add_argument("--budget", type=seconds, help="stop after so long, for example 100m")
    table = add("table", _table, "print the benchmark's tables, made from the result files")
    table.add_argument("--write", type=Path, help="put them between the marks of this Markdown file instead")
    strips = add("strips", _strips, "paint the same prompts with every method, in one picture")
    strips.add_argument("--concept", default="ball", choices=list(CONCEPTS), metavar="CONCEPT")
    strips.add_argument("--method", nargs="+", default=list(ROWS), metavar="ROW", help="as of bench")
    strips.add_argument("--out", type=Path, default=Path("methods.png"), help="the picture")
    several = add("several", _several, "erase several concepts in one run, and as files that are applied together")
    several.add_argument("--method", default="closed_form", choices=list(VARIANTS), metavar="ROW", help="as of bench")
    several.add_argument("--concept", nargs="+", default=list(FIVE), choices=list(CONCEPTS), metavar="CONCEPT")
    several.add_argument("--count", type=int, default=24, help="pictures of each concept in each group")
    check = add("check", _check, "the benchmark in small, as CI runs it; exit code 1 if a bound is missed")
    check.add_argument("--flip", choices=FLIPS, help="turn a sign of ESD's loss round, to see the bounds fail")
    pool = add("pool", _pool, "the trajectory pool against ESD's published loop; writes docs/quality.md")
    pool.add_argument("--concept", nargs="+", default=["ball", "star"], choices=list(CONCEPTS), metavar="CONCEPT")
    pool.add_argument("--steps", type=int, default=300, help="optimiser steps of each way")
    pool.add_argument("--count", type=int, default=96, help="pictures in each group")
    pool.add_argument("--docs", action="store_true", help="only write the figures that there are")
    widen = add("widen", _widen, "write the bundled model as a checkpoint that hosts load")
    widen.add_argument("out", type=Path, help="the checkpoint (.safetensors, about 1.3 GB)")
    widen.add_argument("--to", choices=("sd15",), default="sd15", help="whose layer shapes")
    widen.add_argument("--erasure", type=Path, help="widen this erasure too, to <name>_sd15.safetensors beside out")
    widen.add_argument("--model", type=Path, default=MODEL_DIR, help="diffusers folder")
    boundary = add("boundary", _boundary, "measure boundary exploration; writes the figures into docs/boundary.md")
    parts = ("scores", "search", "attack", "harden", "speed")
    boundary.add_argument("--part", nargs="+", default=list(parts), choices=parts)
    boundary.add_argument("--method", nargs="+", default=["esd", "closed_form"], help="rows; default: esd closed_form")
    boundary.add_argument("--concept", nargs="+", default=["ball", "house", "star"], metavar="CONCEPT")
    boundary.add_argument("--budget", type=seconds, default=60.0, help="of each search (default 60s)")
    boundary.add_argument("--missing", action="store_true", help="only what has no result file yet")
    boundary.add_argument("--docs", action="store_true", help="only write the figures that there are")
    demo = add("demo", _demo, "erase one object from the bundled model and show the result")
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder for the result")
    return parser


def main() -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options.run(options) or 0


if __name__ == "__main__":
    raise SystemExit(main())
