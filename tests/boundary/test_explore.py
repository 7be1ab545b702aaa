"""Exploration on pico models: every search, every family, budgets, cancelling, and that nothing is changed."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_up import CONCEPT, QUICK, TRIES, made_up

from erasure_core import Concept, DeltaSet, Report, Silent
from erasure_core.boundary import Candidate, Exploration, ExploreSettings, aim, evidence, explore, field, looks, subject
from erasure_core.boundary.aim import Aim, take_aim
from erasure_core.boundary.exploration import ordered
from erasure_core.boundary.field import Field
from erasure_core.boundary.map_page import map_page
from erasure_core.boundary.scores import Score, Scorer
from erasure_core.boundary.searches import LADDER, LEVELS
from erasure_core.boundary.searches.lexical import misspelled
from erasure_core.boundary.searches.prefix import onto_simplex
from erasure_core.boundary.subject import Budget, Subject
from erasure_core.concept import TEMPLATES, worded
from erasure_core.errors import Cancelled, InvalidConcept, InvalidFile, InvalidSettings, ModelError, PromptTooLong
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.near_words import nearest_words


def _hash(model: DiffusersModel) -> str:
    digest = hashlib.sha256()
    for part in (model.unet, *model.text_encoders):
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_every_search_finds_something(explored: Exploration) -> None:
    assert explored.levels == LEVELS
    origins = {point.origin for point in explored.points}
    expected = {"yours", "named", "misspelling", "closed form", "vocabulary", "self-check", "genetic", "prefix"}
    assert expected | {"inversion"} <= origins
    assert len({point.text.casefold() for point in explored.points}) == len(explored.points)
    assert all(0 <= point.leak <= 1 and -1 <= point.similarity <= 1 for point in explored.points)


def test_finds_without_being_given_words(explored: Exploration) -> None:
    """Words of the vocabulary come as words of their own, and the concept's own are not among them."""
    words = {point.word for point in explored.points if point.origin == "vocabulary"}
    assert {"orb", "box", "dog"} <= words and not words & set(CONCEPT.words)


def test_what_no_text_reaches_cannot_be_erased_in_another_round(explored: Exploration) -> None:
    typed = {point.origin: bool(point.word) for point in explored.points}
    assert not any(point.hidden for point in explored.points if not point.word)
    assert not typed["inversion"] and not typed["closed form"] and typed["vocabulary"] and typed["prefix"]


def test_a_long_preparation_takes_nothing_from_the_search(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow machine it takes longer than the budget: then only the concept's own words would be tried. Nor is it
    told as a part of the search, out of which a host would reckon hours that are left."""
    clock = SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr(subject, "time", SimpleNamespace(monotonic=lambda: clock.now))
    told: list[Report] = []
    monkeypatch.setattr(Silent, "update", lambda self, report: told.append(report))
    encode = pico.encode

    def slowly(prompts: Any) -> Any:
        clock.now += 3
        return encode(prompts)

    monkeypatch.setattr(pico, "encode", slowly)

    def slow(*given: Any) -> Scorer:
        clock.now += 1000
        return Scorer(*given)

    monkeypatch.setattr(sys.modules["erasure_core.boundary.explore"], "Scorer", slow)
    found = explore(pico, CONCEPT, settings=ExploreSettings(60.0, 2500, levels="lexical+vocabulary", states=2, look=0))
    assert found.levels == ("lexical", "vocabulary") and "vocabulary" in {point.origin for point in found.points}
    assert (told[0].stage, told[0].step) == ("preparing", 0)


def test_looks_at_the_worst(explored: Exploration) -> None:
    seen = [point for point in explored.points if point.evidence is not None]
    assert len(seen) == explored.looked == QUICK["look"]
    assert all(point.thumbnail.startswith("data:image/png;base64,") for point in seen)
    assert all(point.evidence > 0 for point in seen if point.leaks)  # type: ignore[operator]


def test_the_model_is_as_before(pico: DiffusersModel, change: DeltaSet) -> None:
    before, norm = _hash(pico), sum(change[name].norm() for name in change)
    explore(pico, CONCEPT, [(change, 0.5)], ExploreSettings(**{**QUICK, "calls": 2000}))
    assert _hash(pico) == before and sum(change[name].norm() for name in change) == norm
    assert not any(layer._forward_hooks for layer in pico.layers().values())


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families_and_the_untouched_model(pico_models: dict[str, DiffusersModel], family: str) -> None:
    found = explore(pico_models[family], CONCEPT, (), ExploreSettings(**QUICK))
    assert not found.erased and {"prefix", "inversion", "genetic"} <= {point.origin for point in found.points}


def test_same_seed_same_result(pico: DiffusersModel, change: DeltaSet, explored: Exploration) -> None:
    again = explore(pico, CONCEPT, [(change, 1.0)], ExploreSettings(**QUICK, pictures=True), tries=TRIES)
    assert again.points == explored.points and again.threshold == explored.threshold


class StopAfter:
    """A user who stops when a stage is reached."""

    def __init__(self, stage: str) -> None:
        self.stage, self.reached = stage, False

    def update(self, report: Report) -> None:
        self.reached = self.reached or report.stage == self.stage

    def cancelled(self) -> bool:
        return self.reached


def test_a_stopped_search_returns_what_it_has(pico: DiffusersModel) -> None:
    found = explore(pico, CONCEPT, (), ExploreSettings(**QUICK), StopAfter("self-check"))
    assert found.stopped and found.points and "genetic" not in {point.origin for point in found.points}
    with pytest.raises(Cancelled):
        explore(pico, CONCEPT, (), ExploreSettings(**QUICK), StopAfter("preparing"))


def test_every_search_works_in_a_short_context(pico: DiffusersModel) -> None:
    tokenizer = copy(pico.tokenizers[0])
    tokenizer.model_max_length = 16
    short = DiffusersModel(pico.unet, pico.text_encoders, [tokenizer], pico.schedule)
    found = explore(short, CONCEPT, (), ExploreSettings(**QUICK))
    assert found.levels == LEVELS and {"self-check", "genetic"} <= {point.origin for point in found.points}


def test_a_search_that_does_not_fit_is_left_out(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def failing(error: Exception) -> tuple[Any, ...]:
        def search(field: Field) -> Iterator[list[Candidate]]:
            yield [Candidate("a red orb", "closed form")]
            raise error

        return tuple(replace(level, search=search) if level.name == "closed-form" else level for level in LADDER)

    settings = ExploreSettings(**{**QUICK, "levels": "lexical+closed-form+vocabulary", "look": 0})
    watching = SimpleNamespace(update=lambda report: told.append(report.stage), cancelled=lambda: False)
    module = sys.modules["erasure_core.boundary.explore"]  # the package has the function under that name
    monkeypatch.setattr(module, "LADDER", failing(PromptTooLong("A prompt has 23 tokens.")))
    found = explore(pico, CONCEPT, (), settings, watching)
    assert found.levels == ("lexical", "vocabulary") and "a red orb" in {point.text for point in found.points}
    assert "closed-form left out: A prompt has 23 tokens." in told
    monkeypatch.setattr(module, "LADDER", failing(KeyError("a mistake of ours")))
    with pytest.raises(KeyError):
        explore(pico, CONCEPT, (), settings)


def test_the_nearest_words_come_before_the_scan(pico: DiffusersModel) -> None:
    """The scan may have no time; these cost no reading of the vocabulary."""
    found = explore(pico, CONCEPT, (), ExploreSettings(**{**QUICK, "levels": "lexical", "look": 0}))
    near = {point.word for point in found.points if point.origin == "vocabulary"}
    assert 0 < len(near) <= 32 and near <= set(nearest_words(pico, CONCEPT.words, 32)) and found.coverage() == ""


def test_how_much_of_the_vocabulary_was_read_is_told(explored: Exploration, pico: DiffusersModel) -> None:
    size = explored.words_known
    assert explored.words_read == size > 100 and f"read {size:,} of {size:,} words" in explored.coverage()
    assert explored.coverage() in map_page(explored)


def test_embeddings_are_no_prompts(explored: Exploration) -> None:
    """A closed form's state nearly always leaks; who reads "1 of 50 prompts" would look for a word."""
    prompt, state = (
        replace(explored.points[0], word="orb", origin="vocabulary", leaks=False),
        replace(explored.points[0], word="", leaks=True),
    )
    found = replace(explored, points=(state, prompt), looked=1, unsettled=0, dismissed=0)
    assert found.summary() == (
        "0 of 1 prompts still reach “ball” in the erased model. 1 of 1 embeddings that no text gives reach it too."
    )
    assert found.typed == (prompt,)
    nothing = replace(found, points=(prompt,)).summary()
    assert nothing == "0 of 1 prompts still reach “ball” in the erased model."
    named = replace(prompt, word="ball", origin="named", residual=0.5)
    told = replace(found, points=(named, prompt)).summary()
    assert told == "0 of 2 prompts still reach “ball” in the erased model: 0 of 1 that name it, 0 of 1 others."


def test_words_that_still_steer_as_before_are_no_all_clear(explored: Exploration) -> None:
    """An erasure that put a synonym in the place: every prompt is nearest to that, and still paints the concept."""
    named = [replace(explored.points[0], origin="named", leaks=False, residual=r) for r in (0.94, 0.9, 0.2)]
    found = replace(explored, points=tuple(named))
    assert found.unchanged == 0.9 and "still steer pictures 90% as strongly" in found.summary()
    assert not replace(found, erased=False).unchanged, "the untouched model is to"
    assert not replace(found, points=(named[2], named[2], named[0])).unchanged, "most of them do not"
    assert not replace(found, points=(replace(named[0], leaks=True),)).unchanged, "that is told as a leak"


def hardly_changed(self: Scorer, candidates: Sequence[Candidate], erased: bool = True) -> list[Score]:
    """Scores by which the concept's own words still steer, though their direction is nearer to something else."""
    return [Score(-1.0, 0.0, 0.9 if one.origin == "named" and not one.against else 0.0) for one in candidates]


def test_of_the_templates_of_a_word_that_is_hardly_changed_one_is_looked_at(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It speaks for the others, or a concept of many words would use up all looks."""

    def seen(found: Exploration) -> dict[str, list[bool]]:
        bare = {worded(template, word) for word in CONCEPT.words for template in TEMPLATES}
        named = [point for point in found.points if point.text in bare]
        looked = {point.word: point.evidence is not None for point in named if point.evidence is not None}
        return {word: [p.leaks for p in named if p.word == word] for word in looked}

    monkeypatch.setattr(Scorer, "__call__", hardly_changed)
    settings = ExploreSettings(**QUICK | {"look": 2, "levels": "lexical"})
    for evidence_of, leaks in ((1.0, True), (-1.0, False)):
        monkeypatch.setattr(evidence.Evidence, "_one", lambda self, latent, value=evidence_of: value)
        found = explore(pico, CONCEPT, (), settings)
        looked = [p for p in found.points if p.evidence is not None and p.origin == "named"]
        assert sorted(point.word for point in looked) == sorted(CONCEPT.words), "one of each"
        assert found.unsettled == 0
        assert all(value is leaks for of in seen(found).values() for value in of)
    none = explore(pico, CONCEPT, (), replace(settings, look=0))
    assert none.unsettled > len(CONCEPT.words) and not none.leaking


@pytest.mark.parametrize(("shown", "look"), [(1.0, 12), (-1.0, 12), (1.0, 0)])
def test_words_that_steer_as_before_are_looked_at_whatever_is_nearer(
    pico: DiffusersModel, change: DeltaSet, monkeypatch: pytest.MonkeyPatch, shown: float, look: int
) -> None:
    """Where "indigo" takes the place of "blue", that is nearest to "denim", and its pictures are blue."""

    def steering(self: Scorer, candidates: Sequence[Candidate], erased: bool = True) -> list[Score]:
        left = {"bball": 0.7} | dict.fromkeys(CONCEPT.words, 0.0)
        return [Score(-1.0, 0.0, left.get(one.word, 0.6)) for one in candidates]

    monkeypatch.setattr(Scorer, "__call__", steering)
    monkeypatch.setattr(Scorer, "kept", lambda self, candidates: [one.word == "bball" for one in candidates])
    monkeypatch.setattr(evidence.Evidence, "_one", lambda self, latent: shown)
    settings = ExploreSettings(**QUICK | {"look": look, "levels": "lexical"})
    found = explore(pico, CONCEPT, [(change, 1.0)], settings)
    assert [point.word for point in found.leaking] == (["bball"] if shown > 0 and look else [])
    assert not (found.unsettled or found.dismissed)
    untouched = explore(pico, CONCEPT, (), settings)
    assert not untouched.leaking, "there everything steers as before"


def test_only_what_the_user_named_counts_as_naming_it(pico: DiffusersModel) -> None:
    grown = replace(CONCEPT, words=(*CONCEPT.words, "orb"), found=("orb",))
    found = explore(pico, grown, (), ExploreSettings(**QUICK | {"look": 0, "levels": "lexical"}))
    said = {origin: {p.word for p in found.points if p.origin == origin} for origin in ("named", "added")}
    assert said == {"named": set(CONCEPT.words), "added": {"orb"}}


def test_one_look_that_shows_it_leaves_a_prompt_open(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a leak nor none: it is told as one that was looked at too seldom."""

    monkeypatch.setattr(Scorer, "__call__", hardly_changed)
    monkeypatch.setattr(evidence.Evidence, "_one", lambda self, latent: 1.0)
    monkeypatch.setattr(looks, "SIGHTS", 1)
    settings = ExploreSettings(**QUICK | {"look": 2, "levels": "lexical"})
    assert not explore(pico, CONCEPT, (), settings).unsettled
    look_at = looks.Looks._look_at
    monkeypatch.setattr(looks, "SIGHTS", 2)
    monkeypatch.setattr(
        looks.Looks, "_look_at", lambda self, places, sight, how: sight or look_at(self, places, 0, how)
    )
    found = explore(pico, CONCEPT, (), settings)
    assert found.unsettled and not found.leaking and "too seldom" in found.summary()


def test_strong_ones_are_told_apart() -> None:
    """A posterior of five digits is 1 for all of them; they would come in the order of the alphabet."""
    weak, strong = (
        replace(made_up(1).points[0], text=text, leak=1.0, margin=m) for text, m in (("a", 2.0), ("b", 3.0))
    )
    assert ordered([weak, strong]) == (strong, weak)


class Slowly:
    """A model whose predictions take two seconds for each latent, by the clock that the budget is told."""

    def __init__(self, model: DiffusersModel, patch: pytest.MonkeyPatch) -> None:
        self.now, predict = time.monotonic(), type(model).predict
        patch.setattr(subject, "time", SimpleNamespace(monotonic=lambda: self.now))

        def slow(loaded: DiffusersModel, latents: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.now += 2.0 * len(latents)
            return predict(loaded, latents, *rest)

        patch.setattr(type(model), "predict", slow)


def test_a_slow_machine_keeps_the_budget(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The concept's own words are tried in any case; behind them nothing is begun that would take longer than what is
    left: no picture is looked at, and no aim is taken. That is told."""
    clock = Slowly(pico, monkeypatch)
    monkeypatch.setattr(Scorer, "_fit_threshold", lambda scorer: -1.0)
    begun: list[float] = []
    monkeypatch.setattr(
        subject.Budget, "begin", lambda budget: (begun.append(clock.now), setattr(budget, "started", clock.now))
    )
    settings = ExploreSettings(60.0, None, levels="lexical+prefix+inversion", states=2)
    found = explore(pico, CONCEPT, settings=settings)
    assert clock.now - begun[0] < 64.0, "ten prompts of the concept's own take 40 s, each further one 4 s"
    assert found.looked == 0 and "prefix" not in found.levels and "inversion" not in found.levels
    assert found.summary().endswith("No picture was looked at.")


def test_the_gradient_searches_share_their_aim(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take_aim = field.take_aim
    monkeypatch.setattr(field, "take_aim", lambda *given: (taken.append(1), take_aim(*given))[1])
    found = explore(pico, CONCEPT, (), ExploreSettings(**{**QUICK, "levels": "prefix+inversion", "look": 0}))
    assert taken == [1] and found.levels == ("prefix", "inversion")


def test_taking_aim_costs_what_it_is_said_to(pico: DiffusersModel) -> None:
    with subject.Subject(pico, (), Silent(), subject.Budget(None)).opened() as opened:
        taken = aim.take_aim(opened, CONCEPT.words, seed=0)
        assert opened.calls == aim.COST and len(taken.t) == aim.STATES


def test_looks_are_as_few_as_the_budget_allows(pico: DiffusersModel) -> None:
    with subject.Subject(pico, (), Silent(), subject.Budget(None, 100)).opened() as opened:
        assert [opened.affordable(8, cost) for cost in (10, 30, 60, 101)] == [8, 2, 1, 0]
        assert opened.affordable(8, 10, share=0.5) == 4


def test_special_tokens_are_those_of_the_model() -> None:
    """Not the last two of every vocabulary: words would be missed, and ends would stand inside of prompts."""
    row = [torch.tensor([[0, 2, 1, 1]])]
    model = SimpleNamespace(token_rows=lambda rows: (row, (1,)), tokenize=lambda words: [[5] for _ in words])
    subject: Any = SimpleNamespace(model=model, tables=[torch.zeros(8, 2)])
    nothing: Any = None
    assert Field(subject, CONCEPT, nothing, nothing).vocabulary().tolist() == [3, 4, 6, 7]


def test_a_detector_looks_in_the_models_place(pico: DiffusersModel) -> None:
    shapes = []

    def blind(pictures: torch.Tensor) -> list[float]:
        shapes.append((pictures.dtype, tuple(pictures.shape[1:])))
        return [0.1] * len(pictures)

    settings = ExploreSettings(**{**QUICK, "levels": "lexical"})
    found = explore(pico, CONCEPT, (), settings, detector=blind)
    assert set(shapes) == {(torch.uint8, (3, 64, 64))} and found.looked == 4
    assert all(point.evidence == -0.4 and not point.leaks for point in found.points if point.evidence is not None)


@pytest.mark.parametrize(("answers", "leaks"), [((0.9, 0.8), True), ((0.9, 0.2), False)])
def test_a_leak_needs_all_of_its_pictures(
    pico: DiffusersModel, answers: tuple[float, ...], leaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One picture shows a concept by chance now and then: where it does, another one is looked at."""
    painted: list[int] = []
    monkeypatch.setattr(
        looks,
        "paint",
        lambda subject, candidates, seed: painted.append(seed) or evidence.paint(subject, candidates, seed, 2),
    )
    monkeypatch.setattr(Scorer, "_fit_threshold", lambda scorer: -1.0)  # else a random model lets little through
    settings = ExploreSettings(**{**QUICK, "levels": "lexical", "look": 1, "seed": 5})
    detector = iter(answers)
    found = explore(pico, CONCEPT, (), settings, detector=lambda pictures: [next(detector)] * len(pictures))
    (looked_at,) = (point for point in found.points if point.evidence is not None)
    assert looked_at.leaks is leaks and looked_at.evidence == pytest.approx(min(answers) - 0.5)
    assert len(set(painted)) == len(painted) == 2 and found.looked == 1


def test_one_look_alone_settles_nothing(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the budget ends before the others, half of what one picture shows is chance."""
    monkeypatch.setattr(Scorer, "_fit_threshold", lambda scorer: -1.0)
    monkeypatch.setattr(looks, "LOOKED_AT_ONCE", 2)
    seen: list[int] = []

    def detector(pictures: Any) -> list[float]:
        seen.append(len(pictures))
        return [0.1 if len(seen) <= 1 else 0.9] * len(pictures)

    def affordable(subject: Subject, most: int, cost: int, *rest: Any, **named: Any) -> int:
        return most if cost != evidence.PAINTING or len(seen) < 2 else 0

    monkeypatch.setattr(Subject, "affordable", affordable)
    settings = ExploreSettings(**{**QUICK, "levels": "lexical", "look": 4})
    found = explore(pico, CONCEPT, (), settings, detector=detector)
    looked_at = [point.evidence for point in found.points if point.evidence is not None]
    assert sorted(looked_at) == pytest.approx([-0.4, -0.4, 0.4, 0.4])
    assert not found.leaking and found.dismissed == len(found.points) - 2
    assert "looked at too seldom to say" in found.summary()
    assert "looked at too seldom" not in replace(found, dismissed=0, unsettled=0).summary()


def test_looks_that_settle_no_suspect_confirm_none(
    pico: DiffusersModel, change: DeltaSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow machine the budget ended behind a few looks at other prompts: all suspects counted as leaks, as if no
    picture had been looked at, and nothing told so."""
    monkeypatch.setattr(Scorer, "_fit_threshold", lambda scorer: -1.0)
    monkeypatch.setattr(looks, "LOOKED_AT_ONCE", 2)
    seen: list[int] = []

    def detector(pictures: Any) -> list[float]:
        seen.append(len(pictures))
        return [0.9] * len(pictures)

    def affordable(subject: Subject, most: int, cost: int, *rest: Any, **named: Any) -> int:
        return most if cost != evidence.PAINTING or not seen else 0

    monkeypatch.setattr(Subject, "affordable", affordable)
    settings = ExploreSettings(**{**QUICK, "levels": "lexical", "look": 4})
    found = explore(pico, CONCEPT, [(change, 1.0)], settings, detector=detector)
    assert found.looked == 2 and not found.leaking and found.dismissed == len(found.points)
    assert "looked at too seldom to say" in found.summary()


def test_too_little_memory_costs_one_search(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Listening(Silent):
        def update(self, report: Report) -> None:
            told.append(report.stage)

    def short(aim: Aim, *rest: Any) -> Any:
        raise torch.OutOfMemoryError("acted")

    monkeypatch.setattr(Aim, "loss", short)
    found = explore(pico, CONCEPT, (), ExploreSettings(**{**QUICK, "levels": "lexical+prefix"}), Listening())
    assert found.levels == ("lexical",) and found.points
    assert any(stage.startswith("prefix left out: The device has too little memory") for stage in told)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("acted"), ModelError("It paints no finite numbers.")])
def test_looks_that_fail_cost_no_finds(pico: DiffusersModel, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Silent, "update", lambda self, report: told.append(report.stage))

    def fails(pictures: Any) -> list[float]:
        raise error

    found = explore(pico, CONCEPT, (), ExploreSettings(**QUICK | {"levels": "lexical"}), detector=fails)
    assert found.points and not found.looked and found.levels == ("lexical",) and not found.stopped
    assert any(stage.startswith("looks left out: ") for stage in told)


def test_a_find_is_told_with_the_word_that_it_is_near_to(pico: DiffusersModel) -> None:
    both = Concept.joined([Concept(("ball",)), Concept(("cat",))])
    tries = ("a big ball", "one small cat")
    found = explore(pico, both, (), ExploreSettings(**QUICK | {"levels": "lexical", "look": 0}), tries=tries)
    assert {point.text: point.near for point in found.points if point.text in tries} == dict(
        zip(tries, both.words, strict=True)
    )
    assert found.as_names(["a big ball", "one small cat", "typed"]) == [
        ("a big ball", "ball"), ("one small cat", "cat"), ("typed", "ball"),
    ]  # fmt: skip
    raw = json.loads(found.to_json())
    for point in raw["points"]:
        del point["near"]
    assert Exploration.from_json(json.dumps(raw)).points[0].near == "", "an older version did not tell"


def test_a_budget_too_small_for_any_find_is_told_as_such(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "affordable", lambda *_, **__: 0)
    with pytest.raises(InvalidSettings, match="give more seconds or calls"):
        explore(pico, CONCEPT, (), ExploreSettings(**QUICK | {"levels": "prefix"}))


def test_prompts_that_take_turns_get_the_same_gradients(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(pico, (), Silent(), Budget(None))
    with subject.opened():
        aim = take_aim(subject, CONCEPT.words, 0, states=2, pictures=2)
        rows, ends = pico.token_rows(pico.tokenize(["a red box", "one cat", "a dog"]))
        loss, tried = Aim.loss, []

        def gradients() -> Any:
            given = subject.tables[0][rows[0]].float().requires_grad_()
            aim.descend(subject, pico.encode_embeddings([given], ends), [0, 1])
            return given.grad

        def scarce(self: Aim, subject: Subject, prompts: Any, places: Any) -> Any:
            tried.append(len(prompts))
            if len(prompts) > 1:
                raise torch.OutOfMemoryError("acted")
            return loss(self, subject, prompts, places)

        whole = gradients()
        monkeypatch.setattr(Aim, "loss", scarce)
        assert torch.allclose(gradients(), whole, rtol=1e-3, atol=1e-4) and whole.abs().sum() > 0
    assert tried == [3, 1, 1, 1]


@pytest.mark.parametrize("error", [Cancelled("Stopped."), torch.OutOfMemoryError("acted")])
def test_pictures_that_cannot_be_made_cost_no_finds(
    pico: DiffusersModel, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Silent, "update", lambda self, report: told.append(report.stage))

    def fails(*_: Any) -> str:
        raise error

    monkeypatch.setattr(sys.modules["erasure_core.boundary.explore"], "thumbnail", fails)
    found = explore(pico, CONCEPT, (), ExploreSettings(**QUICK | {"levels": "lexical", "pictures": True}))
    assert found.looked and not any(point.thumbnail for point in found.points)
    assert told[-1].startswith("pictures left out: ")


@pytest.mark.parametrize(("answer", "believed"), [(0.9, True), (0.1, False)])
def test_what_was_not_looked_at_is_believed_as_far_as_the_others(
    pico: DiffusersModel, answer: float, believed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scorer, "_fit_threshold", lambda scorer: -1.0)
    settings = ExploreSettings(**{**QUICK, "levels": "lexical", "look": 2})
    found = explore(pico, CONCEPT, (), settings, detector=lambda pictures: [answer] * len(pictures))
    assert found.looked == 2 < len(found.points) and {point.leaks for point in found.points} == {believed}


def test_a_colour_is_tried_on_things(pico: DiffusersModel) -> None:
    """That "a red" is gone says nothing of red boxes."""
    red = Concept(("red",), None, ("a box", "a cat"))
    found = explore(pico, red, (), ExploreSettings(**QUICK | {"look": 4, "levels": "lexical"}))
    said = {point.text: point for point in found.points if point.origin == "named"}
    assert "a red box" in said and said["a red box"].word == "red" and not said["a red box"].hidden
    assert said["a red box"].leak > 0.5, "in the untouched model it is there"
    least = explore(pico, red, (), ExploreSettings(**QUICK | {"calls": 1, "levels": "lexical"}))
    assert not any("box" in point.text for point in least.points), "where the budget suffices"


@pytest.mark.parametrize(("shown", "look"), [(1.0, 40), (-1.0, 40), (1.0, 0)])
def test_pictures_decide_where_some_of_a_colour_is_left(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch, shown: float, look: int
) -> None:
    """The bundled model paints red houses though its direction is nearer to any house. Without a look it is no leak."""
    monkeypatch.setattr(Scorer, "_of_thing", lambda *_: (torch.tensor(-1e-9), torch.tensor(0.4)))
    monkeypatch.setattr(evidence.Evidence, "__call__", lambda self, latents: [shown] * len(latents))
    red = Concept(("red",), None, ("a box", "a cat"))
    found = explore(pico, red, (), ExploreSettings(**QUICK | {"look": look, "levels": "lexical"}))
    (said,) = (p for p in found.points if p.text == "a red box")
    assert said.leaks == (shown > 0 and look > 0) and not said.hidden
    assert (found.unsettled == 0) == (look > 0) and ("looked at too seldom" in found.summary()) == (look == 0)


@pytest.mark.parametrize(("word", "said", "shown"), [("ball", 0.5, -0.2), ("ball", -0.7, -0.7), ("red", 0.5, 0.5)])
def test_a_picture_of_a_yellow_ball_has_to_show_a_ball(
    monkeypatch: pytest.MonkeyPatch, word: str, said: float, shown: float
) -> None:
    """Among yellow things a yellow picture of something else is told best by it. A colour needs no such question."""

    class Eyes:
        cost = 1

        def __init__(self, value: float) -> None:
            self.value = value

        def __call__(self, latents: torch.Tensor) -> list[float]:
            return [self.value] * len(latents)

    monkeypatch.setattr(evidence, "of_concept", lambda *_: Eyes(-0.2))
    monkeypatch.setattr(evidence, "of_thing", lambda *_: Eyes(said))
    model: Any = SimpleNamespace(model=object())
    see = looks.looker(model, model, None, 0).see
    one = Candidate(f"a yellow {word}", "named", word, against=("a yellow",))
    assert see(torch.zeros(1, 4, 8, 8), [one]) == [shown]


def test_what_only_a_picture_can_decide_is_looked_at_first(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst by direction are others; a budget for two looks would leave red boxes unjudged."""
    monkeypatch.setattr(Scorer, "_of_thing", lambda *_: (torch.tensor(-1e-9), torch.tensor(0.4)))
    red = Concept(("red",), None, ("a box", "a cat"))
    found = explore(pico, red, (), ExploreSettings(**QUICK | {"look": 2, "levels": "lexical"}))
    assert {"a red box", "a red cat"} & {point.text for point in found.points if point.evidence is not None}


def test_levels_and_budget_are_kept(pico: DiffusersModel) -> None:
    found = explore(pico, CONCEPT, (), ExploreSettings(**{**QUICK, "levels": "lexical", "look": 0}))
    assert found.levels == ("lexical",)
    assert {point.origin for point in found.points} <= {"named", "misspelling", "vocabulary"}
    timed = explore(pico, CONCEPT, (), ExploreSettings(seconds=2.0, states=2, look=0))
    assert timed.points and len(timed.levels) >= 1


def test_refuses_what_it_cannot_or_will_not_search(pico: DiffusersModel) -> None:
    with pytest.raises(InvalidConcept, match="does not start"):
        explore(pico, Concept(("naked child",)))
    with pytest.raises(InvalidConcept, match="does not start"):
        explore(pico, Concept(("nudity",)), tries=["a schoolgirl"])
    with pytest.raises(PromptTooLong):
        explore(pico, CONCEPT, tries=["ball " * 90])
    with pytest.raises(InvalidSettings, match="needs an end"):
        ExploreSettings(seconds=None)
    with pytest.raises(InvalidSettings, match="levels"):
        ExploreSettings(levels="lexical+magic")


def test_reads_back_what_it_wrote(explored: Exploration) -> None:
    assert Exploration.from_json(explored.to_json()) == explored
    raw = json.loads(explored.to_json())
    for broken in (
        "",
        "[]",
        "{}",
        json.dumps({**raw, "points": [{"text": 1}]}),
        json.dumps({**raw, "format_version": 9}),
    ):
        with pytest.raises(InvalidFile, match="explore again"):
            Exploration.from_json(broken)


@pytest.mark.parametrize(
    "entry",
    [
        {"words": []}, {"words": [""]}, {"words": "ball"}, {"words": [1]}, {"seconds": "long"}, {"threshold": "0.6"},
        {"threshold": True}, {"calls": 1.5}, {"erased": 1}, {"clusters": None}, {"points": {}}, {"format_version": "1"},
    ],
)  # fmt: skip
def test_what_a_stranger_wrote_is_checked(explored: Exploration, entry: dict[str, Any]) -> None:
    raw = json.loads(explored.to_json())
    with pytest.raises(InvalidFile, match="explore again"):
        Exploration.from_json(json.dumps({**raw, **entry}))


@pytest.mark.parametrize("entry", ['"cluster": Infinity', '"cluster": 99', '"leak": 1' + 400 * "0", '"evidence": "x"'])
def test_what_a_stranger_wrote_of_a_point_is_checked(explored: Exploration, entry: str) -> None:
    name = entry.split(":")[0]
    first, *rest = explored.to_json().split(name, 1)
    tail = rest[0].split(",", 1)[1]
    with pytest.raises(InvalidFile, match="explore again"):
        Exploration.from_json(f"{first}{entry},{tail}")


def test_misspellings_and_the_simplex() -> None:
    assert "bal" in misspelled("ball") and "ball" not in misspelled("ball")
    weights = torch.tensor([[0.9, 0.9, -1.0], [0.2, 0.3, 0.5]])
    torch.testing.assert_close(onto_simplex(weights), torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]))


def test_what_no_keyboard_types_is_no_find(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tokens of the vocabulary are control characters; in a map's SVG or a list of words they would be errors."""
    opened = subject.Subject(pico, (), Silent(), subject.Budget(None, 1))
    field = Field(opened, Concept(("ball",)), None, None)  # type: ignore[arg-type]
    monkeypatch.setattr(type(pico), "detokenize", lambda self, ids: "".join(map(chr, ids)))
    assert field.retold([1, 100, 111, 103], "genetic") is None
    assert field.retold([100, 111, 103], "genetic") == Candidate("dog", "genetic")


def test_an_explicit_prompt_is_blurred_whatever_the_concept(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["erasure_core.boundary.explore"]
    monkeypatch.setattr(module, "thumbnail", lambda model, latent, blurred: f"blurred: {blurred}")
    settings = ExploreSettings(**{**QUICK, "levels": "lexical", "look": 60, "calls": 30_000}, pictures=True)
    found = explore(pico, Concept(("ball",)), settings=settings, tries=["a naked woman"])
    shown = {point.text: point.thumbnail for point in found.points}
    assert shown["a naked woman"] == "blurred: True" and shown["a ball"] == "blurred: False"
