"""Time and memory at true size: python -m benchmarks run --family sd15 --out results.json"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from erasure_core import METHODS
from erasure_core.effort import EFFORTS
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import RECOMMENDED

from .architectures import FAMILIES, SIDES, build
from .counting import all_counted, curves, shares
from .documents import counted_table, curves_table, execution_table, fill, solved_table, whole_table
from .every_method import verdicts
from .execution import WAYS, ways
from .machine import Rates, kind_of, measure
from .published import LOOPS, MEAN_STEPS
from .report import PUBLISHED, compare, read, rows_table
from .rows import Row, Setup, rows, with_floor
from .solving import KEPT, solve
from .using import apply, predictions
from .whole import whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RESULTS, DOCS = (Path(__file__).parent.parent / place for place in ("benchmarks/results", "docs/speed.md"))
NAMES = [*(f"{PUBLISHED}{name}" for name in LOOPS), *METHODS]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure methods and published loops")
    run.set_defaults(act=_run)
    _add_model_options(run)
    run.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    run.add_argument("--method", nargs="+", default=NAMES, help=f"of: {', '.join(NAMES)}")
    run.add_argument("--size", type=int, help="pixels along each side; by default the family's own")
    run.add_argument("--steps", type=int, default=3, help="optimiser steps that are timed")
    run.add_argument("--sampling", type=int, default=MEAN_STEPS, help="steps that published loops really sample")
    run.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the methods")
    run.add_argument("--out", type=Path, help="where the results go as JSON, after every family")
    run.add_argument("--no-floor", action="store_true", help="only measure; `floor` counts later, on any machine")
    floor = commands.add_parser("floor", help="add what is counted to results of `run --no-floor`")
    floor.set_defaults(act=_floor)
    floor.add_argument("results", type=Path)
    counted = commands.add_parser("count", help="operations and memory at true size, computing nothing")
    counted.set_defaults(act=_count)
    counted.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    counted.add_argument("--out", type=Path, help="where the figures go as JSON")
    solve = commands.add_parser("solve", help="closed forms of one and of many concepts, and a file on the model")
    solve.set_defaults(act=_solve)
    _add_model_options(solve)
    solve.add_argument("--family", choices=FAMILIES, default="sdxl")
    solve.add_argument("--concepts", type=int, nargs="+", default=[1, 10, 100])
    solve.add_argument("--size", type=int, default=512, help="pixels along each side of what is predicted with files")
    solve.add_argument("--out", type=Path, help="where the figures go as JSON")
    every = commands.add_parser("every", help="every method on true shapes: trained, saved, loaded, switched off")
    every.set_defaults(act=_every)
    _add_model_options(every, "float32", "16 bits round away most of the change")
    every.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    every.add_argument("--size", type=int, default=64, help="pixels along each side")
    every.add_argument("--method", nargs="+", choices=list(METHODS))
    every.add_argument("--out", type=Path, help="where the verdicts go as JSON")
    once = commands.add_parser("whole", help="a whole erasure with a method's defaults, by stage")
    once.set_defaults(act=_whole)
    _add_model_options(once)
    once.add_argument("--family", choices=FAMILIES, default="sd15")
    once.add_argument("--method", choices=list(METHODS), default=RECOMMENDED)
    once.add_argument("--effort", nargs="+", choices=EFFORTS, default=["balanced"])
    once.add_argument("--stop-after", type=float, metavar="SECONDS", help="stop, and reckon what is missing")
    once.add_argument("--out", type=Path, help="where the figures go as JSON")
    other = commands.add_parser("execution", help="other ways to run the same network on a GPU")
    other.set_defaults(act=_execution)
    _add_model_options(other)
    other.add_argument("--family", choices=FAMILIES, default="sd15")
    other.add_argument("--batch", type=int, default=16, help="latents of a call")
    other.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    other.add_argument("--out", type=Path, help="where the figures go as JSON")
    docs = commands.add_parser("docs", help="write the figures of benchmarks/results into docs/speed.md")
    docs.set_defaults(act=lambda options: fill(RESULTS, DOCS))
    both = commands.add_parser("compare", help="two result files, row by row")
    both.set_defaults(act=_compare)
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    return parser


def _add_model_options(parser: argparse.ArgumentParser, dtype: str = "bfloat16", about: str = "of the weights") -> None:
    """How and where the model is built that a command works on."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default=dtype, help=about)
    parser.add_argument("--tiny", action="store_true", help="a tenth of the channels")
    parser.add_argument("--seed", type=int, default=0)


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Settings from NAME=VALUE, the values as JSON where they are."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    return {name: value(text) for name, _, text in (pair.partition("=") for pair in pairs)}


def _run(options: argparse.Namespace) -> None:
    unknown = [name for name in options.method if name not in NAMES]
    if unknown:
        raise SystemExit(f"There is no method {unknown[0]!r}; choose from {', '.join(NAMES)}.")
    dtype, results = DTYPES[options.dtype], []
    rates = measure(options.device, dtype)
    for family in options.family:
        side = options.size or SIDES[family]
        torch.manual_seed(options.seed)
        model = build(family, side, options.device, dtype, options.seed, options.tiny)
        setup = Setup(family, side, options.device, dtype, options.tiny, options.steps, _settings(options.set))
        found = [asdict(row) for row in rows(model, options.method, setup, options.sampling)]
        results.append(
            {
                "family": family, "side": side, "dtype": options.dtype, "tiny": options.tiny, "steps": options.steps,
                "seed": options.seed, "machine": kind_of(options.device), "rates": asdict(rates),
                "command": _command(options), "rows": found,
            }
        )  # fmt: skip
        del model
        if not options.no_floor:
            results[-1]["rows"] = _counted_rows(results[-1])
        print(rows_table(results[-1]), flush=True)
        _write(options.out, results)


def _counted_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a run with their floors."""
    dtype, rates = DTYPES[result["dtype"]], Rates(**result["rates"])
    setup = Setup(result["family"], result["side"], "cpu", dtype, result["tiny"], result["steps"], {})
    return [asdict(with_floor(Row(**row), setup, rates)) for row in result["rows"]]


def _floor(options: argparse.Namespace) -> None:
    results = read(options.results)
    for result in results:
        result["rows"] = _counted_rows(result)
        print(rows_table(result), flush=True)
        _write(options.results, results)


def _count(options: argparse.Namespace) -> None:
    found: list[dict[str, Any]] = []
    first = options.family[0]
    for family in options.family:
        found.extend(all_counted(family))
        grown = curves(first)
        made = {"command": _command(options), "machine": kind_of("cpu"), "seed": None, "rows": found}
        _write(options.out, {**made, "curve of": first, "curves": grown, "shares": shares(first)})
    print(f"{counted_table(found)}\n\n{curves_table(grown)}")


def _solve(options: argparse.Namespace) -> None:
    model = build(options.family, options.size, options.device, DTYPES[options.dtype], options.seed, options.tiny)
    result: dict[str, Any] = {"command": _command(options), "machine": kind_of(options.device), "solved": []}
    result |= {"family": options.family, "dtype": options.dtype, "seed": options.seed, "tiny": options.tiny}
    result |= {"side": options.size, "kept": KEPT, "applied": asdict(apply(model, options.device))}
    result["stacked"] = predictions(model, options.device)
    for count in options.concepts:
        result["solved"].append(asdict(solve(model, count, options.device)))
        print(solved_table(result), flush=True)
        _write(options.out, result)


def _whole(options: argparse.Namespace) -> None:
    model, result = _made(options, runs=[])
    for effort in options.effort:
        made = whole(model, options.method, effort, options.device, options.stop_after)
        result["runs"].append(asdict(made))
        print(whole_table(result), flush=True)
        _write(options.out, result)


def _execution(options: argparse.Namespace) -> None:
    model, result = _made(options, batch=options.batch, ways=[])
    for way in ways(model, options.batch, options.device, tuple(options.way)):
        result["ways"].append(asdict(way))
        print(execution_table(result), flush=True)
        _write(options.out, result)


def _made(options: argparse.Namespace, **more: Any) -> tuple[DiffusersModel, dict[str, Any]]:
    """The model that options ask for, and the head of a result made with it."""
    side = SIDES[options.family]
    torch.manual_seed(options.seed)
    model = build(options.family, side, options.device, DTYPES[options.dtype], options.seed, options.tiny)
    result = {"command": _command(options), "machine": kind_of(options.device), "family": options.family, "side": side}
    return model, result | {"dtype": options.dtype, "seed": options.seed, "tiny": options.tiny, **more}


def _every(options: argparse.Namespace) -> None:
    runs, faults = [], []
    for family in options.family:
        torch.manual_seed(options.seed)
        model = build(family, options.size, options.device, DTYPES[options.dtype], options.seed, options.tiny)
        where = {"family": family, "side": options.size, "dtype": options.dtype, "seed": options.seed}
        runs.append({**where, "tiny": options.tiny, "machine": kind_of(options.device), "verdicts": []})
        for verdict in verdicts(model, options.method):
            runs[-1]["verdicts"].append({**asdict(verdict), "faults": verdict.faults})
            print({"family": family, **asdict(verdict)}, flush=True)
            _write(options.out, {"command": _command(options), "runs": runs})
            faults += [f"{family} {verdict.method}: {fault}" for fault in verdict.faults]
    if faults:
        raise SystemExit("\n".join(faults))


def _command(options: argparse.Namespace) -> str:
    return "python -m benchmarks " + shlex.join(options.words)


def _write(path: Path | None, content: Any) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _compare(options: argparse.Namespace) -> None:
    print(compare(options.before, options.after))


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    options.words = words
    options.act(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
