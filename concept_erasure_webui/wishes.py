"""What a generation asks to be erased: by panel, by prompt tag, by XYZ plot. No host in here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from erasure_core.errors import InvalidSettings
from erasure_core.library import SUFFIX
from erasure_core.profile import wrong_strength

TAG = re.compile(r"<erase:([^>]+)>")
"""What the host hands to us."""
LIKE_TAG = re.compile(r"<\s*erase\b", re.IGNORECASE)
"""What somebody meant as a tag; what the host does not know it drops without a word."""
SLOTS = 4
"""Erasures that the panel can hold; the prompt can name more."""
NONE = "None"


@dataclass(frozen=True)
class Wish:
    """Args:
    name: of the file, without suffix.
    unet: strength for the diffusion network.
    text: strength for the text encoders.

    Raises:
        InvalidSettings: a strength that is no number or out of range.
    """

    name: str
    unet: float = 1.0
    text: float = 1.0

    def __post_init__(self) -> None:
        if told := wrong_strength(repr(self.name), (self.unet, self.text)):
            raise InvalidSettings(told)

    @property
    def file(self) -> str:
        return self.name + SUFFIX

    def __str__(self) -> str:
        same = f"{self.name}:{self.unet:g}"
        return same if self.text == self.unet else f"{same}:{self.text:g}"


def from_tag(items: Sequence[str]) -> Wish:
    """A tag's parts: ``<erase:name>``, ``<erase:name:0.8>``, ``<erase:name:0.8:0>`` or with ``unet=`` and ``te=``.

    Raises:
        InvalidSettings: no name, or something that is no strength.
    """
    named = dict(item.split("=", 1) for item in items if "=" in item)
    plain = [item.strip() for item in items if "=" not in item]
    if not plain or not plain[0] or len(plain) > 3 or set(named) - {"unet", "te"}:
        raise InvalidSettings(f"<erase:{':'.join(items)}> cannot be read; write <erase:name:strength>.")
    unet = _number(named.get("unet", plain[1] if len(plain) > 1 else "1"), items)
    text = _number(named.get("te", plain[2] if len(plain) > 2 else str(unet)), items)
    return Wish(plain[0].removesuffix(SUFFIX), unet, text)


def from_prompt(prompt: str) -> list[Wish]:
    """All tags of a prompt; raises as ``from_tag``, also for what looks like a tag and is none."""
    found = TAG.findall(prompt)
    if len(found) != len(LIKE_TAG.findall(prompt)):
        raise InvalidSettings(
            "The prompt has an erase tag that cannot be read; write <erase:name:strength>, in lower case."
        )
    return [from_tag(one.split(":")) for one in found]


def from_batch(prompts: Sequence[str]) -> list[Wish]:
    """The tags of prompts that are painted together, at least one, with one model: all have the same.

    Raises:
        InvalidSettings: they differ, or as ``from_prompt``.
    """
    first, *others = map(from_prompt, prompts)
    if any(Counter(other) != Counter(first) for other in others):
        raise InvalidSettings(
            "The prompts of one batch ask for different erasures; write the same <erase:…> tags into each of them, or "
            "paint them with batch size 1."
        )
    return first


def refuse_tags(negative_prompts: Iterable[str]) -> None:
    """Raises:
    InvalidSettings: a tag stands where it does nothing.
    """
    if any(LIKE_TAG.search(prompt) for prompt in negative_prompts):
        raise InvalidSettings("An <erase:…> tag does nothing in the negative prompt; write it into the prompt.")


def is_on(values: Sequence[Any]) -> bool:
    """Whether the panel's values switch it on.

    Raises:
        InvalidSettings: the first one does not say so, as an API user may send.
    """
    if values and values[0] not in (True, False):
        raise InvalidSettings(
            "The panel's first value says whether it is on, true or false; names and strengths come after it."
        )
    return bool(values and values[0])


def is_plain(name: str) -> bool:
    """Whether a name can stand in a list of wishes and be read back."""
    return not set(name) & set(",=:")


def from_panel(values: Sequence[Any]) -> list[Wish]:
    """The panel's values: whether it is on, then name and strength for each slot. Missing ones count as empty.

    Raises:
        InvalidSettings: a value of the wrong kind or one too many, as an API user may send.
    """
    if not is_on(values):
        return []
    if any(value not in (None, "") for value in values[1 + 2 * SLOTS :]):
        raise InvalidSettings(
            f"The panel holds {SLOTS} erasures, and the request names more; write the others into the prompt as "
            "<erase:name:strength>."
        )
    wishes = []
    for place in range(SLOTS):
        pair = list(values[1 + 2 * place : 3 + 2 * place])
        if pair and pair[0] not in (None, "", NONE):
            if not isinstance(pair[0], str):
                raise InvalidSettings(f"The panel names {pair[0]!r}, which is not the name of an erasure.")
            if not is_plain(pair[0]):
                raise InvalidSettings(
                    f"The panel names {pair[0]!r}, which the infotext could not say; rename it in the Library without "
                    "comma, colon and '='."
                )
            strength = _number(pair[1] if len(pair) > 1 else 1.0, [pair[0]])
            wishes.append(Wish(pair[0].removesuffix(SUFFIX), strength, strength))
    return wishes


def from_text(text: str) -> list[Wish]:
    """Inverse of ``to_text``; raises as ``from_tag``."""
    return [from_tag(part.strip().split(":")) for part in text.split(",") if part.strip()]


def to_text(wishes: Iterable[Wish]) -> str:
    """For the infotext."""
    return ", ".join(str(wish) for wish in wishes)


def _number(value: Any, items: Sequence[str]) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InvalidSettings(f"{value!r} in <erase:{':'.join(items)}> is not a strength.") from error
