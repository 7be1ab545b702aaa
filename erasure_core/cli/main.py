"""``concept-erasure``: parses the command line and turns every error into one sentence and an exit code."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ErasureError, OutOfMemory, OutputError, Unconverted, is_out_of_memory
from ..version import __version__
from . import bake, convert, erase, explore, generate, inspect, merge, purify, report
from .terminal import printable

EXIT_CODES = """exit codes:
  0    done
  2    the command line is wrong
  3    bad input: concept, settings, prompt, model or file
  4    training failed: the loss is no longer a finite number
  5    a result cannot be written
  6    the device has too little memory
  130  stopped by the user (Ctrl-C); `erase` goes on with --resume
  141  whoever read the output stopped reading, as `head` does; the rest was not made
"""
CONVERT = "concept-erasure convert FILE --model MODEL --concept WORD --out NEW.safetensors"
CLOSED_PIPE = 141
"""As shells tell of a program that a closed pipe ended."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and leaves the options to --help; takes no empty path, which Python reads as
    the present folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}; see {self.prog} --help.\n")


def _path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = Parser(
        prog="concept-erasure",
        description="Make a Stable Diffusion model unable to paint a concept, as a small file that any UI loads.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (erase, explore, report, generate, purify, inspect, merge, convert, bake):
        name = module.__name__.rpartition(".")[2]
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _ready_streams()
    options = parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except ErasureError as error:
        return _failed(error)
    except KeyboardInterrupt:
        print("concept-erasure: stopped at once; --resume continues a training from its saved state.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough (`| head`). Python would complain about it again on leaving.
        _silence()
        return CLOSED_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _silence()
        return _failed(OutputError("The output cannot be written: there is no space left."))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return _failed(OutOfMemory("The device has too little memory; try a smaller --batch, --max-batch or --size."))
    return 0


def _ready_streams() -> None:
    """Have outputs that take every character, also where they are closed or of a narrow encoding."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # open to the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence() -> None:
    """Let go of what could not be printed, or Python complains about it again on leaving."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())


def _failed(error: ErasureError) -> int:
    how = f" To convert it: {CONVERT}" if isinstance(error, Unconverted) else ""
    print(f"concept-erasure: {printable(error)}{how}", file=sys.stderr)
    return error.exit_code
