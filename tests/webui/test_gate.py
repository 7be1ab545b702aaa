"""Every way in which the hosts silently un-erase: each must be cured, or end without a picture."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
import torch
from generation import PROMPT, NoPicture, expected, generate, write_negated

from erasure_core import Concept, erase
from erasure_core.delta import DeltaSet, DenseDelta
from erasure_core.errors import DeviceOutOfMemory
from erasure_core.hosts import webui_patching, webui_swap
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.hosts.webui import WebuiModel
from erasure_core.hosts.webui_patching import PatchFailed
from erasure_core.hosts.webui_slots import Applied
from erasure_core.hosts.webui_swap import exchange
from erasure_core.methods.esd import EsdSettings
from erasure_core.profile import make_profile, write_profile


def test_tag_panel_and_profile_paint_what_the_library_paints(
    web: SimpleNamespace, source: DiffusersModel, library: Path
) -> None:
    base = generate(web)
    wanted, half = (expected(source, library, "ball", strength) for strength in (1.0, 0.5))
    assert not torch.allclose(base, wanted, atol=1e-3)
    torch.testing.assert_close(generate(web, f"{PROMPT}<erase:ball:1>"), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(generate(web, f"{PROMPT}<erase:ball:0.5>"), half, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(generate(web, panel=(True, "ball", 1.0)), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(generate(web), base)
    _use_profile(web, library, "ball")
    torch.testing.assert_close(generate(web), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(generate(web, panel=(False, "ball", 0.5)), wanted, rtol=1e-4, atol=1e-5)
    web.shared.opts.concept_erasure_profile = "None"
    assert torch.equal(generate(web), base)


def test_ten_generations_in_a_row_are_the_same(web: SimpleNamespace) -> None:
    # Deltas computed against live weights are zero from the second run on, where the host leaves patched weights.
    first = generate(web, f"{PROMPT}<erase:ball>")
    assert all(torch.equal(generate(web, f"{PROMPT}<erase:ball>"), first) for _ in range(9))


def test_an_erased_text_encoder_is_used_although_the_host_caches_prompts(
    web: SimpleNamespace, source: DiffusersModel, library: Path
) -> None:
    base = generate(web)
    wanted = expected(source, library, "words")
    assert not torch.allclose(base, wanted, atol=1e-6)
    torch.testing.assert_close(generate(web, f"{PROMPT}<erase:words>"), wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(generate(web), base)


@pytest.mark.parametrize(
    ("prompt", "panel", "message"),
    [
        ("a<erase:nothing:1>", (), "There is no erasure"),
        ("a<erase:../../etc/passwd:1>", (), "not a file name"),
        ("a<erase:other:1>", (), "another kind of model"),
        ("a<erase:ball:much>", (), "is not a strength"),
        ("a<erase:ball:nan>", (), "allowed is 0 to 4"),
        ("a<erase:ball:1:2:3:4>", (), "cannot be read"),
        ("a", (True, "nothing", 1.0), "There is no erasure"),
        ("a", (True, 7, 1.0), "not the name"),
        ("a", (True, "broken", 1.0), "not a safetensors file"),
    ],
)
def test_what_cannot_be_erased_gives_no_picture(
    prompt: str, panel: tuple[Any, ...], message: str, web: SimpleNamespace, library: Path
) -> None:
    (library / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(NoPicture, match=message):
        generate(web, prompt, panel)
    # Without our script (other extensions start such generations) the sampling step itself fails.
    if not panel:
        with pytest.raises(web.gate.Refused, match=message):
            generate(web, prompt, scripts=False)
    assert torch.isfinite(generate(web)).all()  # the next generation is a normal one


def _use_profile(web: SimpleNamespace, library: Path, *names: str) -> None:
    profile = make_profile("studio", web.places.library(), [(f"{name}.safetensors", 1.0, 1.0) for name in names])
    write_profile(library, profile, overwrite=True)
    web.shared.opts.concept_erasure_profile = "studio"


def test_a_profile_gives_each_kind_of_model_its_own(web: SimpleNamespace, library: Path) -> None:
    """A school paints with an SD1.5 and an SDXL checkpoint."""
    base, erased = generate(web), generate(web, f"{PROMPT}<erase:ball>")
    _use_profile(web, library, "other", "ball")
    assert torch.equal(generate(web), erased) and not torch.equal(erased, base)
    _use_profile(web, library, "other")
    with pytest.raises(NoPicture, match="none of its erasures is for this kind of model"):
        generate(web)


def test_a_profile_that_is_not_whole_stops_everything(web: SimpleNamespace, library: Path) -> None:
    _use_profile(web, library, "ball")
    generate(web)
    (library / "ball.safetensors").write_bytes((library / "words.safetensors").read_bytes())
    with pytest.raises(NoPicture, match="not the file that the profile was made with"):
        generate(web)
    (library / "ball.safetensors").unlink()
    with pytest.raises(NoPicture, match="There is no erasure"):
        generate(web)
    (library / "studio.profile.json").unlink()
    with pytest.raises(NoPicture, match="cannot be read"):
        generate(web)
    with pytest.raises(web.gate.Refused, match="cannot be read"):
        generate(web, scripts=False)
    params = fakes.Params(None, torch.ones(1, 4, 8, 8))
    web.gate.check_step(params)
    for replaced in (params.x, params.text_cond):
        with pytest.raises(web.gate.Refused):
            replaced * 1.0
        with pytest.raises(web.gate.Refused):
            replaced["crossattn"]
        with pytest.raises(web.gate.Refused):
            torch.cat([replaced, torch.ones(1)])


def test_a_pinned_profile_cannot_be_switched_off(web: SimpleNamespace, library: Path) -> None:
    _use_profile(web, library, "ball")
    erased = generate(web)
    web.shared.cmd_opts.concept_erasure_profile = "studio"
    web.shared.opts.concept_erasure_profile = "None"
    assert torch.equal(generate(web), erased)


@pytest.mark.parametrize("name", ["ball", "words"])
def test_a_profile_cannot_be_undone_by_another_erasure(
    web: SimpleNamespace, source: DiffusersModel, library: Path, name: str
) -> None:
    write_negated(library, source, name)
    generate(web, f"{PROMPT}<erase:{name}><erase:{name}-negated>")
    _use_profile(web, library, name)
    erased = generate(web)
    for strength in (0.6, 1.0, 4.0):
        with pytest.raises(NoPicture, match="what the safety profile in force changes"):
            generate(web, panel=(True, f"{name}-negated", strength))
    generate(web, panel=(True, f"{name}-negated", 0.4))
    generate(web, f"{PROMPT}<erase:ball:0.5><erase:words>")
    assert torch.equal(generate(web), erased)


@pytest.mark.parametrize("name", ["", " ", "None", "missing"])
def test_a_pinned_name_without_a_profile_stops_everything(web: SimpleNamespace, library: Path, name: str) -> None:
    (library / "erasure.profile.json").write_text("{}")  # what an empty name would become as a file's
    web.shared.cmd_opts.concept_erasure_profile = name
    with pytest.raises(NoPicture, match="safety profile"):
        generate(web)
    with pytest.raises(web.gate.Refused, match="safety profile"):
        generate(web, scripts=False)


def test_a_refusal_that_cannot_be_told_is_one_all_the_same(web: SimpleNamespace, library: Path) -> None:
    class Untold(fakes.Processing):
        def comment(self, text: str) -> None:
            raise RuntimeError("another extension has broken this")

    p = Untold(["a<erase:nothing:1>"])
    with fakes.swallowing():
        web.gate.begin(p, ())
    assert web.shared.state.interrupted
    with pytest.raises(web.gate.Refused, match="There is no erasure"):
        generate(web, p=Untold(["a<erase:nothing:1>"]), scripts=False)
    p.prompts, p.negative_prompts = p.all_prompts, []  # type: ignore[attr-defined]
    with fakes.swallowing():
        web.gate.begin_batch(p, 0)
    assert p.prompts == []  # type: ignore[attr-defined]


def test_a_blank_profile_is_told_where_it_stands(a1111: SimpleNamespace, library: Path) -> None:
    a1111.shared.opts.concept_erasure_profile = " "
    with pytest.raises(NoPicture, match=r"under Settings, Concept Erasure, is blank; choose one there, or None for no"):
        generate(a1111)
    a1111.shared.cmd_opts.concept_erasure_profile = " "
    with pytest.raises(NoPicture, match="--concept-erasure-profile names no safety profile"):
        generate(a1111)


def test_a_host_that_lost_the_erasure_before_a_step_paints_nothing_unerased(web: SimpleNamespace) -> None:
    erased = generate(web, f"{PROMPT}<erase:ball>")

    def lose() -> None:
        if web.kind == "a1111":
            web.session.SESSION.patcher().clear()
        else:
            _reset(web)

    if web.kind == "a1111":  # put back in time
        assert torch.equal(generate(web, f"{PROMPT}<erase:ball>", before_step=lose), erased)
    else:
        with pytest.raises(web.gate.Refused, match="not on the model"):
            generate(web, f"{PROMPT}<erase:ball>", before_step=lose)


def test_generations_of_other_extensions_get_the_profile_or_no_picture(web: SimpleNamespace, library: Path) -> None:
    _use_profile(web, library, "ball")
    erased = generate(web)
    if web.kind == "a1111":
        assert torch.equal(generate(web, scripts=False), erased)
    else:
        with pytest.raises(web.gate.Refused, match="ADetailer"):
            generate(web, scripts=False)


def test_a_patch_that_the_host_does_not_take_is_noticed(forge: SimpleNamespace, library: Path) -> None:
    fakes.Processing.cached_c[:] = [None, None]
    patcher = forge.model.forge_objects_original.unet
    forge.kind = "forge"
    some = next(name for name, _ in patcher.model.named_parameters() if name.endswith("attn2.to_k.weight"))
    patcher.refuses = {some}
    with pytest.raises(forge.gate.Refused, match="accepted"):
        generate(forge, f"{PROMPT}<erase:ball>")
    patcher.refuses = set()
    forge.session.SESSION.patcher().clear()
    patcher.lora_loader.is_broken = True  # says that it patched, and did not
    with pytest.raises(forge.gate.Refused, match="not on the model"):
        generate(forge, f"{PROMPT}<erase:ball>")


def test_loras_merge_onto_the_erasure_and_come_off_again(
    a1111: SimpleNamespace, lora: fakes.Lora, library: Path
) -> None:
    fakes.Processing.cached_c[:] = [None, None]
    model = a1111.session.SESSION.patcher().model
    layer = model.layers()[next(name for name in model.layers() if name.endswith("attn2.to_k"))]
    style = ("style", {layer: 0.1 * torch.ones_like(layer.weight)})
    base, erased = generate(a1111), generate(a1111, f"{PROMPT}<erase:ball>")
    half = generate(a1111, f"{PROMPT}<erase:ball:0.5>")
    lora.load_networks([style])
    both, only_lora = generate(a1111, f"{PROMPT}<erase:ball>"), generate(a1111)
    assert torch.equal(generate(a1111, f"{PROMPT}<erase:ball>"), both)
    lora.load_networks([])
    assert torch.equal(generate(a1111, f"{PROMPT}<erase:ball>"), erased)
    lora.load_networks([style])
    assert torch.equal(generate(a1111), only_lora)
    lora.load_networks([])
    assert torch.equal(generate(a1111), base)
    assert torch.equal(generate(a1111, f"{PROMPT}<erase:ball:0.5>"), half)
    assert len({tuple(x.flatten().tolist()) for x in (base, erased, half, both, only_lora)}) == 5


def test_another_checkpoint_in_the_same_objects(a1111: SimpleNamespace, library: Path) -> None:
    fakes.Processing.cached_c[:] = [None, None]
    model = a1111.model
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    second = {
        name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in first.items() if tensor.is_floating_point()
    }
    second = first | second
    base = generate(a1111)
    generate(a1111, f"{PROMPT}<erase:ball>")
    model.load(second, "two.safetensors")  # copies into the erased parameters
    a1111.gate.model_loaded(model)
    generate(a1111)
    assert all(torch.equal(tensor, second[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(NoPicture, match="another base model"):
        generate(a1111, f"{PROMPT}<erase:ball>")
    model.load(first, "one.safetensors")
    a1111.gate.model_loaded(model)
    assert torch.equal(generate(a1111), base)


def test_a_switch_to_a_cached_checkpoint_that_nobody_tells_of(
    a1111: SimpleNamespace, source: DiffusersModel, library: Path
) -> None:
    fakes.Processing.cached_c[:] = [None, None]
    other = copy.deepcopy(source)
    erased = generate(a1111, f"{PROMPT}<erase:ball>")
    second = fakes.SdModel(other, "copy.safetensors")
    a1111.shared.sd_model = second
    assert torch.equal(generate(a1111, f"{PROMPT}<erase:ball>"), erased)
    a1111.shared.sd_model = a1111.model
    assert torch.equal(generate(a1111, f"{PROMPT}<erase:ball>"), erased)


def test_a_refiner_that_takes_over_is_erased_too_or_nothing_is_painted(
    a1111: SimpleNamespace, source: DiffusersModel, library: Path
) -> None:
    fakes.Processing.cached_c[:] = [None, None]
    erased = generate(a1111, f"{PROMPT}<erase:ball>")
    second = fakes.SdModel(copy.deepcopy(source), "copy.safetensors")

    def switch() -> None:
        a1111.shared.sd_model = second

    assert torch.equal(generate(a1111, f"{PROMPT}<erase:ball>", before_step=switch), erased)
    a1111.shared.sd_model = a1111.model
    with pytest.raises(a1111.gate.Refused, match="after the prompts had been encoded"):
        generate(a1111, f"{PROMPT}<erase:words>", before_step=switch)
    a1111.shared.sd_model = a1111.model
    strange = fakes.SdModel(copy.deepcopy(source), "strange.safetensors")
    with torch.no_grad():
        for parameter in strange.parameters():
            parameter.mul_(1.5)

    def switch_far() -> None:
        a1111.shared.sd_model = strange

    with pytest.raises(a1111.gate.Refused, match="another base model"):
        generate(a1111, f"{PROMPT}<erase:ball>", before_step=switch_far)


def test_unloading_leaves_the_model_as_the_host_made_it(web: SimpleNamespace) -> None:
    model = web.model
    unet = model.model.diffusion_model if web.kind == "a1111" else model.forge_objects.unet.model.diffusion_model
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    generate(web, f"{PROMPT}<erase:ball>")
    web.gate.leave()
    if web.kind != "a1111":
        model.forge_objects = model.forge_objects_original.shallow_copy()
        model.prepare()
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_infotext_tells_what_was_erased(web: SimpleNamespace, library: Path) -> None:
    generate(web, panel=(True, "ball", 0.5))
    assert web.last.extra_generation_params == {"Concept erasure": "ball:0.5"}
    _use_profile(web, library, "ball")
    generate(web)
    assert web.last.extra_generation_params["Concept erasure profile"].startswith("studio ")


def test_a_model_that_nobody_asked_to_change_is_left_alone(web: SimpleNamespace) -> None:
    generate(web)
    assert not web.session.SESSION.touched()


def test_weights_too_coarse_for_the_change_give_no_picture(a1111: SimpleNamespace, library: Path) -> None:
    # An 8-bit weight plus a small change rounds back to itself.
    fakes.Processing.cached_c[:] = [None, None]
    model = a1111.session.SESSION.patcher().model
    for name, layer in model.layers().items():
        if name.startswith("unet."):
            layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    a1111.session.SESSION.model_was_loaded(a1111.model)
    patcher = a1111.session.SESSION.patcher()
    small = DeltaSet({name: _small(layer) for name, layer in model.layers().items() if name.endswith("attn2.to_k")})
    with pytest.raises(PatchFailed, match="so coarsely"):
        patcher.apply([Applied("small", "digest", small)])
    assert patcher.in_effect([])


def test_a_failure_half_way_leaves_the_hosts_own_weights(
    a1111: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    patcher = a1111.session.SESSION.patcher()
    layers = {name: layer for name, layer in patcher.model.layers().items() if name.endswith("attn2.to_k")}
    wanted = [Applied("one", "digest", DeltaSet({name: _small(layer) for name, layer in layers.items()}))]
    before = {name: tensor.clone() for name, tensor in a1111.model.state_dict().items()}
    done: list[str] = []

    def short_of_memory(*given: Any) -> torch.nn.Parameter:
        if done:
            raise DeviceOutOfMemory("out of memory")
        done.append("one layer")
        return exchange(*given)

    monkeypatch.setattr(webui_patching, "exchange", short_of_memory)
    with pytest.raises(DeviceOutOfMemory):
        patcher.apply(wanted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in a1111.model.state_dict().items())
    assert patcher.in_effect([]) and not patcher.in_effect(wanted)


def test_what_is_exchanged_is_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card it would take memory twice; here all there is to see is that it is asked for, once the sum is made."""
    layer, aside = torch.nn.Linear(4, 4), []
    original, before = layer.weight, layer.weight.detach().clone()
    monkeypatch.setattr(webui_swap, "_put_aside", aside.append)
    patched = exchange(layer, "weight", layer, torch.ones(4, 4))
    assert torch.equal(patched, before + 1) and layer.weight is patched and aside == [original]
    webui_swap.restore(layer, "weight")
    assert layer.weight is original and torch.equal(original, before)


def _small(layer: Any) -> DenseDelta:
    return DenseDelta(1e-4 * torch.ones(layer.weight.shape))


@pytest.mark.parametrize("is_beside_a_lora", [False, True])
@pytest.mark.parametrize("kind", ["forge", "classic"])
def test_coarse_weights_are_told_as_the_cause(
    kind: str, is_beside_a_lora: bool, request: pytest.FixtureRequest, library: Path
) -> None:
    web = request.getfixturevalue(kind)
    fakes.Processing.cached_c[:] = [None, None]
    patcher = web.model.forge_objects_original.unet
    for path, layer in patcher.model.named_modules():
        if path.endswith(("attn2.to_k", "attn2.to_v")):
            coarse = layer.weight.detach().to(torch.float8_e4m3fn)
            layer._parameters["weight"] = torch.nn.Parameter(coarse, requires_grad=False)
            if is_beside_a_lora:
                style = {f"{path}.weight": ("diff", (torch.zeros(coarse.shape),))}
                given = {"filename": f"style {path}"} if kind == "forge" else {}
                patcher.add_patches(patches=style, **given)
    with pytest.raises(web.gate.Refused, match=r"so coarsely that only \d+% of the erasure would be left"):
        generate(web, f"{PROMPT}<erase:ball:0.001>")
    with pytest.raises(web.gate.Refused, match="not on the model that is painting"):  # that is another cause
        generate(web, panel=(True, "ball", 1.0), before_step=lambda: _reset(web))


def _reset(web: SimpleNamespace) -> None:
    web.model.forge_objects = web.model.forge_objects_original.shallow_copy()
    web.model.prepare()


def test_packed_weights_take_no_erasure(web: SimpleNamespace, library: Path) -> None:
    base = generate(web)
    packed = next(p for p in web.session.WebuiModel(web.model).unet.parameters() if p.dim() > 1)
    packed.gguf_cls = object
    assert torch.equal(generate(web), base)
    with pytest.raises(NoPicture, match=r"quantised \(nf4 or gguf\)"):
        generate(web, f"{PROMPT}<erase:ball>")


@pytest.mark.parametrize("kind", ["forge", "classic"])
def test_what_was_first_used_in_inference_mode_serves_everywhere(
    kind: str, request: pytest.FixtureRequest, source: DiffusersModel, library: Path
) -> None:
    """In it the Forge family calls the hooks of a generation; buttons and routes run outside of it."""
    pristine = copy.deepcopy(source)
    web = request.getfixturevalue(kind)
    web.kind = kind
    fakes.Processing.cached_c[:] = [None, None]
    both = f"{PROMPT}<erase:ball><erase:words:0.5>"
    with torch.inference_mode():
        erased, words = generate(web, both), generate(web, f"{PROMPT}<erase:words>")
    assert torch.equal(generate(web, both), erased)
    torch.testing.assert_close(words, expected(pristine, library, "words"), rtol=1e-4, atol=1e-5)
    settings = EsdSettings(
        replace=False, steps=2, batch=1, trajectories=1, trajectory_steps=2, rank=2, layers="text-encoder+full"
    )
    wanted, _ = erase(pristine, Concept(("ball",)), "esd", settings)
    made, _ = erase(WebuiModel(web.model, latent_side=8), Concept(("ball",)), "esd", settings)
    for name in wanted.deltas:
        torch.testing.assert_close(made.deltas[name].change(), wanted.deltas[name].change(), rtol=1e-2, atol=1e-5)
    assert torch.equal(generate(web, both), erased)
