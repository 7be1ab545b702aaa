"""What the commands share: a progress bar with time left, Ctrl-C as a request to stop, a quiet model loader."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from ..errors import OutputError
from ..hosts.diffusers import DiffusersModel
from ..progress import Report
from ..safe_files import LONGEST_NAME, is_unicode, read_text


class TerminalProgress:
    """A ``Progress`` on standard error; standard output stays free for results."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None
        self._stage = ""
        self._told: set[str] = set()
        self._stop = False

    def update(self, report: Report) -> None:
        if report.note:  # a bar would cut it, and is gone when the work is done
            if report.note not in self._told:
                self._told.add(report.note)
                say(printable(report.note))
            return
        if self._bar is None or report.stage != self._stage:
            self.close()
            self._stage = report.stage
            self._bar = tqdm(total=report.total, desc=report.stage, file=sys.stderr, initial=report.step, leave=False)
        if report.losses:
            text = ", ".join(f"{name} {value:.4f}" for name, value in report.losses.items())
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(report.step - self._bar.n)

    def cancelled(self) -> bool:
        return self._stop

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: the first Ctrl-C stops at the next step, the second one at once."""
        if self._stop:
            raise KeyboardInterrupt
        self._stop = True
        print("\nStopping after this step (Ctrl-C again stops at once) …", file=sys.stderr)


@contextmanager
def terminal_progress() -> Iterator[TerminalProgress]:
    """Progress on the terminal; while inside, Ctrl-C and a polite kill ask the work to stop."""
    progress = TerminalProgress()
    before = {number: signal.signal(number, progress.request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield progress
    finally:
        progress.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def load_model(path: Path, device: str, pictures: bool = True, prediction: str | None = None) -> DiffusersModel:
    """Load a model without the libraries' own progress bars and advice, and without asking the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for library in ("diffusers", "transformers", "transformers.tokenization_utils_base"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what fails is told by us
    return DiffusersModel.load(path, device, pictures, prediction)


def say(text: str) -> None:
    """Print a line on standard error above a progress bar that may be there, which is drawn again below it."""
    tqdm.write(text, file=sys.stderr)


def printable(value: object) -> str:
    """A stranger's text without control characters, which could rewrite the terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def check_folder(folder: Path) -> None:
    """Refuse before the work what would fail after it.

    Raises:
        OutputError: files cannot be written there.
    """
    probe = folder / f".probe-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); choose another folder.") from error


def check_new_file(path: Path, overwrite: bool, model: Path) -> None:
    """Refuse a result's name before the work.

    Raises:
        OutputError: not a .safetensors file, of a name that is too long or no UTF-8, existing and not to be replaced,
            no file, the model itself or a part of it, or in a folder that cannot be written.
    """
    if path.suffix != ".safetensors":
        raise OutputError(f"{path} must end in .safetensors.")
    if not is_unicode(path):
        raise OutputError(
            f"{printable(path)} is no UTF-8, which safetensors files must be named in; choose another name."
        )
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise OutputError(f"{path} has a name of more than {LONGEST_NAME} bytes; choose a shorter one.")
    # os.path, for pathlib raises an error where a folder's name is too long; check_folder tells of that.
    if os.path.exists(path) and not overwrite:
        raise OutputError(f"{path} exists already; choose another name or add --overwrite.")
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder; choose another name.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputError(f"{path} is a pipe or a device, which is never replaced; choose another name.")
    if os.path.islink(path) and not os.path.isdir(os.path.dirname(os.path.realpath(path))):
        raise OutputError(f"{path} is a link into a folder that does not exist; choose another name.")
    place, own = os.path.realpath(path), os.path.realpath(model)
    if os.path.exists(path) and (place == own or place.startswith(own + os.sep)):
        raise OutputError(f"{path} is the model itself or a part of it, which is never changed; choose another name.")
    check_folder(path.parent)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are neither empty nor comments (#).

    Raises:
        InvalidFile: as ``read_text``.
    """
    lines = read_text(path).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
