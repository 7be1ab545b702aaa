"""The loop: erase, search for what leaks, add it to the targets, go on from the change that there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import guard
from ..concept import ARTICLES, MAX_LENGTH, Concept, without_contradictions
from ..concept_pictures import ConceptPictures
from ..effort import Effort
from ..erasing import erase
from ..erasure_file import Erasure
from ..errors import Cancelled
from ..history import History
from ..manifest import Manifest
from ..methods import RECOMMENDED, SolverSettings, find_method
from ..model import PromptModel
from ..progress import Progress, Silent
from ..trainer import SAVE_EVERY
from .exploration import Exploration
from .explore import ExploreSettings, explore

MOST_ADDED = 12
"""Words that one round adds."""
TellRound = Callable[[int, Exploration], None]
Finished = Callable[[Erasure], None]


@dataclass(frozen=True)
class Round:
    """What one round did: how many prompts that can be typed leaked before it, of how many, and which words it added;
    none where only words leaked that were erased already, and a training went on with these."""

    leaking: int
    tried: int
    added: tuple[str, ...]


def widened(concept: Concept, found: Sequence[tuple[str, str]]) -> Concept:
    """The concept ``grown`` by what was found, but for words that are to be kept, cannot be used, or would say together
    with the others what the guard refuses to search for."""
    own = {word.casefold() for word in concept.words} | ARTICLES
    wider = concept
    for word, of in found:
        is_usable = word.casefold() not in own and len(word) <= MAX_LENGTH and word.isprintable()
        if is_usable and not concept.spares(word) and guard.allows(wider, word):
            wider = wider.grown([(word, of)])
    return wider


def harden(
    model: PromptModel,
    concept: Concept,
    rounds: int,
    method: str = RECOMMENDED,
    settings: SolverSettings | None = None,
    search: ExploreSettings | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    save_every: float = SAVE_EVERY,
    pictures: ConceptPictures | None = None,
    notify: TellRound = lambda number, exploration: None,
    finished: Finished = lambda erasure: None,
    start: Erasure | None = None,
    effort: Effort | None = None,
) -> tuple[Erasure, History, tuple[Round, ...]]:
    """Erase, then up to ``rounds`` times search and erase what still reaches the concept.

    Args:
        model: the loaded model; never changed.
        concept: what to erase.
        rounds: most rounds after the first erasing. The loop stops when a search finds no prompt that leaks and that
            can be typed. Where only words leak that are erased already, a training goes on with these; a closed form
            would solve the same again, so it stops.
        method, settings, checkpoint, save_every, pictures: as of ``erase``. The checkpoint is of the first erasing; the
            rounds behind it are short and start again from it.
        search: how to search in each round.
        progress: reports and cancellation.
        notify: told each round's number, from 1, and what it found.
        finished: given the erasure after the first erasing and after each round, which the user may want to keep where
            what comes behind it is stopped.
        start: what an earlier call has ``finished``; its rounds count, and the loop goes on behind them.
        effort: of the first training and of each round's, as of ``erase``.

    Returns:
        The erasure, whose manifest records the rounds under ``settings["harden"]``; the first training's history; and
        the rounds.

    Raises:
        ErasureError: as ``erase`` and ``explore``.
        Cancelled: the user stopped, also in the middle of a search: half a search is no round.
    """
    if rounds:
        guard.check(concept)  # erasing is never refused, searching may be
    concept = without_contradictions(concept)
    search, progress = search or ExploreSettings(), progress or Silent()
    settings, effort = settings or find_method(method).settings(), effort or Effort()
    if start is None:
        first = (method, settings, progress, checkpoint, save_every, pictures)
        erasure, history = erase(model, concept, *first, effort=effort)
        finished(erasure)
    else:
        erasure, history = start, History()
    done = list(rounds_of(erasure.manifest.settings))
    concept = concept.grown([(word, _named_in(erasure.manifest, word)) for one in done for word in one.added])
    for number in range(len(done) + 1, rounds + 1):
        if done and not _goes_on(done[-1], method):
            break
        how = replace(search, seed=search.seed + number, pictures=False)
        found = explore(model, concept, [(erasure.deltas, 1.0)], how, progress)
        notify(number, found)
        if found.stopped:
            raise Cancelled(f"Stopped while searching in round {number}.")
        wider = widened(concept, found.as_names(found.leaking_words(MOST_ADDED)))
        added = wider.words[len(concept.words) :]
        done.append(Round(sum(p.leaks for p in found.typed), len(found.typed), added))
        if not _goes_on(done[-1], method):
            break
        concept = wider
        following = (method, _next(effort.settings(settings), number), progress)
        erasure, _ = erase(model, concept, *following, pictures=pictures, start=erasure.deltas, effort=effort.rest)
        finished(_recorded(erasure, done))
    return _recorded(erasure, done), history, tuple(done)


def _named_in(manifest: Manifest, word: str) -> str:
    """The word of which an added one is another name, as the file of the rounds before tells: the first beside it."""
    return next((group for group in manifest.concept.each if word in group), manifest.words)[0]


def _goes_on(last: Round, method: str) -> bool:
    """Whether anything leaked that erasing again could reach: a closed form would solve the same words the same."""
    return bool(last.leaking) and (bool(last.added) or find_method(method).solve is None)


def rounds_of(settings: Mapping[str, Any]) -> tuple[Round, ...]:
    """The rounds that a manifest's settings record; none where there were none, or where a stranger wrote other things
    there."""
    try:
        rounds = tuple(Round(one["leaking"], one["tried"], tuple(one["added"])) for one in settings.get("harden", ()))
    except (TypeError, KeyError):
        return ()
    plain = all(isinstance(one.leaking, int) and all(isinstance(word, str) for word in one.added) for one in rounds)
    return rounds if plain else ()


def _recorded(erasure: Erasure, done: Sequence[Round]) -> Erasure:
    """The erasure with its rounds in the manifest."""
    if not done:
        return erasure
    settings = {**erasure.manifest.settings, "harden": [asdict(one) for one in done]}
    return replace(erasure, manifest=replace(erasure.manifest, settings=settings))


def _next(settings: SolverSettings, number: int) -> Any:
    """The settings of a later round: another seed, and a third of the steps where there are steps."""
    changed: dict[str, Any] = {"seed": settings.seed + number}
    if hasattr(settings, "steps"):
        changed["steps"] = max(1, settings.steps // 3)
    return replace(settings, **changed)
