"""Prompt files in the form that LECO and the concept sliders use: a YAML list of flat entries.

    - target: "van gogh"        # what is erased
      positive: "van gogh"      # the same, or left out
      unconditional: ""
      neutral: "a painting"     # what takes its place; left out or "" is nothing
      action: "erase"
      guidance_scale: 1.0       # how far to push away

Only this form is read, so that no YAML library is needed. Entries about the size of a training batch are ignored.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from .concept import Concept
from .errors import InvalidFile
from .safe_files import read_text

IGNORED = ("resolution", "dynamic_resolution", "batch_size", "dynamic_crops", "multiplier", "weight")
KNOWN = ("target", "positive", "unconditional", "neutral", "action", "guidance_scale")
NOTHING = ("~", "null", "Null", "NULL")
"""Unquoted texts that YAML reads as no value."""
INDICATORS = "[]{}&*!|>%@`,?"
"""What begins something else than a plain text in YAML."""


@dataclass(frozen=True)
class PromptFile:
    """What a prompt file asks for.

    Args:
        concept: all its targets, each with its own alternative.
        negative: their guidance scale; ``None`` where the file gives none.
    """

    concept: Concept
    negative: float | None


def read_prompt_file(path: Path) -> PromptFile:
    """Read a prompt file.

    Raises:
        InvalidFile: it cannot be read, or asks for something that is not supported.
        InvalidConcept: a target or neutral prompt cannot be used.
    """
    return parse_prompt_file(read_text(path), str(path))


def parse_prompt_file(text: str, origin: str) -> PromptFile:
    """As ``read_prompt_file``, from its text; ``origin`` names it in messages.

    Raises:
        InvalidFile: it asks for something that is not supported.
        InvalidConcept: a target or neutral prompt cannot be used.
    """
    entries = _entries(text, origin)
    if not entries:
        raise InvalidFile(f"{origin} holds no prompts; give a YAML list with a target in each entry.")
    scales = {scale for entry in entries if (scale := _scale(entry, origin)) is not None}
    if len(scales) > 1:
        raise InvalidFile(f"{origin} has entries with different guidance_scale; one run has one, so use several files.")
    return PromptFile(Concept.joined([_concept(entry, origin) for entry in entries]), next(iter(scales), None))


def _concept(entry: dict[str, str], origin: str) -> Concept:
    target = entry.get("target", "")
    if not target:
        raise InvalidFile(f"{origin} has an entry without a target; say there what is to be erased.")
    if entry.get("positive", target) not in ("", target):
        raise InvalidFile(
            f"{origin}: for {target!r} the positive prompt differs, which is not supported; make it equal."
        )
    if entry.get("unconditional"):
        raise InvalidFile(
            f"{origin}: for {target!r} the unconditional prompt is {entry['unconditional'][:60]!r}, which is not "
            'supported; leave it out or write "".'
        )
    if (entry.get("action") or "erase") != "erase":
        raise InvalidFile(f"{origin}: the action {entry['action']!r} is not supported; only erase is.")
    return Concept((target,), entry.get("neutral") or None)


def _scale(entry: dict[str, str], origin: str) -> float | None:
    if not entry.get("guidance_scale"):
        return None
    try:
        scale = float(entry["guidance_scale"])
        if not math.isfinite(scale):
            raise ValueError("it is no finite number")
        return scale
    except ValueError as error:
        raise InvalidFile(f"{origin}: guidance_scale is {entry['guidance_scale']!r}; it must be a number.") from error


def _entries(text: str, origin: str) -> list[dict[str, str]]:
    entries: list[dict[str, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#") or line.strip() == "---":
            continue
        found = re.fullmatch(r"(\s*-\s+|\s+)(\w+)\s*:\s*(.*)", line)
        if (
            found is None
            or (not entries and "-" not in found[1])
            or (found[2] not in KNOWN and found[2] not in IGNORED)
        ):
            raise InvalidFile(f"{origin}, line {number}: {line.strip()[:60]!r} is not understood; write key: value.")
        if "-" in found[1]:
            entries.append({})
        if found[2] in entries[-1]:
            raise InvalidFile(f"{origin}, line {number}: {found[2]} is given twice.")
        if found[2] in KNOWN:
            entries[-1][found[2]] = _value(found[3], f"{origin}, line {number}")
    return entries


def _value(written: str, place: str) -> str:
    """A plain or quoted YAML text without its comment; empty for none.

    Raises:
        InvalidFile: quotes that do not match, an escape that JSON does not have, or no plain text.
    """
    if written.startswith(('"', "'")):
        quote = written[0]
        inside = r'"((?:[^"\\]|\\.)*)"' if quote == '"' else r"'((?:[^']|'')*)'"
        found = re.fullmatch(inside + r"\s*(#.*)?", written)
        if found is None:
            raise InvalidFile(f"{place}: the quotes around {written[:60]!r} do not match.")
        return _unescaped(found[1], place) if quote == '"' else found[1].replace("''", "'")
    plain = re.sub(r"(^|\s)#.*", "", written).strip()
    if plain.startswith(tuple(INDICATORS)) or ": " in plain or plain.endswith(":"):
        raise InvalidFile(f"{place}: {plain[:60]!r} is YAML of another form; for a text put it in quotes.")
    return "" if plain in NOTHING else plain


def _unescaped(inside: str, place: str) -> str:
    """What stands between double quotes, with the escapes that YAML shares with JSON."""
    try:
        return str(json.loads(f'"{inside}"', strict=False))
    except ValueError as error:
        raise InvalidFile(f"{place}: an escape in {inside[:60]!r} is unknown; write the character itself.") from error
