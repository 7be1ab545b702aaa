"""The hires pass: its prompt is encoded apart, after the host has put other LoRAs or another checkpoint on."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
import torch
from generation import PROMPT, NoPicture, conditioning, expected, generate, sampled
from torch import Tensor

from erasure_core.hosts.diffusers import DiffusersModel

WORDS = f"{PROMPT}<erase:words>"


@pytest.fixture(params=["forge", "classic"])
def family(request: pytest.FixtureRequest, library: Path) -> SimpleNamespace:
    """Each kind of host of the Forge family."""
    fakes.Processing.cached_c[:] = [None, None]
    found: SimpleNamespace = request.getfixturevalue(request.param)
    found.kind = request.param
    return found


def load_loras(model: Any, names: str) -> None:
    """What the family's Lora extension does: nothing for the LoRAs that it has loaded, else it starts from the host's
    own patchers."""
    if getattr(model, "current_lora_hash", "") != names:
        model.current_lora_hash = names
        model.forge_objects.unet = model.forge_objects_original.unet
        model.forge_objects.clip = model.forge_objects_original.clip
        model.forge_objects_after_applying_lora = model.forge_objects.shallow_copy()


def activate(host: SimpleNamespace, p: Any, data: Any, has_hook: bool = True) -> None:
    """``extra_networks.activate``."""
    with fakes.swallowing():
        tags = host.gate.wishes.TAG.findall(data["prompt"])
        host.gate.EraseTag().activate(p, [SimpleNamespace(items=tag.split(":")) for tag in tags])
    load_loras(host.shared.sd_model, data["loras"])
    if has_hook:
        with fakes.swallowing():
            host.gate.put_on_hires_text(p, data)


class Conditioned(fakes.Processing):
    """A generation with a hires pass, whose prompts are encoded as the hosts' ``setup_conds`` does it."""

    def __init__(self, prompt: str, hr_prompt: str, loras: str = "") -> None:
        super().__init__([prompt])
        self.enable_hr, self.is_hr_pass, self.hr_c = True, False, None
        self.hr_checkpoint_info: Any = None
        self.all_hr_prompts = [hr_prompt]
        self.extra_network_data = {"prompt": prompt, "loras": ""}
        self.hr_extra_network_data = {"prompt": hr_prompt, "loras": loras}

    def calculate_hr_conds(self, host: SimpleNamespace) -> None:
        if self.hr_c is None:
            self.cached_c[:] = [None, None]  # with other LoRAs the host encodes anew
            self.hr_c = conditioning(self, host)  # type: ignore[assignment]


def second_pass(host: SimpleNamespace, p: Conditioned, has_hook: bool = True, switch: Any = None) -> Tensor:
    """A generation up to the picture of its hires pass."""

    def setup_conds() -> None:
        if p.hr_checkpoint_info is not None:
            return
        if not getattr(host.shared.opts, "hires_fix_use_firstpass_conds", False):
            activate(host, p, p.hr_extra_network_data, has_hook)
            p.calculate_hr_conds(host)
            activate(host, p, p.extra_network_data, has_hook)
        else:
            p.calculate_hr_conds(host)

    generate(host, p.all_prompts[0], p=p, conds=setup_conds)
    p.is_hr_pass = True
    if switch is not None:
        switch()
    activate(host, p, p.hr_extra_network_data, has_hook)
    p.calculate_hr_conds(host)
    model = host.shared.sd_model
    model.forge_objects = model.forge_objects_after_applying_lora.shallow_copy()
    with fakes.swallowing():
        host.gate.put_on_unet(p)
    model.prepare()
    return sampled(p, host, p.hr_c)  # type: ignore[arg-type]


@pytest.mark.parametrize("loras", ["", "style"])
def test_a_hires_prompt_with_other_loras_is_encoded_erased(
    family: SimpleNamespace, source: DiffusersModel, library: Path, loras: str
) -> None:
    wanted = expected(source, library, "words")
    torch.testing.assert_close(second_pass(family, Conditioned(WORDS, WORDS, loras)), wanted, rtol=1e-4, atol=1e-6)


def test_a_hires_prompt_has_erasures_of_text_encoders_of_its_own(
    family: SimpleNamespace, source: DiffusersModel, library: Path
) -> None:
    base, half = generate(family), expected(source, library, "words", 0.5)
    made = second_pass(family, Conditioned(WORDS, f"{PROMPT}<erase:words:0.5>"))
    torch.testing.assert_close(made, half, rtol=1e-4, atol=1e-6)
    assert torch.equal(second_pass(family, Conditioned(WORDS, PROMPT)), base)
    assert torch.equal(generate(family), base)


def test_without_the_hook_the_hires_pass_is_stopped(family: SimpleNamespace) -> None:
    with pytest.raises(family.gate.Refused, match="encoded without the erasure"):
        second_pass(family, Conditioned(WORDS, WORDS, "style"), has_hook=False)


def test_a_hires_checkpoint_encodes_erased(family: SimpleNamespace, source: DiffusersModel, library: Path) -> None:
    wanted, second = expected(source, library, "words"), _another(family, source)

    def switch() -> None:
        family.shared.sd_model = second

    p = Conditioned(WORDS, WORDS)
    p.hr_checkpoint_info = object()
    torch.testing.assert_close(second_pass(family, p, switch=switch), wanted, rtol=1e-4, atol=1e-6)
    family.shared.sd_model = family.model
    p = Conditioned(WORDS, WORDS)
    p.hr_checkpoint_info = object()
    with pytest.raises(family.gate.Refused, match="encoded without the erasure"):
        second_pass(family, p, has_hook=False, switch=switch)


def test_a_refiner_that_encodes_the_prompts_anew_is_stopped(family: SimpleNamespace, source: DiffusersModel) -> None:
    second = _another(family, source)

    def switch() -> None:
        family.shared.sd_model = second

    with pytest.raises(family.gate.Refused, match="after the prompts had been encoded"):
        generate(family, WORDS, before_step=switch)
    family.shared.sd_model = family.model

    def read_anew() -> None:
        family.gate.model_loaded(family.model)

    with pytest.raises(family.gate.Refused, match="after the prompts had been encoded"):
        generate(family, WORDS, before_step=read_anew)


def _another(family: SimpleNamespace, source: DiffusersModel) -> Any:
    """A second loaded model; made before the first one paints, whose weights stay patched."""
    patcher = type(family.model.forge_objects.unet)
    return fakes.ForgeModel(copy.deepcopy(source), "two.safetensors", patcher=patcher)


def test_a_hires_prompt_that_is_encoded_with_the_first_ones_networks(web: SimpleNamespace) -> None:
    web.shared.opts.hires_fix_use_firstpass_conds = True
    for prompt, hr_prompt in ((PROMPT, WORDS), (WORDS, PROMPT), (WORDS, f"{PROMPT}<erase:words:0.5>")):
        with pytest.raises(NoPicture, match="same <erase:…> tags into both"):
            generate(web, prompt, p=Conditioned(prompt, hr_prompt))
    for prompt, hr_prompt in ((WORDS, WORDS), (PROMPT, f"{PROMPT}<erase:ball>")):
        generate(web, prompt, p=Conditioned(prompt, hr_prompt))
    p = Conditioned(PROMPT, WORDS)
    p.hr_checkpoint_info = object()  # encoded when that is loaded
    generate(web, p=p)
    web.shared.opts.hires_fix_use_firstpass_conds = False
    generate(web, p=Conditioned(PROMPT, WORDS))
