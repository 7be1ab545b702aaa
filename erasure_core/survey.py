"""What else a loaded model reads as a concept, and what it keeps apart from it: found in the model itself.

Three steps, from cheap to sure. The token embeddings nearest to the concept's give candidate words. The loaded model
then judges them: a word belongs to the concept where it steers noisy pictures the same way, measured by the guidance
directions g0(z, w) = eps0(z, w) - eps0(z, "") at states of neutral pictures, and steers them more towards the concept
than towards any kept prompt. Last, pictures decide on words that steer alike and are in doubt (``doubtful_words``).
Words that look near but steer elsewhere are its neighbours: they are worth keeping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .batches import Batches
from .concept import IN_PLACE, SMALL_WORDS, Concept, Frame, frame, is_name, said_word, without_concept
from .doubtful_words import EXPLAINING, NEARLY, PictureLooks
from .errors import Cancelled
from .everyday import PROMPTS, everyday_words
from .kinds import SCENES, THINGS, common_kinds, describes, is_other_colour, kinds, of_kind
from .model import PromptModel, encode_each, fitting
from .near_words import (
    MOST_ANCHORS,
    STOP_WORDS,
    bare,
    frames_in_kept,
    frames_of_things,
    frames_with_room,
    nearest_words,
    telling_words,
    with_everyday_keep,
    words_around,
)
from .progress import Progress, Report, Silent
from .sampling import at_most, seeded_noise
from .self_check import similarity

LOOKING = "looking for words"
AT_ONCE = 16
"""Most latents in one call; fewer where the memory does not suffice."""
LARGEST_SIDE = 32
"""Latent pixels along a side of the pictures on which words are judged: which way a word steers shows in small ones, at
a fraction of the cost."""
FAINT = 0.2
"""A word that steers pictures less than this share of what the concept's words do is not known to the model: what
direction it steers in is chance."""
KNOWN_BESIDE = 2
"""Where so many of the kept and everyday words make the concept itself faint, the model hardly knows it."""
TELLING = 0.8
"""A word that steers pictures at least this share of what the concept's words do surely means something of its own, and
takes out of the concept what is closer to it. Those that are less known have chance in common."""
SAME = 0.8
"""An everyday word that no user named, and that steers pictures this much alike, is no neighbour of the concept but
another word for it: who erases cottages means houses, where the model paints the same."""
GROUP = 0.2
"""Words that are so much more alike to each other than to the concept are another thing: of a coin all that is said of
books, in a model that knows no more than some things; of a car trucks and vans. Only where no prompt to keep names that
thing, and not of words that are said of things: a rare word for a colour is alike to another rare one first."""
KIN_WORDS = 12
"""Words used as the concept's are, that may take its place where nothing is named to keep."""
AGAIN, AGAIN_STATES = 12, 12
"""So many colours that may take a colour's place are judged again, on so many states: on few, how alike they are is
chance, and of many the one whose chance is best would be taken. (Measured in a third picture world, whose model paints
red as maroon: they are 0.40 alike on 4 states and 0.75 on 12; red in its place left maroon in 75 % of the pictures.)"""
LOOKED_AT = 24
"""Words in doubt, those that steer most alike, for which the model looks at pictures."""
RIVALS = 6
"""Of what is kept, the words that steer most like a word in doubt, which its pictures may show instead."""
EVERYDAY_EACH = 5
"""For a thing so many everyday words for each of these: colours are few, things are without number."""


@dataclass(frozen=True)
class Survey:
    """How far to look around.

    Args:
        candidates: nearest words of the vocabulary that are judged.
        states: noisy pictures on which they are judged, in each frame.
        frames: kept prompts in which they are judged too: the bare word of a colour paints anything.
        alike: least cosine of guidance directions for a word that belongs to the concept.
        margin: so much more like the concept than like any word that is kept must such a word be.
        around_kept: nearest words of each word of the user's prompts to keep, that are judged as well.
        group: so much more like each other than like the concept may the words that belong to it be.
        kin: other words used as the concept's are, as a colour say, that are judged as well.
        looks: words in doubt whose own pictures are looked at, those that explain the concept's best; with 0 directions
            alone decide.
        seed: of the pictures.
    """

    candidates: int = 40
    states: int = 4
    frames: int = 2
    alike: float = 0.55
    margin: float = 0.05
    around_kept: int = 2
    group: float = 2.0
    kin: int = 0
    looks: int = 8
    seed: int = 0


@dataclass(frozen=True)
class NearWord:
    """A word near the concept.

    Args:
        word: as it is typed.
        likeness: cosine of its guidance direction with the concept's.
        belongs: whether the model reads it as the concept.
        kept: whether a prompt to keep says it.
        near: the word of a prompt to keep that it was found near to, if any; itself, where it is a part of an erased
            phrase and is to stay.
        strength: how much it steers pictures, as a share of what the concept's words do.
        each: the cosine with each of the concept's words.
        aside: the greatest cosine with a word that was found to belong to it.
        steady: how alike it steers the pictures of two things that it is said of, where no prompt to keep tells.
    """

    word: str
    likeness: float
    belongs: bool
    kept: bool = False
    near: str = ""
    strength: float = 1.0
    each: tuple[float, ...] = ()
    aside: float = -1.0
    steady: float = 1.0

    @property
    def alike(self) -> float:
        """How alike it is to the concept under whichever name."""
        return max(self.likeness, self.aside)


@dataclass(frozen=True)
class Steering:
    """How W words steer pictures.

    Args:
        words: as they are typed.
        directions: their guidance directions, [W, N].
        each: cosine with each of the concept's own words, [W, C].
        strength: how much they steer, as a share of what the concept's words do, [W].
    """

    words: list[str]
    directions: Tensor
    each: Tensor
    strength: Tensor

    @classmethod
    def of(cls, words: list[str], directions: Tensor, own: Tensor) -> Steering:
        """Directions [W, N] of words, measured by those of the concept's own words [C, N]."""
        unit = own.norm(dim=1).mean().clamp_min(1e-12)
        return cls(words, directions, similarity(directions, own), directions.norm(dim=1) / unit)

    @property
    def likeness(self) -> Tensor:
        """Cosine with the likest of the concept's own words, [W]."""
        return self.each.amax(dim=1)

    def __len__(self) -> int:
        return len(self.words)

    def likest_of(self, others: Tensor) -> list[float]:
        """The greatest cosine with any of other directions [M, N], for each word."""
        if not len(others):
            return [-1.0] * len(self)
        found: list[float] = similarity(self.directions, others).amax(dim=1).tolist()
        return found

    def where(self, chosen: Tensor) -> Steering:
        """The words for which a mask [W] holds."""
        words = [word for word, is_chosen in zip(self.words, chosen.tolist(), strict=True) if is_chosen]
        return Steering(words, self.directions[chosen], self.each[chosen], self.strength[chosen])

    def joined(self, more: Steering) -> Steering:
        """These words and more of them."""
        pairs = zip(self._tensors(), more._tensors(), strict=True)
        return Steering(self.words + more.words, *(torch.cat(pair) for pair in pairs))

    def found(self) -> Iterator[NearWord]:
        """The words as finds, none of them yet said to belong or to be kept."""
        rows = zip(self.words, self.likeness.tolist(), self.strength.tolist(), self.each.tolist(), strict=True)
        return (NearWord(word, like, False, strength=much, each=tuple(each)) for word, like, much, each in rows)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.directions, self.each, self.strength


@torch.no_grad()
def survey(
    model: PromptModel,
    concept: Concept,
    settings: Survey,
    progress: Progress | None = None,
    everyday: bool = True,
    named: bool = True,
) -> list[NearWord]:
    """Judge the words around a concept, most alike first, and the words of the prompts to keep.

    A word belongs to the concept if it is alike enough, and more like the concept than like any word of a prompt to
    keep or, with ``everyday``, of everyday prompts, or any other that does not belong. Words that the model does not
    know are left out; of the prompts to keep they are told. ``named`` says that the user named those prompts; else,
    and of everyday prompts, words that steer the ``SAME`` way are judged as all others are. So are the parts of a name;
    those of other phrases never belong to it: who erases red balls means neither balls nor what is red.

    Raises:
        Cancelled: the user stopped.
    """
    progress = progress or Silent()
    user, anchors = (telling_words((*concept.keep, *more), concept) for more in ((), PROMPTS if everyday else ()))
    if not (anchors or settings.candidates):
        return []
    around = _surroundings(model, concept, settings, user, anchors)
    of_things = not named and _all_describe(concept)
    prompts = [*concept.words, *around.anchors, *around.candidates]
    frames = frames_of_things(settings.frames) if of_things else frames_in_kept(concept, settings.frames)
    frames = frames_with_room(model, frames, prompts)
    directions = _directions(model, prompts, frames, settings, progress)
    steady = dict(zip(prompts, _steadiness(directions, len(frames)), strict=True)) if of_things else {}
    counts = [len(concept.words), len(around.anchors), len(around.candidates)]
    own, others, candidates = torch.split(directions, counts)
    kept, judged = Steering.of(around.anchors, others, own), Steering.of(around.candidates, candidates, own)
    _tell_if_unknown(concept, kept, progress)
    kept, judged = _sorted_anew(kept, judged, {*(around.user if named else ()), *around.fixed_parts})
    known = kept.where(kept.strength >= FAINT)
    eligible = torch.tensor([not is_other_colour(word, concept.words) for word in judged.words], dtype=torch.bool)
    belongs = belonging(judged, known, settings) & eligible
    # A ruby explains as much of a red ball's pictures as red does, which stays.
    if settings.looks and not around.fixed_parts:
        doubtful = eligible & ~belongs & (judged.likeness >= settings.alike)
        belongs |= _after_looks(model, concept, judged, known, doubtful, frames, settings, progress)
    found = (replace(one, steady=steady.get(one.word, 1.0)) for one in _labelled(around, kept, judged, belongs))
    return sorted(found, key=lambda one: -one.likeness)


@dataclass(frozen=True)
class _Surroundings:
    """The words of a survey.

    Args:
        user: telling words of the prompts to keep.
        anchors: these, those of everyday prompts, and the parts of erased phrases: what a candidate may mean instead.
        parts: telling words inside of erased phrases, each with its phrase.
        candidates: words that may belong to the concept.
        near: those of them that were found near to a word of the prompts to keep, each with that word.
        offered: those of them that are only used as the concept's words are, and may take their place.
    """

    user: list[str]
    anchors: list[str]
    parts: dict[str, str]
    candidates: list[str]
    near: dict[str, str]
    offered: set[str]

    @property
    def fixed_parts(self) -> set[str]:
        """The parts of phrases that are no names: they stay."""
        return {part for part, phrase in self.parts.items() if not is_name(phrase)}


def _surroundings(
    model: PromptModel, concept: Concept, settings: Survey, user: list[str], anchors: list[str]
) -> _Surroundings:
    """What is judged beside some ``anchors``: words near the concept, and near the ``user``'s words to keep."""
    parts = _parts(concept)
    anchors = [*anchors, *(part for part in parts if part not in anchors)]
    near = words_around(model, user, settings.around_kept)
    close = [word for words in concept.each for word in nearest_words(model, words, settings.candidates)]
    kin = fitting(model, [word for words in concept.each for word in familiar_words(words, settings.kin)])
    candidates = [word for word in dict.fromkeys([*close, *kin, *near]) if word not in anchors]
    return _Surroundings(user, anchors, parts, candidates, near, {*kin} - {*close, *near, *anchors})


def _tell_if_unknown(concept: Concept, kept: Steering, progress: Progress) -> None:
    """A note where the words that are kept make the concept itself faint."""
    if int((kept.strength * FAINT > 1).sum()) >= KNOWN_BESIDE:
        why = "other words steer its pictures far more; is it spelled right?"
        progress.update(Report(LOOKING, 1, 1, note=f"This model hardly knows {concept.name!r}: {why}"))


def _sorted_anew(kept: Steering, judged: Steering, fixed: set[str]) -> tuple[Steering, Steering]:
    """What is kept and what is judged: of the first, words that are not ``fixed`` and steer the ``SAME`` way are judged
    too, and of the second those that the model does not know are left out."""
    loose = torch.tensor([word not in fixed for word in kept.words], dtype=torch.bool)
    same = loose & (kept.likeness >= SAME) & (kept.strength >= FAINT)
    judged = judged.joined(kept.where(same))
    return kept.where(~same), judged.where(judged.strength >= FAINT)


def _labelled(around: _Surroundings, kept: Steering, judged: Steering, belongs: Tensor) -> list[NearWord]:
    """The finds: what is kept of the user's and of erased phrases, and what was judged, of which ``belongs`` [W] is the
    concept."""
    inside = judged.directions[belongs]
    found = [
        replace(one, kept=one.word in around.user, near=one.word if one.word in around.fixed_parts else "", aside=aside)
        for one, aside in zip(kept.found(), kept.likest_of(inside), strict=True)
        if one.word in around.user or one.word in around.parts
    ]
    for one, in_it, aside in zip(judged.found(), belongs.tolist(), judged.likest_of(inside), strict=True):
        if in_it and one.word in around.offered:
            continue  # nobody was near it: too alike to take the concept's place, and no other word for it
        found.append(replace(one, belongs=in_it, near=around.near.get(one.word, ""), aside=aside))
    return found


def belonging(judged: Steering, kept: Steering, settings: Survey) -> Tensor:
    """Which of W judged words belong to the concept, [W]: none that is closer to a telling one that surely does not."""
    like, telling = judged.likeness, judged.strength >= TELLING
    belongs = like >= settings.alike
    if not len(judged):
        return belongs
    elsewhere = torch.full_like(like, -1.0)
    if len(kept):
        elsewhere = similarity(judged.directions, kept.directions).amax(dim=1)
    each = similarity(judged.directions, judged.directions).fill_diagonal_(-1.0)
    peers = each.masked_fill(like[None] > like[:, None] + settings.margin, -1.0).amax(dim=1)
    grouped = peers > like + settings.group
    belongs = belongs & (like >= elsewhere + settings.margin) & ~grouped
    # What is in doubt takes nothing with it: one word that missed the margin by a hair took all its synonyms out.
    surely_out = (like < settings.alike) | (elsewhere > like + settings.margin) | grouped
    closer = each.masked_fill(~(surely_out & telling)[None], -1.0).amax(dim=1)
    return belongs & (like >= closer)


def _after_looks(
    model: PromptModel,
    concept: Concept,
    judged: Steering,
    kept: Steering,
    doubtful: Tensor,
    frames: Sequence[Frame],
    settings: Survey,
    progress: Progress,
) -> Tensor:
    """Which of W judged words belong after all, [W], as pictures tell: of those that are ``doubtful`` the likest. What
    steers clearly more like a word that is kept has to show the concept more than that word."""
    belongs = torch.zeros_like(doubtful)
    likest = [concept.words[own] for own in judged.each.argmax(dim=1).tolist()]
    asked = [place for place in judged.likeness.argsort(descending=True).tolist() if doubtful[place]][:LOOKED_AT]
    shape = at_most(model.latent_shape, LARGEST_SIDE)
    for words in concept.each:
        of_these = [place for place in asked if likest[place] in words]
        if not of_these:
            continue
        looker = PictureLooks(model, words, frames, shape, AT_ONCE, settings.seed, progress)
        shares = dict(zip(of_these, looker.explained([judged.words[place] for place in of_these]), strict=True))
        likely = sorted((place for place in of_these if shares[place] >= EXPLAINING), key=lambda place: -shares[place])
        for place in likely[: settings.looks]:
            found = similarity(judged.directions[place][None], kept.directions)[0].topk(min(RIVALS, len(kept)))
            is_near = bool((found.values[:1] > judged.likeness[place] + settings.margin).any())
            rivals = [kept.words[rival] for rival in found.indices.tolist()]
            belongs[place] = looker.sees(judged.words[place], rivals) >= (0.0 if is_near else NEARLY)
    return belongs


def familiar_words(words: Sequence[str], most: int) -> list[str]:
    """What may take the place of a concept's words where nobody named anything: up to ``most`` words used as they are,
    as colours, or for a thing the everyday ones; none where ``most`` is 0."""
    if of_its_kind := of_kind(words, most):
        return of_its_kind
    wanted, own = common_kinds(words), tuple(words)
    everyday = [word for word in everyday_words() if wanted & set(kinds(word)) and said_word(word, own) is None]
    return everyday[: EVERYDAY_EACH * most]


def everyday_survey(
    model: PromptModel, concept: Concept, settings: Survey, progress: Progress
) -> tuple[Concept, list[NearWord]]:
    """``survey`` for a user who named nothing to keep: the concept with everyday prompts to keep, and what was found.

    Prompts that say what the model reads as the concept are not kept, and what is near to everyday words is not looked
    at: nobody asked to keep either.
    """
    concept = with_everyday_keep(model, concept)
    group = settings.group if _all_describe(concept) else GROUP
    look = replace(settings, around_kept=0, group=group, kin=KIN_WORDS)
    found = survey(model, concept, look, progress, named=False)
    if _all_describe(concept):
        found = _judged_again(model, concept, found, look, progress)
    return without_alike(concept, found, settings.alike)


def _judged_again(
    model: PromptModel, concept: Concept, found: Sequence[NearWord], settings: Survey, progress: Progress
) -> list[NearWord]:
    """The finds, those that may best take the concept's place judged on more states: for all, it would take as many
    times longer."""
    wanted = frozenset[str]().union(*map(common_kinds, concept.each))
    offered = [one for one in found if not one.belongs and wanted & {*kinds(one.word)}]
    offered.sort(key=lambda one: -one.likeness * min(one.strength, 1.0))
    words = [one.word for one in offered[:AGAIN]]
    if not words:
        return list(found)
    prompts = [*concept.words, *words]
    frames = frames_with_room(model, frames_of_things(settings.frames), prompts)
    directions = _directions(model, prompts, frames, replace(settings, states=AGAIN_STATES), progress)
    own, others = torch.split(directions, [len(concept.words), len(words)])
    again = {one.word: one for one in Steering.of(words, others, own).found()}
    return [
        replace(one, likeness=again[one.word].likeness, each=again[one.word].each) if one.word in again else one
        for one in found
    ]


def without_alike(concept: Concept, found: Sequence[NearWord], alike: float) -> tuple[Concept, list[NearWord]]:
    """A concept without those prompts to keep that say a word that is at least so ``alike`` or belongs to it, and the
    finds without those of the first kind: for prompts that no user asked to keep."""
    alike_words = {one.word for one in found if one.kept and one.likeness >= alike}
    gone = alike_words | {one.word for one in found if one.belongs}
    keep = tuple(prompt for prompt in concept.keep if not gone & set(map(bare, prompt.split())))
    return replace(concept, keep=keep), [one for one in found if one.word not in alike_words]


def likest_kept(model: PromptModel, concept: Concept, seed: int, progress: Progress | None = None) -> list[NearWord]:
    """The words of the prompts to keep, judged as ``survey`` does, but nothing else is looked at.

    Raises:
        Cancelled: the user stopped.
    """
    return survey(model, concept, Survey(candidates=0, around_kept=0, seed=seed), progress, everyday=False)


def _parts(concept: Concept) -> dict[str, str]:
    """The telling words inside of phrases, each with its phrase, where a concept is said by phrases alone; at most
    ``MOST_ANCHORS``. Beside a word that is erased, a phrase may hold other words for the same."""
    phrases = [phrase for words in concept.each if all(" " in word for word in words) for phrase in words]
    parts = {bare(part): phrase for phrase in phrases for part in phrase.split()}
    said = {part: of for part, of in parts.items() if part.isalpha() and part not in STOP_WORDS | SMALL_WORDS}
    return dict(list(said.items())[:MOST_ANCHORS])


def kept_parts(concept: Concept) -> list[str]:
    """Prompts that say a part of an erased phrase of something else: who erases orange cups keeps orange houses and red
    cups. Parts of names are not kept."""
    said: list[str] = []
    for part, phrase in _parts(concept).items():
        if is_name(phrase):
            continue
        if describes([part]):
            said += [f"a {part} {thing.split()[-1]}" for thing in THINGS]
        else:
            said += [frame(scene, IN_PLACE).say(part) for scene in SCENES]
    return list(without_concept(said, concept))


def _all_describe(concept: Concept) -> bool:
    """Whether all that is erased is said of things, as colours are."""
    return all(map(describes, concept.each))


def _directions(
    model: PromptModel, words: Sequence[str], frames: Sequence[Frame], settings: Survey, progress: Progress
) -> Tensor:
    """Guidance directions [P, frames * states * C * H * W] of words in frames, at states of neutral pictures."""
    z, t = _neutral_states(model, settings)
    z, t = z.repeat(len(frames), 1, 1, 1), t.repeat(len(frames))
    batches = Batches(AT_ONCE)

    def predicted(word: str) -> Tensor:
        prompts = [room.say(word) for room in frames for _ in range(settings.states)]
        predicted = batches.predict(model, z, t, encode_each(model, prompts), progress)
        return model.schedule.noise_of(z, t, predicted).flatten().cpu()

    without, rows = predicted(""), []
    for i, word in enumerate(words):
        if progress.cancelled():
            raise Cancelled("Stopped while looking for words near the concept.")
        progress.update(Report(LOOKING, i, len(words)))
        rows.append(predicted(word) - without)
    return torch.stack(rows)


def _steadiness(directions: Tensor, frames: int) -> list[float]:
    """How alike each of P words steers the pictures of the first and the last of some things, at the same states; the
    first frame says it alone."""
    inside = directions.reshape(len(directions), frames, -1)[:, 1:]
    if inside.shape[1] < 2:
        return [1.0] * len(directions)
    alike: list[float] = F.cosine_similarity(inside[:, 0], inside[:, -1]).tolist()
    return alike


def _neutral_states(model: PromptModel, settings: Survey) -> tuple[Tensor, Tensor]:
    """States on the way to pictures without a prompt, each from its own point of the noisier half of the way."""
    count = settings.states
    shape = at_most(model.latent_shape, LARGEST_SIDE)
    z = seeded_noise(shape, range(settings.seed, settings.seed + count)).to(model.device)
    timesteps = model.schedule.timesteps(12)
    states, times = [], []
    for i, now in enumerate(timesteps[:8]):
        t = torch.full((count,), now, device=model.device)
        if i >= 1:
            states.append(z)
            times.append(t)
        predicted = model.predict(z, t, encode_each(model, [""] * count))
        z = model.schedule.step(z, t, torch.full_like(t, timesteps[i + 1]), predicted)
    rows = [row % len(states) for row in range(count)]
    return torch.stack([states[s][row] for row, s in enumerate(rows)]), torch.stack(
        [times[s][row] for row, s in enumerate(rows)]
    )


def expanded(concept: Concept, found: Sequence[NearWord], most: int) -> Concept:
    """A concept with the words that the model reads as it, at most ``most`` of them, but none that a prompt to keep or
    an alternative says."""
    chosen = [one for one in found if one.belongs and not concept.spares(one.word)][: most * len(concept.each)]
    return concept.grown([(one.word, concept.words[_likest(one)]) for one in chosen])


def _likest(one: NearWord) -> int:
    """The place of the concept's word that a find is likest to."""
    return one.each.index(max(one.each)) if one.each else 0
