"""Explorations and report cards on disk, in folders of their own beside the erasures."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from erasure_core.boundary import Exploration
from erasure_core.boundary.map import write_map
from erasure_core.boundary.report_card import ReportCard
from erasure_core.boundary.report_page import write_report
from erasure_core.errors import InvalidFile, OutputError
from erasure_core.library import safe_stem
from erasure_core.safe_files import check_regular

from . import places

EXPLORATIONS, REPORTS = "explorations", "reports"
CONTENT = {EXPLORATIONS: "exploration.json", REPORTS: "report.json"}
"""The file that makes a folder one of its kind."""
PICTURE, NO_PICTURE = re.compile(r"data:image/[\w.+-]+;base64,[A-Za-z0-9+/=]*"), "data:,"
MAX_BYTES = 2**26
NAME = re.compile(r"[\w-][\w.-]*")


def names(kind: str) -> list[str]:
    """What was saved, the newest first."""
    root = places.folder() / kind
    found = [path.parent for path in root.glob(f"*/{CONTENT[kind]}")] if root.is_dir() else []
    return [path.name for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)]


def find(kind: str, name: str | None) -> Path:
    """The folder of a name that anyone may have sent.

    Raises:
        InvalidFile: nothing of this name was saved here.
    """
    if not name or not NAME.fullmatch(name) or name not in names(kind):
        raise InvalidFile(f"There is nothing called {name!r} among the saved {kind}; choose from the list.")
    return places.folder() / kind / name


def save_exploration(found: Exploration, name: str) -> str:
    """Write the map and the list; returns the name of the folder. Nothing is ever overwritten; raises OutputError."""
    folder = _free(EXPLORATIONS, name)
    write_map(found, folder)
    return folder.name


def save_report(card: ReportCard, name: str) -> str:
    """Write the page and the figures; returns the folder's name. Nothing is ever overwritten; raises OutputError."""
    folder = _free(REPORTS, name)
    write_report(card, folder)
    return folder.name


def read_exploration(name: str | None) -> Exploration:
    """A saved exploration; raises as ``find``, and InvalidFile if it is damaged."""
    return showable(Exploration.from_json(_text(find(EXPLORATIONS, name) / CONTENT[EXPLORATIONS])))


def showable(found: Exploration) -> Exploration:
    """Without the pictures while a safety profile is in force: they were painted without it."""
    if not places.is_in_force():
        return found
    return replace(found, points=tuple(replace(point, thumbnail="") for point in found.points))


def read_report(name: str | None) -> tuple[str, dict[str, Any]]:
    """Page and figures of a saved report card, without pictures while a safety profile is in force.

    Raises:
        InvalidFile: as ``find``, or it is damaged.
    """
    folder = find(REPORTS, name)
    try:
        figures = json.loads(_text(folder / CONTENT[REPORTS]))
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"The report {name!r} is damaged ({error}); make it again.") from error
    if not isinstance(figures, dict):
        raise InvalidFile(f"The report {name!r} is damaged (it is no JSON object); make it again.")
    page = _text(folder / "report.html")
    return PICTURE.sub(NO_PICTURE, page) if places.is_in_force() else page, figures


def _free(kind: str, name: str) -> Path:
    root, stem = places.folder() / kind, safe_stem(name)[:100]
    folder, number = root / stem, 1
    while folder.exists():
        number += 1
        folder = root / f"{stem}-{number}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be made ({error.strerror}); free some space or check its rights."
        ) from error
    return folder


def _text(path: Path) -> str:
    try:
        if check_regular(path) > MAX_BYTES:
            raise InvalidFile(f"{path} is too large to show; make it again.")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidFile(f"{path} cannot be read ({error}); make it again.") from error
