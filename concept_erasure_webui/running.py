"""What is known of one generation, and which one runs now: extensions start further ones inside of it (ADetailer paints
faces anew), with our script or without, and those are held to what it asked for."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from modules import shared

from erasure_core.hosts.webui_slots import Applied

from .wishes import Wish

STATE = "_concept_erasure"


@dataclass
class State:
    """What is known of one generation, kept on the host's processing object.

    Args:
        panel: wishes of the panel and the XYZ plot.
        tags: wishes of the present batch's prompt.
        outer: wishes of the generation that this one is part of; ``None`` if it is none's.
        batch: number of the present batch, the first is 0.
        refusal: why no picture may come out, or an empty text.
        bound: what must be on the model.
        bound_to: the model and checkpoint that ``bound`` was matched to.
        encoded: what the Forge family's host encodes the first pass's prompts with (``False``) and the hires pass's
            (``True``): erasures of text encoders, and the mark of the model that they were on.
        owner: the host's processing object.
    """

    panel: list[Wish] = field(default_factory=list)
    tags: list[Wish] = field(default_factory=list)
    outer: list[Wish] | None = None
    batch: int = 0
    refusal: str = ""
    bound: list[Applied] | None = None
    bound_to: tuple[int, str] = (0, "")
    encoded: dict[bool, tuple[str, object]] = field(default_factory=dict)
    owner: weakref.ref[Any] | None = None

    def asked(self) -> list[Wish]:
        """All wishes. Of an erasure that it names itself, this generation's own strength counts."""
        return [*self.panel, *self.tags, *self._inherited()]

    def beside_tags(self) -> list[Wish]:
        """The wishes that the prompt does not say."""
        return [*self.panel, *self._inherited()]

    def _inherited(self) -> list[Wish]:
        named = {wish.name for wish in (*self.panel, *self.tags)}
        return [wish for wish in self.outer or () if wish.name not in named]


class Running:
    """The generation that somebody started last, and the host's task that it belongs to.

    A task is what one user or API client asked for; the host runs one at a time. A generation that failed never comes
    to its end, so that a new task forgets it.
    """

    def __init__(self) -> None:
        self._state: State | None = None
        self._task: Any = None
        self._is_over = True

    def enter(self, state: State) -> None:
        """A generation begins: alone, or as a part of the one that runs."""
        if self._state is not None and not self._is_over and self._task == _task():
            state.outer = self._state.asked()
        else:
            self._state, self._task, self._is_over = state, _task(), False

    def leave(self, state: State | None) -> None:
        """A generation has ended."""
        self._is_over |= state is self._state

    def forget(self) -> None:
        """What comes next is part of nothing, whether the one before has come to its end or not."""
        self._state, self._is_over = None, True

    def inner(self) -> State:
        """Of a generation that nobody told us of. It is also part of one that has ended in the same task: other
        extensions' last hooks come after ours."""
        if self._state is None or self._task != _task():
            return State()
        return State(outer=self._state.asked(), refusal=self._state.refusal)


RUNNING = Running()


def _task() -> Any:
    """What tells the host's tasks apart; ``None`` between them."""
    return None if shared.state.job == "" else getattr(shared.state, "time_start", None)


def state_of(p: Any) -> State:
    """What is known of this generation. Extensions start others with copies of one's object, which are parts of it."""
    found = p.__dict__.get(STATE)
    if not isinstance(found, State) or found.owner is None or found.owner() is not p:
        found = keep(p, RUNNING.inner())
    return found


def keep(p: Any, state: State) -> State:
    """Make this what is known of a generation."""
    state.owner = weakref.ref(p)
    p.__dict__[STATE] = state
    return state
