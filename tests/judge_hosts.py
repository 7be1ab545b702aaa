"""An erasure judged through a real host against the same erasure on the command line: leak and retention.

    PYTHON judge_hosts.py comfyui   in COMFYUI_PATH, run with COMFYUI_PYTHON
    PYTHON judge_hosts.py webui     in WEBUI_PATH, run with WEBUI_PYTHON; its checkpoint must be the file below

PYTHON has diffusers. PROVING_GROUND_TWIN names the wide twin (``python -m proving_ground widen TWIN.safetensors``). The
host erases, applies and paints through its own API; the command line's part is done by this process on the same file
with the same settings, prompts and seeds. Prints JSON: what the judge sees, and in how many pictures it sees another.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "comfyui"), str(HERE / "webui")]

from erasure_core import applied, erase, sample  # noqa: E402
from erasure_core.hosts.diffusers import DiffusersModel  # noqa: E402
from erasure_core.methods import find_method  # noqa: E402
from proving_ground.bench import concept_of  # noqa: E402
from proving_ground.evaluation import Question, questions  # noqa: E402
from proving_ground.judge import load_judge, sees  # noqa: E402
from proving_ground.lexicon import CONCEPTS  # noqa: E402
from proving_ground.painting import GUIDANCE  # noqa: E402

SIDE, BATCH = 64, 16
GROUPS = ("named", "unnamed", "kept")
Paint = Callable[[str, int, bool], Tensor]
"""A prompt, its seed and whether the erasure takes part, to a picture, uint8 [3, 64, 64]."""


def picture(content: bytes) -> Tensor:
    with Image.open(io.BytesIO(content)) as opened:
        flat = bytearray(opened.convert("RGB").tobytes())
    return torch.frombuffer(flat, dtype=torch.uint8).view(SIDE, SIDE, 3).movedim(-1, 0)


@contextmanager
def comfyui(twin: Path, options: argparse.Namespace) -> Iterator[Paint]:
    from comfy_client import Graphs, make_base, picture_of, running

    asked = concept_of(CONCEPTS[options.concept])
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder), twin)
        with running(Path(os.environ["COMFYUI_PATH"]), base) as host:
            graphs = Graphs(host)
            words, keep = "\n".join(asked.words), "\n".join(asked.keep)
            made = host.run({**graphs.paint("erase"), **graphs.erase(options.method, words, keep)})
            load = graphs.apply(made["erase"]["erasure"][0]["file"])

            def paint(prompt: str, seed: int, erased: bool) -> Tensor:
                graph = graphs.paint("apply" if erased else "base", prompt=prompt, seed=seed, steps=options.steps)
                graph["paint"]["inputs"]["cfg"] = GUIDANCE
                outputs = host.run({**graph, **load} if erased else graph)
                return picture(host.picture_bytes(picture_of(outputs)))

            yield paint


@contextmanager
def webui(twin: Path, options: argparse.Namespace) -> Iterator[Paint]:
    from real_host import WebUi, installed, interpreter

    asked, folder = concept_of(CONCEPTS[options.concept]), Path(os.environ["WEBUI_PATH"])
    with installed(folder):
        web = WebUi(folder, interpreter(), [])
        try:
            body = {"words": list(asked.words), "keep": list(asked.keep), "method": options.method, "side": SIDE}
            status, made = web.post("/concept-erasure/v1/erase", body)
            assert status == 200 and made["status"] == "done", made
            tag = f" <erase:{Path(made['file']).stem}:1>"

            def paint(prompt: str, seed: int, erased: bool) -> Tensor:
                asked = {"prompt": prompt + (tag if erased else ""), "seed": seed, "steps": options.steps}
                sides = {"width": SIDE, "height": SIDE, "cfg_scale": GUIDANCE, "sampler_name": "DDIM"}
                status, answer = web.post("/sdapi/v1/txt2img", asked | sides)
                assert status == 200 and answer["images"], answer
                return picture(base64.b64decode(answer["images"][0]))

            yield paint
        finally:
            web.close()


def stand_alone(twin: Path, asked: Sequence[Question], options: argparse.Namespace) -> dict[bool, Tensor]:
    """Pictures of all questions, without and with the erasure, by this process."""
    model = DiffusersModel.load(twin, "cpu")
    model.latent_shape = (4, SIDE // 8, SIDE // 8)
    settings = find_method(options.method).settings()
    made, _ = erase(model, concept_of(CONCEPTS[options.concept]), options.method, settings)

    def painted() -> Tensor:
        rows = [range(i, min(i + BATCH, len(asked))) for i in range(0, len(asked), BATCH)]
        texts = [question.prompt for question in asked]
        return torch.cat(
            [model.decode(sample(model, [texts[i] for i in row], list(row), options.steps, GUIDANCE))
             for row in tqdm(rows, desc="alone", mininterval=15)]
        )  # fmt: skip

    before = painted()
    with applied(model, [(made.deltas, 1.0)]):
        return {False: before, True: painted()}


def judged(twin: Path, options: argparse.Namespace) -> dict[str, Any]:
    concept, judge = CONCEPTS[options.concept], load_judge()
    asked = {group: questions(concept, group, options.count) for group in GROUPS}
    every = [question for group in GROUPS for question in asked[group]]
    host = {"comfyui": comfyui, "webui": webui}[options.host]
    with host(twin, options) as paint:
        theirs = {
            erased: torch.stack([
                paint(question.prompt, seed, erased)
                for seed, question in enumerate(tqdm(every, desc="host", mininterval=15))
            ])
            for erased in (False, True)
        }  # fmt: skip
    ours = stand_alone(twin, every, options)
    found: dict[str, Any] = {"concept": concept.name, "method": options.method, "pictures each": options.count}
    for erased in (False, True):
        seen = [[sees(v, q.shows) for v, q in zip(judge(pictures), every, strict=True)]
                for pictures in (theirs[erased], ours[erased])]  # fmt: skip
        figures = {}
        for place, group in enumerate(GROUPS):
            rows = slice(place * options.count, (place + 1) * options.count)
            (host_seen, alone_seen), n = ([one[rows] for one in seen]), options.count
            differ = sum(a != b for a, b in zip(host_seen, alone_seen, strict=True))
            figures[group] = {"host": sum(host_seen) / n, "alone": sum(alone_seen) / n, "judged otherwise": differ}
        distance = (theirs[erased].float() - ours[erased].float()).abs().mean() / 255
        found["erased" if erased else "untouched"] = figures | {
            "mean difference of pictures": round(float(distance), 4)
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", choices=("comfyui", "webui"))
    parser.add_argument("--concept", default="ball", choices=sorted(CONCEPTS))
    parser.add_argument("--method", default="closed_form")
    parser.add_argument("--count", type=int, default=24, help="pictures in each group of prompts")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    print(json.dumps(judged(Path(os.environ["PROVING_GROUND_TWIN"]), options), indent=1))


if __name__ == "__main__":
    main()
