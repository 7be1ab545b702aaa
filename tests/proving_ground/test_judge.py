"""The judge is right on renders it has never seen, and refuses ruined pictures."""

from __future__ import annotations

from proving_ground.judge import Judge, Seen, Verdict, sees
from proving_ground.judge_accuracy import judge_figures, ruined_figure
from proving_ground.training.judge import judged_scenes

RED_BALL = Seen("ball", "red", "plain")


def test_sees_reads_every_kind_of_concept() -> None:
    verdict = Verdict((RED_BALL,), "sky", garbage=False)
    assert sees(verdict, "ball") and sees(verdict, "red") and sees(verdict, "plain")
    assert not sees(verdict, "box") and not sees(verdict, "blue") and not sees(verdict, "striped")


def test_nothing_is_seen_in_garbage() -> None:
    assert not sees(Verdict((RED_BALL,), "sky", garbage=True), "ball")
    assert not Verdict((), "sky", garbage=False).intact


def test_fresh_renders_are_judged_right(judge: Judge) -> None:
    missed = [figure.line() for figure in judge_figures(judge) if not figure.reached]
    assert not missed


def test_most_ruined_pictures_are_refused(judge: Judge) -> None:
    scenes, pictures = judged_scenes(seed=77, count=300)
    assert ruined_figure("fresh", judge, scenes, pictures).share > 0.9
