"""What an erasure file says about itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .concept import Concept
from .errors import InvalidFile

FORMAT_VERSION = 1
MAX_LENGTH = 2**20
"""Characters of the JSON text."""


@dataclass(frozen=True)
class Manifest:
    """The description of an erasure, stored as JSON in the file's metadata under ``erasure``.

    Args:
        words: what was erased.
        alternative: what is painted instead, if chosen.
        keep: prompts that were kept.
        method: name of the registered method.
        method_status: how our form of the method relates to its paper.
        settings: the method's settings, seed and steps among them.
        steps_done: optimiser steps that were run; less than asked for after an early stop.
        family: ``sd1``, ``sd2``, ``sdxl``, …
        base_fingerprint: of the touched base tensors, see ``fingerprint``.
        prediction: ``epsilon``, ``v_prediction`` or ``flow``.
        dtype: in which the change is stored.
        storage_error: ||stored - trained|| / ||trained|| of the whole change.
        measured: figures with their threat model; empty where nothing was measured.
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
    prediction: str
    dtype: str = "float32"
    storage_error: float = 0.0
    measured: dict[str, Any] = field(default_factory=dict)
    product_version: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def concept(self) -> Concept:
        return Concept(self.words, self.alternative, self.keep)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest that anyone may have written.

        Raises:
            InvalidFile: not JSON, of a newer format, or with missing or wrongly typed entries.
        """
        if len(text) > MAX_LENGTH:
            raise InvalidFile(f"The manifest is {len(text)} characters long; more than {MAX_LENGTH} are not accepted.")
        try:
            raw = json.loads(text)
            if raw["format_version"] > FORMAT_VERSION:
                raise InvalidFile(
                    f"The file was written by a newer version (format {raw['format_version']}); update this software."
                )
            known = {f.name: raw[f.name] for f in fields(cls) if f.name in raw}
            manifest = cls(**{**known, "words": tuple(known["words"]), "keep": tuple(known["keep"])})
            manifest.concept  # noqa: B018  # checks the words as if they had been typed
            return manifest._typed()
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidFile(
                f"The manifest cannot be read ({error!r}); the file is damaged or not an erasure."
            ) from error

    def _typed(self) -> Manifest:
        for name in ("method", "method_status", "family", "base_fingerprint", "prediction", "dtype", "product_version"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is not a text")
        for name in ("settings", "measured"):
            if not isinstance(getattr(self, name), dict):
                raise TypeError(f"{name} is not an object")
        return self
