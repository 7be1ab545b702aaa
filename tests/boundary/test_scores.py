"""Scores on a model whose meaning is known: the pico model's own directions."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_up import CONCEPT, QUICK

from erasure_core import Concept, DeltaSet, Silent
from erasure_core.boundary import ExploreSettings, evidence, explore, probe, scores, wording
from erasure_core.boundary.candidate import Candidate
from erasure_core.boundary.clusters import OTHERS, clusters
from erasure_core.boundary.evidence import THINGS, Evidence, of_concept, paint
from erasure_core.boundary.probe import Probe, fisher_ratio, neutral_latents
from erasure_core.boundary.reading import Reading, _moments, end_vectors
from erasure_core.boundary.scores import Scorer, reads_as
from erasure_core.boundary.searches.lexical import of_things
from erasure_core.boundary.subject import Budget, Subject
from erasure_core.errors import DeviceOutOfMemory, InvalidConcept
from erasure_core.everyday import everyday_words
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.kinds import RIVALS
from erasure_core.sampling import seeded_noise


@pytest.fixture(scope="module")
def subject(pico_models: dict[str, DiffusersModel], change: DeltaSet) -> Iterator[Subject]:
    with Subject(pico_models["sd1"], [(change, 1.0)], Silent(), Budget(None)).opened() as opened:
        yield opened


@pytest.fixture(scope="module")
def scorer(subject: Subject) -> Scorer:
    return Scorer(subject, CONCEPT, states=3)


def test_the_original_reads_the_concept_as_itself(scorer: Scorer) -> None:
    said = scorer([Candidate(prompt, "test") for prompt in scorer.inside], erased=False)
    other = scorer([Candidate(prompt, "test") for prompt in scorer.outside if prompt], erased=False)
    assert min(s.margin for s in said) > max(s.margin for s in other)
    assert all(s.leak > 0.5 for s in said) and all(s.leak < 0.5 for s in other)
    assert sum(s.residual for s in said) / len(said) == pytest.approx(1.0, abs=1e-3)


def test_scores_do_not_depend_on_the_batch(scorer: Scorer) -> None:
    candidates = [Candidate(f"a {word}", "test") for word in ("dog", "orb", "box", "round thing")]
    together, alone = scorer(candidates), [scorer([candidate])[0] for candidate in candidates]
    for one, other in zip(together, alone, strict=True):
        assert one.margin == pytest.approx(other.margin, abs=1e-4)


def test_what_the_model_does_not_know_is_no_look_alike(scorer: Scorer) -> None:
    """It hardly steers, so it lies near to everything."""
    other = copy(scorer)
    ball, ring, box = torch.eye(8)[:3]
    other.towards = ball[None]
    other.outside = ["", "unknown", "a box", "a big ring"]
    other.away = torch.stack([torch.zeros(8), 0.1 * ball, 0.2 * ball + box, 2 * (ball + ring)])
    assert other.nearest_others(3) == ["a big ring", "a box"] and other.rivals()[0] == "unknown"


def test_synonyms_are_no_alternative() -> None:
    """A neutral prompt that reads as the concept itself would hide every leak; a look-alike must stay one."""
    generator = torch.Generator().manual_seed(0)
    ball, ring = torch.eye(8)[:2]
    towards = ball + 0.05 * torch.randn(6, 8, generator=generator)
    away = torch.stack([torch.zeros(8), towards[0] + 0.001, ball + 0.4 * ring, ring])
    assert reads_as(away, towards, 3).tolist() == [False, True, False, False]
    assert not reads_as(away, towards, 1).any()


def test_nothing_is_always_an_alternative(scorer: Scorer) -> None:
    assert "" in scorer.outside and not set(scorer.synonyms) & set(scorer.outside)


def test_what_says_the_concept_is_no_neutral_prompt(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyday words can be the concept: labelled as both, they would raise the threshold and hide leaks."""
    monkeypatch.setattr(wording, "everyday_words", everyday_words)  # all of them
    asked = Scorer(subject, Concept(("Dog", "a horse", "man")), states=2)
    said = " ".join([*asked.neutral, *asked.outside]).split()
    assert not {"dog", "horse", "man"} & set(said) and "woman" in said and "cat" in said


def test_what_the_tool_puts_around_prompts_and_words_may_not_fit(subject: Subject) -> None:
    full, word = "z" * 75, "q" * 74  # the model reads 75 tokens, each of these letters is one
    asked = Scorer(subject, Concept((word,), None, (full,)), states=2)
    assert full in asked.outside and not any(prompt.startswith(full) for prompt in asked.neutral)
    assert asked.inside == [word, f"a {word}"]


def test_what_the_probe_was_chosen_by_is_not_predicted_again(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    directions = Probe.directions

    def noted(probe: Probe, *given: Any, **named: Any) -> torch.Tensor:
        asked.append(len(probe))
        return directions(probe, *given, **named)

    monkeypatch.setattr(Probe, "directions", noted)
    made = Scorer(subject, CONCEPT, states=2)
    assert asked == [6, 6, 2, 2]  # concept and all else in the drawn states; temperature and threshold in the chosen
    with subject.original(), torch.no_grad():
        for prompts, known in ((made.inside, made.towards), (made.outside, made.away)):
            again = made.probe.directions(subject, subject.encode_texts(prompts), erased=False)
            torch.testing.assert_close(known, again, atol=1e-4, rtol=1e-3)


def test_states_of_large_models_are_small(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LARGEST_SIDE", 4)
    assert tuple(Scorer(subject, CONCEPT, states=2).probe.latents.shape) == (2, 4, 4, 4)


def test_neutral_pictures_keep_to_the_memory_there_is(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    predict = subject.model.predict

    def short(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(latents))
        if len(latents) > 2:
            raise DeviceOutOfMemory("too little memory")
        return predict(latents, *rest)

    whole = neutral_latents(subject, ["a dog", "a cat"], 3, seed=0)
    monkeypatch.setattr(subject.model, "predict", short)
    monkeypatch.setattr(subject.batches, "most", 4)
    torch.testing.assert_close(neutral_latents(subject, ["a dog", "a cat"], 3, seed=0), whole, atol=1e-4, rtol=1e-3)
    assert sizes[:2] == [4, 2] and max(sizes[1:]) == 2


def test_threshold_follows_the_neutral_prompts(scorer: Scorer) -> None:
    neutral = scorer([Candidate(text, "test") for text in scorer.neutral])
    assert 0.5 <= scorer.threshold < 1
    assert sum(s.leak > scorer.threshold for s in neutral) <= 0.05 * len(neutral)


def test_neutral_prompts_far_away_do_not_raise_the_threshold(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By mean and deviation it would be higher than the concept's own words reach."""
    margins = torch.full((len(scorer.neutral),), -0.3)
    margins[0] = -30.0
    monkeypatch.setattr(Scorer, "margins", lambda self, directions: margins)
    assert scorer._fit_threshold() == 0.5


def test_a_colour_of_a_thing_is_told_by_the_colour(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its whole direction "a red box" is a box, also in the untouched model: no leak of red would be seen."""
    scorer = Scorer(subject, Concept(("red",), None, ("a box", "a cat")), states=3)
    said = of_things(subject.model, scorer.concept)
    assert [one.text for one in said[:2]] == ["a red box", "a red cat"] and said[0].against[0] == "a box"
    assert scorer.telling(said)
    box, cat = scorer(said[:2], erased=False)
    own = float(scorer.margins(scorer.towards).median())
    assert box.margin == pytest.approx(own, rel=1e-3) == cat.margin and box.residual == pytest.approx(1.0, abs=1e-3)
    for text in scorer.rivals_of(said[0]):  # an erased model that paints a box of no colour, or of another
        other = scorer.original_directions([text])
        monkeypatch.setattr(scorer, "directions", lambda *_, d=other: d)
        assert scorer(said[:1])[0].margin < 0
        monkeypatch.undo()
    same = replace(said[0], against=("a box", "a red box", "a blue box"))
    assert "a red box" not in scorer.rivals_of(same), "another name of the concept is no rival"


def test_another_basic_colour_is_a_rival_however_near(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of red, yellow is nearer than any other name of blue is to blue: pictures of lemons would pass for red."""
    known = {"a box": (0.0, 0.0), "a red box": (1.0, 0.0), "a yellow box": (0.9, 0.3), "a crimson box": (0.5, 0.5)}
    monkeypatch.setattr(Scorer, "original_directions", lambda _, texts: torch.tensor([known[text] for text in texts]))
    against = ("a box", "a yellow box", "a crimson box")
    said = Candidate("a red box", "named", "red", against=against, other=("a yellow box",))
    assert scorer.rivals_of(said) == ["a box", "a yellow box"], "crimson points its way, strongly or not"
    assert scorer.rivals_of(replace(said, other=())) == ["a box", "a crimson box"], "where no colours are known"


def test_other_strengths_keep_what_the_original_says(scorer: Scorer, subject: Subject) -> None:
    weaker = Subject(subject.model, [(subject.sets[0], 0.0)], Silent(), Budget(None))
    with subject.original(), weaker.opened():
        here = scorer.on(weaker)
        untouched = here([Candidate("a ball", "test")])[0]
        assert here.towards is scorer.towards
    with subject.original():
        assert untouched.margin == pytest.approx(
            scorer([Candidate("a ball", "test")], erased=False)[0].margin, abs=1e-4
        )


def test_short_rows_read_as_whole_ones(subject: Subject, scorer: Scorer) -> None:
    reading = Reading(subject, scorer.inside, ["a dog", "a cat"])
    candidates = [Candidate("a red ball", "test"), Candidate("", "test", ids=(5,))]
    torch.testing.assert_close(reading.read(candidates), reading.read(candidates, short=False), atol=1e-5, rtol=1e-4)
    with subject.original():
        own = end_vectors(subject.model.encode(["a ball"]))
    assert float(reading.similarity(own)) == pytest.approx(1.0, abs=1e-3)


def test_weights_are_compared_where_the_model_computes() -> None:
    """Hosts with little memory keep them elsewhere."""
    elsewhere = torch.device("meta")
    model = SimpleNamespace(
        device=elsewhere, layers=lambda: {"unet.attn2.to_k": None}, weight=lambda _: torch.ones(3, 2)
    )
    assert all(moment.device == elsewhere for moment in _moments(SimpleNamespace(model=model, sets=[])))  # type: ignore[arg-type]


def test_evidence_and_pictures_have_one_value_for_each(subject: Subject) -> None:
    see = Evidence(subject, [("a photo of a ball",)], [("",), ("a dog",)])
    with torch.no_grad():
        latents = paint(subject, [Candidate("a ball", "test"), Candidate("a dog", "test")], seed=0, steps=2)
    found = see(latents)
    assert latents.shape == (2, *subject.model.latent_shape) and len(found) == 2
    assert see(latents) == found


def test_a_colour_is_looked_for_in_several_things(pico: DiffusersModel) -> None:
    """Against the same things in other colours and in none; another name of the colour is no rival."""
    red = Concept(("red",), None, ("a box", "a cat"))
    with Subject(pico, (), Silent(), Budget(None)).opened() as subject:
        scorer = Scorer(subject, red, states=2)
        said = scorer.telling(of_things(pico, red))
        see = of_concept(subject, scorer)
        rivals = set(scorer.rivals_of(said[0]))
        plain = of_concept(subject, Scorer(subject, CONCEPT, states=2))
    assert see.scenes == min(THINGS, len(said)) > 1 and see.inside == 1
    assert len(see.prompts) <= see.scenes * (2 + RIVALS) and said[0].against[0] in rivals
    assert (plain.scenes, plain.inside) == (1, len(CONCEPT.words))


def test_scenes_do_not_count_in_what_is_seen(subject: Subject) -> None:
    """What a scene explains of a picture is shared by all of its meanings: said twice it changes nothing."""
    latents = seeded_noise(subject.model.latent_shape, [3])
    once = Evidence(subject, [("a red ball",)], [("a ball",), ("a blue ball",)])
    twice = Evidence(subject, [("a red ball",) * 2], [("a ball",) * 2, ("a blue ball",) * 2])
    assert once(latents) == pytest.approx(twice(latents), abs=1e-3), "but for rounding"
    other = Evidence(subject, [("a red ball", "a red cat")], [("a ball", "a cat"), ("a blue ball", "a blue cat")])
    assert other(latents) != pytest.approx(once(latents), abs=1e-2)


def test_what_was_the_concept_and_steers_as_it_did_is_kept(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what steers elsewhere now, and not what was another thing."""
    before = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    after = torch.tensor([[1.8, 1.0], [0.4, 2.0], [0.0, 2.0]])
    monkeypatch.setattr(scorer, "towards", torch.tensor([[1.0, 0.1]]))
    monkeypatch.setattr(scorer, "original_directions", lambda texts: before)
    monkeypatch.setattr(scorer, "directions", lambda candidates: after)
    assert scorer.kept([Candidate(text, "test") for text in ("a denim", "a navy", "a key")]) == [True, False, False]


@pytest.mark.parametrize(("surely", "share"), [(float("inf"), 0.5), (-float("inf"), 1.0)])
def test_half_of_the_looks_suffice_where_a_picture_is_far_from_it(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, surely: float, share: float
) -> None:
    monkeypatch.setattr(evidence, "SURELY_NOT", surely)
    see = Evidence(subject, [("a red ball",)], [("a ball",), ("a blue ball",)])
    before = subject.calls
    see(seeded_noise(subject.model.latent_shape, [3]))
    assert subject.calls - before == share * see.cost


def test_fisher_ratio_prefers_what_separates() -> None:
    noise = torch.randn(20, 2, 5, generator=torch.Generator().manual_seed(0))
    apart = noise.clone()
    apart[:, 1] += 3
    ratio = fisher_ratio(apart, noise)
    assert ratio[1] > 10 * ratio[0]


def test_clusters_are_named_by_a_member() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.eye(8)[:2]
    features = torch.cat([centre + 0.3 * torch.randn(10, 8, generator=generator) for centre in centres])
    texts = [f"{'ab'[i // 10]}{i}" for i in range(20)]
    place, names = clusters(features, texts)
    assert names[-1] == OTHERS and {names[p][0] for p in place[:10] if p < len(names) - 1} == {"a"}
    assert {names[p][0] for p in place[10:] if p < len(names) - 1} == {"b"}
    assert clusters(features[:2], texts[:2]) == ([0, 0], (OTHERS,))


def test_budget_counts_time_and_calls() -> None:
    assert Budget(None, 100).spent(50) == 0.5 and Budget(None, None).spent(10**9) == 0.0
    assert Budget(10.0, 100, started=0.0).spent(0) >= 1.0


def test_keys_and_values_of_the_same_places_are_compared() -> None:
    """Of SDXL's 140, every fourth in order of their names is a key."""
    asked: list[str] = []

    def weight(name: str) -> torch.Tensor:
        asked.append(name)
        return torch.ones(3, 2)

    layers = {f"unet.{place}.attn2.{leaf}": None for place in range(70) for leaf in ("to_k", "to_v", "to_q")}
    model = SimpleNamespace(device=torch.device("cpu"), layers=lambda: layers, weight=weight)
    _moments(SimpleNamespace(model=model, sets=[]))  # type: ignore[arg-type]
    kinds = [[name.rpartition(".")[0] for name in asked if name.endswith(leaf)] for leaf in ("to_k", "to_v")]
    assert kinds[0] == kinds[1] and 16 <= len(kinds[0]) <= 20 and len(asked) == 2 * len(kinds[0])


def test_a_kept_prompt_that_says_the_concept_is_no_rival_of_it(pico_models: dict[str, DiffusersModel]) -> None:
    """Else every search of a file that kept "a red ball" would find nothing: the ball would be something else."""
    kept = ("a red box", "a red ball", "a blue ball", "a green ball")
    found = explore(
        pico_models["sd1"], Concept(("ball",), None, kept), (), ExploreSettings(**QUICK), tries=["a red ball"]
    )
    (tried,) = [point for point in found.points if point.text == "a red ball"]
    assert tried.margin > 0, "the untouched model reads it as the concept"


def test_what_candidates_are_compared_with_does_not_grow_without_end(subject: Subject) -> None:
    many = Concept(tuple(f"ball {i}" for i in range(200)), None, tuple(f"a box {i}" for i in range(300)))
    scorer = Scorer(subject, many, states=2)
    assert len(scorer.words) <= scores.MOST_WORDS and scorer.words[0] == "ball 0"
    assert sum(prompt.startswith("a box") for prompt in [*scorer.outside, *scorer.synonyms]) <= scores.MOST_KEPT


def test_a_concept_that_every_prompt_says_is_refused(pico_models: dict[str, DiffusersModel]) -> None:
    with pytest.raises(InvalidConcept, match="Nearly every prompt says 'a'"):
        explore(pico_models["sd1"], Concept(("a",)))
