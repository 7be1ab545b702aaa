"""The quality of the bundled model and of its judge, as figures with the targets they must reach."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from torch import Tensor

from .figures import Figure, share_of
from .judge import Verdict, load_judge, sees
from .judge_accuracy import judge_figures
from .lexicon import CONCEPTS, OBJECT_NAMES
from .painting import GUIDANCE, STEPS, load_model, paint
from .quality_prompts import Prompt, quality_prompts
from .scene import SIZE, phrases

SHEET_COLUMNS = 24
RULE = "-" * 78


Judged = tuple[Prompt, Verdict]


def _exact(prompt: Prompt, verdict: Verdict) -> bool:
    """The asked objects and no other are there, in a sound picture."""
    return verdict.intact and {seen.object for seen in verdict.things} == {a.object.name for a in prompt.things}


def _both(prompt: Prompt, verdict: Verdict) -> bool:
    return all(sees(verdict, asked.object.name) for asked in prompt.things)


def _bound(prompt: Prompt, verdict: Verdict) -> bool:
    """Each object is there in its own colour."""
    seen = {thing.object: thing.colour for thing in verdict.things}
    return _both(prompt, verdict) and all(
        asked.colour is None or seen[asked.object.name] == asked.colour.name for asked in prompt.things
    )


def phrase_figures(singles: list[Judged]) -> list[Figure]:
    """How often each word and description of an object gives exactly that object."""
    return [
        share_of(phrase, (_exact(p, v) for p, v in singles if p.things[0].object.phrase == phrase), 0.90)
        for name in OBJECT_NAMES
        for phrase in phrases(name)
    ]


def _attribute(kind: str, singles: list[Judged]) -> Figure:
    asked = ((prompt.things[0].names(kind), verdict) for prompt, verdict in singles)
    return share_of(f"{kind} right", (sees(verdict, name) for name, verdict in asked if name), 0.95)


def overall_figures(judged: list[Judged]) -> list[Figure]:
    """The figures by which the model is accepted."""
    singles = [(p, v) for p, v in judged if len(p.things) == 1]
    doubles = [(p, v) for p, v in judged if len(p.things) == 2]
    with_background = [(p, v) for p, v in judged if p.background]
    worst = min(phrase_figures(singles), key=lambda figure: figure.share)
    return [
        share_of("object right (one object, no other)", (_exact(p, v) for p, v in singles), 0.95),
        Figure(f"  lowest: {worst.name}"[:43], worst.share, worst.count, 0.90),
        _attribute("colour", singles),
        _attribute("style", singles),
        share_of("background right", (v.background == p.background for p, v in with_background), 0.95),
        share_of("two objects: both there", (_both(p, v) for p, v in doubles), 0.80),
        share_of("two objects: both there, colours bound", (_bound(p, v) for p, v in doubles)),
        share_of("garbage", (v.garbage for _, v in judged), error=True),
        share_of("nothing found", (not v.things for _, v in judged), error=True),
    ]


def _keeps(prompt: Prompt, concept: str) -> bool:
    """Whether a prompt asks for something of the concept's kind everywhere, and never for the concept."""
    names = [asked.names(CONCEPTS[concept].kind) for asked in prompt.things]
    return None not in names and concept not in names


def floor_figures(judged: list[Judged]) -> list[Figure]:
    """How often the judge sees each concept in pictures for other concepts: the floor of all leak figures."""
    return [
        share_of(concept, (sees(v, concept) for p, v in judged if _keeps(p, concept)), 0.003, error=True)
        for concept in CONCEPTS
    ]


def contact_sheet(pictures: Tensor, judged: list[Judged]) -> Image.Image:
    """All pictures in a grid, ordered by object; a red frame marks those where an asked object is missing."""
    order = sorted(range(len(judged)), key=lambda i: (len(judged[i][0].things), judged[i][0].things[0].object.name))
    cell, rows = SIZE + 4, -(-len(order) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (cell * SHEET_COLUMNS, cell * rows), "white")
    for place, i in enumerate(order):
        frame = Image.new("RGB", (cell, cell), "white" if _both(*judged[i]) else "red")
        frame.paste(Image.fromarray(pictures[i].permute(1, 2, 0).numpy()), (2, 2))
        sheet.paste(frame, (place % SHEET_COLUMNS * cell, place // SHEET_COLUMNS * cell))
    return sheet


def _print_phrases(figures: list[Figure]) -> None:
    each = len(figures) // len(OBJECT_NAMES)
    for row, name in enumerate(OBJECT_NAMES):
        parts = [f"{f.name.replace('{a}', '')} {f.share:.0%}" for f in figures[row * each : (row + 1) * each]]
        print(f"{name:<10}" + "  ".join(parts))


def report_quality(folder: Path, count: int = 1000, seed: int = 0, out: Path | None = None) -> bool:
    """Sample, judge, print the tables, and write ``quality.json`` and ``contact_sheet.png`` into ``out``.

    Returns:
        Whether every target is reached.
    """
    model, judge = load_model(folder), load_judge(folder / "judge.safetensors")
    prompts = quality_prompts(count, seed)
    texts, seeds = [prompt.text for prompt in prompts], list(range(seed, seed + count))
    pictures = paint(model, texts, seeds)
    judged = list(zip(prompts, judge(pictures), strict=True))
    tables = {
        "judge": judge_figures(judge, model.vae),
        "model": overall_figures(judged),
        "phrases": phrase_figures([(p, v) for p, v in judged if len(p.things) == 1]),
        "floor": floor_figures(judged),
    }
    _print_tables(tables)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {name: [asdict(figure) for figure in figures] for name, figures in tables.items()}
        settings = {"count": count, "seed": seed, "steps": STEPS, "guidance": GUIDANCE}
        (out / "quality.json").write_text(json.dumps({"settings": settings, **content}, indent=1), encoding="utf-8")
        contact_sheet(pictures, judged).save(out / "contact_sheet.png")
    return all(figure.reached for figures in tables.values() for figure in figures)


def _print_tables(tables: dict[str, list[Figure]]) -> None:
    print("The judge", RULE, *(figure.line() for figure in tables["judge"]), sep="\n")
    print("\nThe model", RULE, *(figure.line() for figure in tables["model"]), sep="\n")
    print("\nObject right, for each word and description", RULE, sep="\n")
    _print_phrases(tables["phrases"])
    worst = sorted(tables["floor"], key=lambda figure: -figure.share)[:6]
    print("\nSeen though not asked for: the floor of leak figures, highest", RULE, *(f.line() for f in worst), sep="\n")
