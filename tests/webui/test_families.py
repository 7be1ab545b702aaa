"""SD1.x, SD2.x and SDXL on each kind of host: read, painted, erased and trained on as stand-alone."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
import torch
from generation import PROMPT, NoPicture, generate, predicted
from generation import expected as stand_alone
from pico import write_pico
from random_changes import as_erasure, random_deltas
from torch import Tensor, nn

from erasure_core import Concept, DeltaSet, applied, erase, write_erasure
from erasure_core.errors import ModelError
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.hosts.webui import WebuiModel
from erasure_core.hosts.webui_patching import ForgePatcher, patcher_for
from erasure_core.hosts.webui_slots import Applied
from erasure_core.methods.esd import EsdSettings
from erasure_core.profile import make_profile, write_profile

PROMPTS = ["a red ball", "cat"]
EVERYWHERE = "text-encoder+full"
SHORT = {"steps": 2, "batch": 1, "trajectories": 1, "trajectory_steps": 2, "rank": 2, "refresh": 2}
KINDS = {"a1111": fakes.SdModel, "forge": fakes.ForgeModel, "classic": fakes.ForgeModel}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> DiffusersModel:
    """SDXL's pico model with sizes embedded in as many numbers as the hosts embed them in."""
    folder = tmp_path_factory.mktemp("wide")
    return DiffusersModel.load(write_pico(folder, "sdxl", size_width=256))


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def source(request: pytest.FixtureRequest, pico_models: dict[str, DiffusersModel], wide: DiffusersModel) -> Any:
    return copy.deepcopy(wide if request.param == "sdxl" else pico_models[request.param])


@pytest.fixture(params=list(KINDS))
def loaded(request: pytest.FixtureRequest, host: SimpleNamespace, source: DiffusersModel) -> Any:
    """The model as each kind of host has it, of weights of its own."""
    given = {"patcher": fakes.OldPatcher} if request.param == "classic" else {}
    host.shared.sd_model = host.model = KINDS[request.param](copy.deepcopy(source), **given)
    host.kind = request.param
    return host.model


def states() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor([30, 700])


def painted(loaded: Any) -> Tensor:
    """What the host predicts, encoding and sampling with what is on its model now."""
    cond = loaded.get_learned_conditioning(PROMPTS)
    if hasattr(loaded, "forge_objects"):
        loaded.prepare()
    with torch.no_grad():
        return predicted(loaded, *states(), cond)


@torch.no_grad()
def expected(source: DiffusersModel, deltas: DeltaSet, strength: float) -> Tensor:
    with applied(source, [(deltas, strength)]):
        return source.predict(*states(), source.encode(PROMPTS))


def test_prompts_and_predictions_are_those_of_the_stand_alone_adapter(loaded: Any, source: DiffusersModel) -> None:
    model = WebuiModel(loaded, latent_side=8)
    assert (model.family, model.schedule.prediction) == (source.family, source.schedule.prediction)
    torch.testing.assert_close(model.schedule.signal, source.schedule.signal)
    assert WebuiModel(loaded).latent_shape[1:] == 2 * ({"sd1": 64, "sd2": 96, "sdxl": 128}[source.family],)
    ids = model.tokenize(PROMPTS)
    assert ids == source.tokenize(PROMPTS) and model.detokenize(ids[0]) == source.detokenize(ids[0])
    mine, theirs = model.encode(PROMPTS), source.encode(PROMPTS)
    assert mine.ends == theirs.ends
    torch.testing.assert_close(mine.context, theirs.context)
    torch.testing.assert_close(mine.pooled, theirs.pooled)
    told = source.predict(*states(), theirs)
    torch.testing.assert_close(model.predict(*states(), mine), told)
    torch.testing.assert_close(painted(loaded), told)  # the host's own way: with its sizes and its pooled text
    rows, ends = model.token_rows(ids)
    vectors = [table[row] for table, row in zip(model.token_tables(), rows, strict=True)]
    apart = model.encode_embeddings(vectors, ends)
    torch.testing.assert_close(apart.context, theirs.context)
    torch.testing.assert_close(apart.pooled, theirs.pooled)


def test_a_model_marked_so_is_trained_down_to_pure_noise(loaded: Any, source: DiffusersModel) -> None:
    """As the Forge family paints with it: its schedule is stretched for each generation only."""
    before = WebuiModel(loaded, latent_side=8).schedule.signal
    loaded.model_config = SimpleNamespace(ztsnr=True)
    last = WebuiModel(loaded, latent_side=8).schedule.signal[-1]
    if hasattr(loaded, "forge_objects") and source.schedule.prediction == "v_prediction":
        assert last == 0.0 < before[-1]
    else:
        assert last == before[-1]


def test_a_last_projection_that_is_not_read_is_no_layer(
    loaded: Any, source: DiffusersModel, host: SimpleNamespace
) -> None:
    """Hosts that keep A1111's classes multiply by a matrix of their own, whatever layer the network has for it."""
    is_there = "text_encoder_2.text_projection" in patcher_for(WebuiModel(loaded)).view.layers()
    assert is_there == (source.family == "sdxl" and host.kind == "forge")


def put_on(loaded: Any, patcher: Any, wanted: list[Applied]) -> None:
    """What the gate does for a generation."""
    if isinstance(patcher, ForgePatcher):
        loaded.forge_objects = loaded.forge_objects_original.shallow_copy()
        patcher.apply(wanted, text=True)
        patcher.load_text()
        assert patcher.in_effect(wanted, text=True)
    patcher.apply(wanted)
    if isinstance(patcher, ForgePatcher):
        loaded.prepare()
    assert patcher.in_effect(wanted)


def test_a_change_of_every_layer_is_put_on_at_its_strength_and_taken_off(loaded: Any, source: DiffusersModel) -> None:
    deltas = random_deltas(source, EVERYWHERE)
    patcher, base = patcher_for(WebuiModel(loaded)), painted(loaded)
    for strength in (1.0, 0.5, 0.0, 1.0):
        put_on(loaded, patcher, [Applied("all", "digest", deltas, strength, strength)])
        told = expected(source, deltas, strength)
        torch.testing.assert_close(painted(loaded), told, rtol=1e-3, atol=1e-4)
        assert strength == 0 or (told - base).norm() > 0.1 * base.norm()
    put_on(loaded, patcher, [])
    assert torch.equal(painted(loaded), base)


def test_a_generation_is_erased_by_tag(loaded: Any, source: DiffusersModel, host: SimpleNamespace) -> None:
    folder = host.places.folder()
    folder.mkdir(parents=True)
    write_erasure(folder / "all.safetensors", as_erasure(source, random_deltas(source, EVERYWHERE)), source)
    fakes.Processing.cached_c[:] = [None, None]
    base = generate(host)
    for strength in (1.0, 0.5):
        told = stand_alone(source, folder, "all", strength)
        torch.testing.assert_close(generate(host, f"{PROMPT}<erase:all:{strength}>"), told, rtol=1e-3, atol=1e-4)
    assert torch.equal(generate(host), base)


def test_a_training_finds_the_same_change(loaded: Any, source: DiffusersModel) -> None:
    settings = EsdSettings(replace=False, **SHORT, layers="text-encoder+cross-attention-kv")  # type: ignore[arg-type]
    model = WebuiModel(loaded, latent_side=8)
    # open_clip's attention cannot be trained: its layers are never called.
    only = model.layers().keys()
    kept = {name: layer for name, layer in source.layers().items() if name in only}
    source.layers = lambda: kept  # type: ignore[method-assign]
    wanted, _ = erase(source, Concept(("ball",)), "esd", settings)
    made, _ = erase(model, Concept(("ball",)), "esd", settings)
    assert made.manifest.family == source.family and list(made.deltas) == list(wanted.deltas)
    assert made.manifest.base_fingerprint == wanted.manifest.base_fingerprint
    for name in wanted.deltas:
        change = wanted.deltas[name].change()
        assert (made.deltas[name].change() - change).norm() <= 0.01 * change.norm()


def as_inpainting(loaded: Any) -> None:
    """The network of the same weights that reads a mask and a picture too."""
    network = (loaded.forge_objects.unet.model if hasattr(loaded, "forge_objects") else loaded.model).diffusion_model
    first = network.inner[0].conv_in
    with torch.inference_mode(hasattr(loaded, "forge_objects")):
        more = torch.randn(len(first.weight), 5, *first.weight.shape[2:])
        first._parameters["weight"] = nn.Parameter(torch.cat([first.weight, more], dim=1), requires_grad=False)


def test_an_inpainting_model_is_erased_but_not_trained(
    loaded: Any, source: DiffusersModel, host: SimpleNamespace
) -> None:
    folder, library = host.places.folder(), host.places.library()
    folder.mkdir(parents=True)
    for name, groups in (("words", "text-encoder+cross-attention-kv"), ("first", "full")):
        write_erasure(folder / f"{name}.safetensors", as_erasure(source, random_deltas(source, groups)), source)
    as_inpainting(loaded)
    fakes.Processing.cached_c[:] = [None, None]
    base, told = generate(host), stand_alone(source, folder, "words")
    torch.testing.assert_close(generate(host, f"{PROMPT}<erase:words>"), told, rtol=1e-3, atol=1e-4)
    assert torch.equal(generate(host), base)
    with pytest.raises(NoPicture, match=r"changes unet\.conv_in as a .* weight"):
        generate(host, f"{PROMPT}<erase:first>")
    write_profile(folder, make_profile("studio", library, [("words.safetensors", 1.0, 1.0)]))
    host.shared.opts.concept_erasure_profile = "studio"
    torch.testing.assert_close(generate(host), told, rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match="reads 9 channels"), WebuiModel(loaded).trainable():
        raise AssertionError("it must not come this far")


def test_pictures_become_the_likeliest_latents(source: DiffusersModel, host: SimpleNamespace, tmp_path: Path) -> None:
    model = WebuiModel(fakes.SdModel(copy.deepcopy(source)), latent_side=8)
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(model.latents_of(pictures), source.latents_of(pictures))
    latents = torch.randn(2, 4, 8, 8)
    assert (model.decode(latents).int() - source.decode(latents).int()).abs().max() <= 1


def test_sdxls_refiner_is_told_from_its_base(wide: DiffusersModel, host: SimpleNamespace) -> None:
    ldm, forge = fakes.SdModel(copy.deepcopy(wide)), fakes.ForgeModel(copy.deepcopy(wide))
    ldm.conditioner.embedders = ldm.conditioner.embedders[1:]
    del forge.text_processing_engine_l
    for model in (ldm, forge):
        with pytest.raises(ModelError, match="SDXL's refiner"):
            WebuiModel(model)


def test_ids_are_read_by_the_tokenizer_that_open_clip_has(
    pico_models: dict[str, DiffusersModel], host: SimpleNamespace
) -> None:
    model = WebuiModel(fakes.SdModel(copy.deepcopy(pico_models["sd2"])))
    found: Any = sys.modules["open_clip"]
    found.tokenizer._tokenizer.decode = lambda ids: f"{len(ids)} ids "
    assert model.detokenize([3, 4]) == "2 ids"
