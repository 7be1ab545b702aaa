"""The quality benchmark: methods x concepts x seeds, one result file each, so that it can stop and go on."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from erasure_core import Concept, DeltaSet, PictureModel, erase, read_erasure, write_erasure
from erasure_core.concept_pictures import ConceptPictures, own_latents
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.image_prompt import ImageAdapter
from erasure_core.methods import find_method
from erasure_core.methods.co_erasing import CoErasingSettings
from erasure_core.progress import Silent
from erasure_core.safe_files import write_bytes

from . import lexicon
from .adapter_quality import ADAPTER, tokens_of
from .bench_searches import SEARCHED, search_figures
from .evaluation import evaluate, picture_distance, unconditional_drift
from .figures import Figure, Measure, share_of
from .judge import Judge, load_judge, sees
from .lexicon import CONCEPTS, OBJECTS
from .painting import load_model
from .tokens import MODEL_DIR
from .variants import VARIANTS, Variant, alternative_of

RESULTS = Path(__file__).parent / "results"
STATE_DIR = Path(__file__).parent / ".training"
ERASURES = STATE_DIR / "erasures"
"""Where the benchmark leaves the erasures, for pictures and stacks of them; they are not committed."""
UNTOUCHED = "untouched"
PAINTS_AND_JUDGES = ("judge", "scheduler/", "text_encoder/", "tokenizer/", "unet/", "vae/")
"""How the names of those files of the bundled model begin whose change makes other pictures or verdicts."""
ROUND = 3
"""Raised when the erasing itself changes in a way that no setting shows: earlier results are then of other methods."""
METHODS = ("esd", "closed_form")
BENCH_CONCEPTS = ("ball", "house", "star", "umbrella", "fish", "red", "striped")
COUNT = 48
"""Pictures in each group."""
DRIFT, DISTANCE, INTACT, UNASKED = "drift", "distance", "intact", "unasked"
"""Figures beside the groups': see ``unconditional_drift``, ``picture_distance`` (kept prompts) and ``Evaluation``."""
ALTERNATIVE = "alternative"
"""Share of the named words' pictures that show what was to be painted instead, where that was said."""


@dataclass(frozen=True)
class Cell:
    """One method, or variant of one, on one concept with one training seed."""

    method: str
    concept: str
    seed: int

    @property
    def path(self) -> Path:
        folder = re.sub(r"\W+", "_", self.method).strip("_")
        return RESULTS / folder / f"{self.concept}_{self.seed}.json"

    @property
    def erasure_path(self) -> Path:
        """Where its erasure is left."""
        return ERASURES / self.path.parent.name / self.path.with_suffix(".safetensors").name

    @property
    def variant(self) -> Variant:
        """How the method is run."""
        return VARIANTS.get(self.method) or Variant(self.method)

    @property
    def told(self) -> Concept:
        """What the eraser is told."""
        erased = CONCEPTS[self.concept]
        return concept_of(erased, alternative_of(erased).name if self.variant.alternative else None)

    @property
    def settings(self) -> Any:
        """The method's settings in this cell."""
        return find_method(self.variant.method).settings(**self.variant.settings, seed=self.seed)


def cells(methods: Sequence[str], concepts: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """All cells, the untouched model's first: it is the yardstick of all others and has no training seed."""
    untouched = [Cell(UNTOUCHED, concept, 0) for concept in concepts]
    return untouched + [Cell(method, concept, seed) for seed in seeds for method in methods for concept in concepts]


def kept_prompts(erased: lexicon.Concept) -> tuple[str, ...]:
    """What a user would ask to keep: the first word of every other object, with colours and styles in turn.

    They name no concept that is erased, and none of the unnamed words and descriptions that are measured.
    """
    colours = [c.name for c in lexicon.COLOURS.values() if c is not erased]
    styles = [s.name for s in lexicon.STYLES.values() if s is not erased]
    objects = [o for o in OBJECTS.values() if o is not erased]
    return tuple(
        f"a {styles[i % len(styles)]} {colours[i % len(colours)]} {objects[i].name}" for i in range(len(objects))
    )


def concept_of(erased: lexicon.Concept, alternative: str | None = None) -> Concept:
    """What the eraser is told: the named words and the prompts to keep, and what to paint instead if anything."""
    return Concept(erased.named, alternative, kept_prompts(erased))


def model_mark() -> str:
    """A mark of what paints and judges in the bundled model: results of another model are no results."""
    sums = (MODEL_DIR / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    telling = [line for line in sums if line.partition("  ")[2].startswith(PAINTS_AND_JUDGES)]
    return hashlib.sha256("\n".join(telling).encode()).hexdigest()[:16]


def peak_memory() -> int:
    """The most memory, in bytes, that this process has held since its program began.

    Not ``ru_maxrss`` where it can be helped: Linux hands that on from the process that started this one.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        found = None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def shown_by_adapter(model: DiffusersModel, concept: Concept, settings: CoErasingSettings) -> ConceptPictures:
    """As many pictures of the concept as the method would make by itself, as the bundled IP-Adapter reads them."""
    how = settings.seed, settings.trajectory_steps, settings.guidance, Silent(), settings.max_batch
    made = own_latents(model, concept.words[0], settings.own_pictures, *how)
    adapter = ImageAdapter.read(ADAPTER, model)
    return ConceptPictures(tokens=tokens_of(model.decode(made), adapter), adapter=adapter)


def _erased(cell: Cell, model: DiffusersModel) -> tuple[list[tuple[DeltaSet, float]], dict[str, Any]]:
    """Erase, write and read back; returns what to apply and what it cost."""
    variant, settings, concept = cell.variant, cell.settings, cell.told
    started = time.monotonic()
    shown = shown_by_adapter(model, concept, settings) if variant.adapter else None
    erasure, _ = erase(model, concept, variant.method, settings, pictures=shown)
    cost = {
        "round": ROUND,
        "seconds": round(time.monotonic() - started, 2),
        "peak_memory": peak_memory(),
        "settings": asdict(settings),
    }
    path = cell.erasure_path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_erasure(path, erasure, model)
    return [(read_erasure(path).bind(model), 1.0)], cost | {"file_bytes": path.stat().st_size}


def erasure_of(cell: Cell, model: DiffusersModel) -> DeltaSet:
    """The erasure of a cell: as an earlier run left it, else made now."""
    stored = read_erasure(cell.erasure_path) if cell.erasure_path.exists() else None
    if stored is None or stored.manifest is None or stored.manifest.settings != asdict(cell.settings):
        return _erased(cell, model)[0][0][0]
    return stored.bind(model)


def run_cell(
    cell: Cell, model: DiffusersModel, judge: Judge, count: int = COUNT, searched: bool = False
) -> dict[str, Any]:
    """Erase, write, read back, paint and judge; ``searched`` looks for prompts that leak, too. Returns what goes into
    the result file.

    The peak of memory is that of this process up to the end of erasing, so it means something in a process of its own.
    """
    erased = CONCEPTS[cell.concept]
    result: dict[str, Any] = {"method": cell.method, "concept": cell.concept, "seed": cell.seed, "model": model_mark()}
    erasures: list[tuple[DeltaSet, float]] = []
    if cell.method == UNTOUCHED:
        result["peak_memory"] = peak_memory()
    else:
        erasures, cost = _erased(cell, model)
        result |= cost
    found = evaluate(model, judge, erased, erasures, count)
    figures = {name: _figure(f) for name, f in found.shares.items()}
    if searched:
        attacked = search_figures(model, judge, concept_of(erased), erasures, count)
        figures |= {name: _figure(f) for name, f in attacked.items()}
    figures |= {INTACT: _figure(found.intact), UNASKED: _figure(found.unasked)}
    if cell.variant.alternative:
        wanted = alternative_of(erased).name
        seen = share_of(ALTERNATIVE, (sees(verdict, wanted) for verdict in judge(found.pictures["named"])))
        figures[ALTERNATIVE] = _figure(seen)
    if erasures:
        before = _untouched_kept(model, judge, erased, count)
        figures[DISTANCE] = _figure(picture_distance(before, found.pictures["kept"]))
        figures[DRIFT] = _figure(unconditional_drift(model, erasures))
    return result | {"figures": figures}


def _untouched_kept(model: PictureModel, judge: Judge, erased: lexicon.Concept, count: int) -> Tensor:
    """The untouched model's pictures of the kept prompts, painted once for all cells of a concept."""
    path = STATE_DIR / f"kept_{erased.name}_{count}_{model_mark()}.safetensors"
    if not path.exists():
        pictures = evaluate(model, judge, erased, (), count, groups=("kept",)).pictures["kept"]
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, save({"pictures": pictures.contiguous()}))
    return load_file(path)["pictures"]


def _figure(figure: Figure | Measure) -> dict[str, Any]:
    value = figure.share if isinstance(figure, Figure) else figure.value
    return {"value": round(value, 5), "count": figure.count, "interval": [round(x, 5) for x in figure.interval]}


def is_current(result: dict[str, Any], cell: Cell) -> bool:
    """Whether a cell's result is of the bundled model and of the methods and settings as they are now."""
    if result.get("model") != model_mark():
        return False
    return cell.method == UNTOUCHED or (result.get("round"), result.get("settings")) == (ROUND, asdict(cell.settings))


def _kept_result(cell: Cell) -> dict[str, Any]:
    """What the cell's file holds, nothing where there is none."""
    found: dict[str, Any] = json.loads(cell.path.read_text(encoding="utf-8")) if cell.path.exists() else {}
    return found


def missing(wanted: Sequence[Cell], searched: bool = False) -> list[Cell]:
    """The cells without a result file, or with one of another model or of other settings; with ``searched``, also those
    of erasures on which nothing was searched."""

    def is_whole(result: dict[str, Any], cell: Cell) -> bool:
        return not searched or cell.method == UNTOUCHED or SEARCHED in result["figures"]

    found = ((cell, _kept_result(cell)) for cell in wanted)
    return [cell for cell, result in found if not (is_current(result, cell) and is_whole(result, cell))]


def _run_alone(cell: Cell, threads: int, searched: bool) -> dict[str, Any]:
    torch.set_num_threads(threads)
    return run_cell(cell, load_model(), load_judge(), searched=searched)


def run_bench(
    wanted: Sequence[Cell],
    budget: float | None = None,
    searched: bool = False,
    notify: Callable[[str], None] = print,
) -> Iterator[dict[str, Any]]:
    """Run cells one after the other, each in a process of its own, so that one's peak of memory is not another's.

    Each result is written at once. Stops when ``budget`` seconds are over.
    """
    started = time.monotonic()
    for place, cell in enumerate(wanted):
        if budget is not None and time.monotonic() - started > budget:
            notify(f"out of time; {len(wanted) - place} cells are left, run again with --missing")
            return
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            result = alone.submit(_run_alone, cell, torch.get_num_threads(), searched).result()
        write_bytes(cell.path, (json.dumps(result, indent=1) + "\n").encode())
        yield result


def read_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All results in a folder that are of the model and the settings as they are now."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*.json"))]
    return [one for one in found if is_current(one, Cell(one["method"], one["concept"], one["seed"]))]
