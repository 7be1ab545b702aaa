"""Scores on a model whose meaning is known: the pico model's own directions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from made_up import CONCEPT

from erasure_core import DeltaSet, Silent
from erasure_core.boundary.candidate import Candidate
from erasure_core.boundary.clusters import OTHERS, clusters
from erasure_core.boundary.evidence import Evidence, paint
from erasure_core.boundary.probe import fisher_ratio
from erasure_core.boundary.reading import Reading, end_vectors
from erasure_core.boundary.scores import Scorer, reads_as
from erasure_core.boundary.subject import Budget, Subject
from erasure_core.hosts.diffusers import DiffusersModel


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


def test_synonyms_are_no_alternative() -> None:
    """A neutral prompt that reads as the concept itself would hide every leak; a look-alike must stay one."""
    generator = torch.Generator().manual_seed(0)
    ball, ring = torch.eye(8)[:2]
    towards = ball + 0.05 * torch.randn(6, 8, generator=generator)
    away = torch.stack([torch.zeros(8), towards[0] + 0.001, ball + 0.4 * ring, ring])
    assert reads_as(away, towards, 3).tolist() == [False, True, False, False]


def test_nothing_is_always_an_alternative(scorer: Scorer) -> None:
    assert "" in scorer.outside and not set(scorer.synonyms) & set(scorer.outside)


def test_threshold_follows_the_neutral_prompts(scorer: Scorer) -> None:
    neutral = scorer([Candidate(text, "test") for text in scorer.neutral])
    assert 0.5 <= scorer.threshold < 1
    assert sum(s.leak > scorer.threshold for s in neutral) <= 0.05 * len(neutral)


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


def test_evidence_and_pictures_have_one_value_for_each(subject: Subject) -> None:
    see = Evidence(subject, ["a photo of a ball"], ["a dog"])
    with torch.no_grad():
        latents = paint(subject, [Candidate("a ball", "test"), Candidate("a dog", "test")], seed=0, steps=2)
    found = see(latents)
    assert latents.shape == (2, *subject.model.latent_shape) and len(found) == 2
    assert see(latents) == found


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
