"""What an erasure file says about itself."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from .concept import Concept
from .errors import InvalidConcept, InvalidFile, OutputError
from .strict_json import parse_json

FORMAT_VERSION = 1
MAX_LENGTH = 2**20
"""Characters of the JSON text."""
MAX_ITEMS = 50_000
"""Entries of all its lists and objects."""
MAX_TEXT = 1000
"""Characters of an entry that is one text."""


@dataclass(frozen=True)
class Manifest:
    """The description of an erasure, stored as JSON in the file's metadata under ``erasure``.

    Args:
        words: what was erased.
        alternative: what is painted instead, if chosen.
        keep: prompts that were kept.
        instead: pairs (word, what is painted in its place) where words have alternatives of their own.
        groups: the words of each concept where several were erased at once; older files do not tell.
        found: those of the words that a method or a search added to the user's; older files do not tell.
        method: name of the registered method.
        method_status: how our form of the method relates to its paper.
        settings: the method's settings, seed and steps among them.
        steps_done: optimiser steps that were run; less than asked for after an early stop.
        family: ``sd1``, ``sd2``, ``sdxl``, …
        base_fingerprint: hash of the touched base weights, see ``fingerprint.fingerprint``.
        base_sketch: what recognises the base in another number format, see ``fingerprint.sketch``.
        prediction: ``epsilon`` or ``v_prediction``.
        dtype: in which the change is stored.
        storage_error: ||stored - trained|| / ||trained|| of the whole change.
        measured: figures with their threat model; empty where nothing was measured.
        request: hash of all that decided the content, by which the same request finds the file again under any name;
            empty for files that no library made.
        product_version: of this software.
        format_version: of this description.
    """

    words: tuple[str, ...]
    alternative: str | None
    keep: tuple[str, ...]
    method: str
    method_status: str
    settings: dict[str, Any]
    steps_done: int
    family: str
    base_fingerprint: str
    base_sketch: list[float]
    prediction: str
    instead: tuple[tuple[str, str], ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    found: tuple[str, ...] = ()
    dtype: str = "float32"
    storage_error: float = 0.0
    measured: dict[str, Any] = field(default_factory=dict)
    request: str = ""
    product_version: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def concept(self) -> Concept:
        return Concept(self.words, self.alternative, self.keep, self.instead, groups=self.groups, found=self.found)

    def to_json(self) -> str:
        """The manifest as JSON, which ``from_json`` reads again.

        Raises:
            OutputError: it would be longer than is read.
        """
        text = json.dumps(asdict(self), sort_keys=True, allow_nan=False, ensure_ascii=False)
        if len(text) > MAX_LENGTH:
            raise OutputError(
                f"The description of this erasure would be {len(text)} characters long; at most {MAX_LENGTH} are read. "
                "Give fewer words and prompts to keep, or leave the figures out."
            )
        return text

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest that anyone may have written.

        Raises:
            InvalidFile: not JSON, of a newer format, or with missing or wrongly typed entries.
        """
        if len(text) > MAX_LENGTH:
            raise InvalidFile(f"The manifest is {len(text)} characters long; more than {MAX_LENGTH} are not accepted.")
        try:
            return cls._from_raw(parse_json(text, MAX_ITEMS))
        except KeyError as error:
            raise InvalidFile(
                f"The manifest lacks its entry {error}; the file is damaged or not an erasure."
            ) from error
        except (ValueError, TypeError, InvalidConcept) as error:
            raise InvalidFile(
                f"The manifest cannot be read ({error}); the file is damaged or not an erasure."
            ) from error

    @classmethod
    def _from_raw(cls, raw: Any) -> Manifest:
        if not isinstance(raw, dict):
            raise TypeError("it is no JSON object")
        version = raw["format_version"]
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise TypeError("format_version has the wrong type")
        if version > FORMAT_VERSION:
            raise InvalidFile(f"The file was written by a newer version (format {version}); update this software.")
        known = {f.name: raw[f.name] for f in fields(cls) if f.name in raw or f.name in REQUIRED}
        _check_types(known)
        known |= {name: tuple(known[name]) for name in ("words", "keep")}
        known["instead"] = tuple((word, instead) for word, instead in known.get("instead", ()))
        known["groups"] = tuple(tuple(words) for words in known.get("groups", ()))
        known["found"] = tuple(known.get("found", ()))
        manifest = cls(**known)
        manifest.concept  # noqa: B018  # checks the words as if they had been typed
        return manifest


REQUIRED = frozenset(f.name for f in fields(Manifest) if f.default is MISSING and f.default_factory is MISSING)
TEXTS = ("method", "method_status", "family", "base_fingerprint", "prediction", "dtype", "request", "product_version")


def _check_types(raw: dict[str, Any]) -> None:
    """Whether every entry has the type that ``Manifest`` says.

    Raises:
        TypeError: one has not.
    """

    def is_number(value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    def is_text(value: object) -> bool:
        return isinstance(value, str) and len(value) <= MAX_TEXT

    checks = {name: is_text(raw.get(name, "")) for name in TEXTS}
    checks |= {name: isinstance(raw.get(name, {}), dict) for name in ("settings", "measured")}
    checks |= {name: is_number(raw.get(name, 0)) and raw.get(name, 0) >= 0 for name in ("steps_done", "storage_error")}
    for name in ("words", "keep", "found"):
        texts = raw.get(name, [])
        checks[name] = isinstance(texts, list) and all(isinstance(item, str) for item in texts)
    pairs = raw.get("instead", [])
    checks["instead"] = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(item, str) for item in pair) for pair in pairs
    )
    groups = raw.get("groups", [])
    checks["groups"] = isinstance(groups, list) and all(
        isinstance(words, list) and all(isinstance(word, str) for word in words) for words in groups
    )
    checks["alternative"] = raw["alternative"] is None or isinstance(raw["alternative"], str)
    checks["base_sketch"] = isinstance(raw["base_sketch"], list) and all(map(is_number, raw["base_sketch"]))
    wrong = [name for name, right in checks.items() if not right]
    if wrong:
        raise TypeError(f"{wrong[0]} has the wrong type")
