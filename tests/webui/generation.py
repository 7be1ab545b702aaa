"""One generation as the hosts run it, with the extension's hooks in their places and one network call as sampling."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import torch
from torch import Tensor

from erasure_core.delta import Delta, DeltaSet, DenseDelta, LowRankDelta
from erasure_core.erasing import applied
from erasure_core.erasure_file import Erasure, read_erasure, write_erasure
from erasure_core.hosts.diffusers import DiffusersModel

PROMPT = "a red ball"


def generate(host: SimpleNamespace, prompt: str = PROMPT, panel: tuple[Any, ...] = (), **given: Any) -> Tensor:
    """One generation as the host runs it: every hook guarded, one network call in the place of sampling.

    ``task=False`` belongs to the task before, ``wildcards`` is what another extension's ``process`` does after ours,
    ``inside`` is what another extension does with the finished picture, ``conds`` what the host encodes beside the
    prompt.
    Returns the "picture"; raises what the host would let through.
    """
    p = given.pop("p", None) or fakes.Processing([prompt])
    gate, shared, model = host.gate, host.shared, host.model
    if given.pop("task", True):
        shared.state.begin()
    with_scripts = given.pop("scripts", True)
    if with_scripts:
        with fakes.swallowing():
            gate.begin(p, panel)
    if shared.state.interrupted:
        gate.end(p)
        host.last_refused = p
        raise NoPicture(p.comments[-1])
    given.pop("wildcards", lambda p: None)(p)
    p.prompts, p.negative_prompts = p.all_prompts[: p.batch_size], []
    if with_scripts:
        with fakes.swallowing():
            gate.begin_batch(p, 0)
        if not p.prompts:
            gate.end(p)
            raise NoPicture(p.comments[-1])
    is_forge = hasattr(model, "forge_objects")
    if is_forge:
        model.forge_objects = model.forge_objects_original.shallow_copy()
    tags = [SimpleNamespace(items=found.split(":")) for found in host.gate.wishes.TAG.findall(p.prompts[0])]
    if not p.disable_extra_networks:
        with fakes.swallowing():
            gate.EraseTag().activate(p, tags)
    if is_forge:
        model.forge_objects = model.forge_objects_after_applying_lora.shallow_copy()
    if with_scripts:
        with fakes.swallowing():
            gate.put_on_text(p)
    cond = conditioning(p, host)
    given.pop("conds", lambda: None)()
    if is_forge:
        model.forge_objects = model.forge_objects_after_applying_lora.shallow_copy()
    if with_scripts:
        with fakes.swallowing():
            gate.put_on_unet(p)
    if is_forge:
        model.prepare()
    given.pop("before_step", lambda: None)()
    picture = sampled(p, host, cond)
    given.pop("inside", lambda: None)()
    if with_scripts:
        gate.end(p)
    return picture


def sampled(p: fakes.Processing, host: SimpleNamespace, cond: Any) -> Tensor:
    """One step of sampling with the model that the host has loaded now."""
    sd_model, x = host.shared.sd_model, torch.ones(1, 4, 8, 8)
    params = fakes.Params(p, x, cond)
    with fakes.swallowing():
        host.gate.check_step(params)
    host.last = p
    if getattr(host, "kind", "") == "classic":  # reForge takes the prompts from the callback, but not the latent
        params.x, cond = x, params.text_cond
    with torch.no_grad():
        return predicted(sd_model, params.x * 1.0, torch.tensor([500]), cond)


def predicted(sd_model: Any, x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """The host's call of its network, with what it has read the prompts as."""
    unet = sd_model.forge_objects.unet.model if hasattr(sd_model, "forge_objects") else sd_model.model
    reads = unet.diffusion_model.inner[0].conv_in.weight.shape[1]
    x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, reads - 4))  # an inpainting model's mask and picture: empty
    if sd_model.is_sdxl:
        return unet.diffusion_model(x, t, cond["crossattn"] * 1.0, cond["vector"])
    return unet.diffusion_model(x, t, cond * 1.0)


def hires(host: SimpleNamespace, switch: Any, back: Any, prompt: str = PROMPT, hr_prompt: str = "") -> Tensor:
    """A1111's generation with a hires pass that has a checkpoint of its own: it is loaded after the first pass, and the
    prompt tags are activated again before its prompts are encoded. Returns the picture of the second pass."""
    p = fakes.Processing([prompt])
    p.enable_hr, p.all_hr_prompts = True, [hr_prompt or prompt]  # type: ignore[attr-defined]
    generate(host, prompt, p=p)
    switch()
    try:
        tags = [SimpleNamespace(items=found.split(":")) for found in host.gate.wishes.TAG.findall(hr_prompt or prompt)]
        with fakes.swallowing():
            host.gate.EraseTag().activate(p, tags)
        cond = conditioning(p, host)
        with fakes.swallowing():
            host.gate.put_on_unet(p)
        return sampled(p, host, cond)
    finally:
        back()


class NoPicture(Exception):
    pass


def conditioning(p: fakes.Processing, host: SimpleNamespace) -> Any:
    """The host's cache: the same prompt is not encoded again with the same checkpoint."""
    model = host.shared.sd_model
    key = (PROMPT, model.sd_checkpoint_info.filename)
    if p.cached_c[0] != key:
        with torch.no_grad():
            p.cached_c[:] = [key, model.get_learned_conditioning([PROMPT])]
    return p.cached_c[1]


def expected(source: DiffusersModel, library: Path, name: str, strength: float = 1.0) -> Tensor:
    """What the stand-alone adapter paints with the same file."""
    deltas = read_erasure(library / f"{name}.safetensors").bind(source)
    with torch.no_grad(), applied(source, [(deltas, strength)]):
        cond = source.encode([PROMPT])
        return source.predict(torch.ones(1, 4, 8, 8), torch.tensor([500]), cond)


def write_negated(library: Path, model: DiffusersModel, name: str) -> None:
    """An erasure that takes another one back: NAME-negated."""
    stored = read_erasure(library / f"{name}.safetensors")
    deltas = DeltaSet({layer: _negated(delta) for layer, delta in stored.bind(model).deltas.items()})
    assert stored.manifest is not None
    write_erasure(library / f"{name}-negated.safetensors", Erasure(deltas, stored.manifest), model)


def _negated(delta: Delta) -> Delta:
    if isinstance(delta, LowRankDelta):
        return LowRankDelta(delta.down.detach(), -delta.up.detach())
    return DenseDelta(-delta.change().detach())
