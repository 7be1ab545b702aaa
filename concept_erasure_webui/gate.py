"""The gate that every generation passes: what it asks to be erased is on the model, or no picture comes out.

The hosts print and swallow every exception of a hook and go on without it. So there are two nets. Before the work, a
request that cannot be met interrupts the generation: no picture, and a comment that says why. While sampling, before
*every* step and whatever script, extension or API call started it, the model is checked again; if it is not as it must
be, latent and prompts are replaced by objects that raise at their first use, outside of the host's safety net.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modules import errors, extra_networks, shared

from erasure_core.errors import ErasureError, InvalidSettings
from erasure_core.hosts.webui_patching import ForgePatcher, PatchFailed
from erasure_core.hosts.webui_slots import Applied, key_of

from . import places, wishes
from .refusal import INFOTEXT_REFUSED, spoil, stay_enabled
from .running import RUNNING, STATE, State, keep, state_of
from .session import SESSION, UNKNOWN, check_kept, checkpoint_of
from .wishes import Wish

INFOTEXT, INFOTEXT_PROFILE = "Concept erasure", "Concept erasure profile"
ALLOW = (
    "If another extension started this generation, allow it to run the script concept_erasure (in ADetailer: Settings, "
    "'Script names to apply')."
)


class Refused(ErasureError):
    """This generation was stopped, because what it asked for could not be erased."""


def _model_now() -> tuple[int, str]:
    return id(shared.sd_model), checkpoint_of(shared.sd_model)


def begin(p: Any, panel_values: Sequence[Any]) -> None:
    """Before the work: everything that this generation asks for must be there, or no picture is made."""
    state = keep(p, State())
    try:
        RUNNING.enter(state)
        axis = getattr(p, "concept_erasure_xyz", None)
        state.panel = [*wishes.from_panel(panel_values), *wishes.from_text(axis or "")]
        is_empty = wishes.is_on(panel_values) and axis is None and state.outer is None and not state.panel
        for batch in _batches(p):
            state.tags = wishes.from_batch(batch)
            is_empty = is_empty and not state.tags
            _match(p)
        wishes.refuse_tags(_negative_prompts(p))
        if is_empty:
            raise InvalidSettings("The panel is on but names no erasure; choose one, or switch the panel off.")
        _note(p)
    except Exception as error:
        shared.state.interrupted = True
        refuse(p, error)


def begin_batch(p: Any, number: int) -> None:
    """Before each batch: since ``begin`` other scripts may have written other tags into its prompts, from wildcards for
    example, and of those the host reads the first prompt's alone, where they are spelt right."""
    state = state_of(p)
    try:
        if state.refusal:
            raise Refused(state.refusal)
        state.batch = number
        size = max(1, int(p.batch_size))
        here = slice(number * size, (number + 1) * size)
        asked = []
        for prompts in (_hires(p, "all_hr_prompts")[here], p.prompts):  # those that are painted first come last
            if prompts:
                state.tags = wishes.from_batch(prompts)
                asked.append(_match(p))
        _check_hires(p, asked)
        wishes.refuse_tags([*p.negative_prompts, *_hires(p, "all_hr_negative_prompts")[here]])
        _note(p)
    except Exception as error:
        shared.state.interrupted = True
        p.prompts = []  # the host leaves its loop; interrupted alone it would show the noise that it starts from
        if not state.refusal:
            refuse(p, error)


def drop_overrides(p: Any) -> None:
    """Before the host reads the settings that a request brings along: it takes none of ours from there, but some hosts
    put them back afterwards as they were, over what the operator has chosen meanwhile."""
    given = getattr(p, "override_settings", None)
    for name in (places.PROFILE_OPTION, places.OTHER_BASE_OPTION) if isinstance(given, dict) else ():
        given.pop(name, None)


def end(p: Any) -> None:
    """After the work; not called if that failed."""
    RUNNING.leave(p.__dict__.get(STATE))


def _batches(p: Any) -> list[list[str]]:
    """The prompts that are painted together, batch by batch, and those of each batch's hires pass."""
    size = max(1, int(p.batch_size))
    listed = (p.all_prompts, _hires(p, "all_hr_prompts"))
    return [each[i : i + size] for each in listed for i in range(0, len(each), size)]


def _negative_prompts(p: Any) -> list[str]:
    return [*(getattr(p, "all_negative_prompts", None) or []), *_hires(p, "all_hr_negative_prompts")]


def _hires(p: Any, name: str) -> list[str]:
    """Prompts of the hires pass; none without one."""
    return list(getattr(p, name, None) or []) if getattr(p, "enable_hr", False) else []


def _check_hires(p: Any, asked: Sequence[Sequence[Applied]]) -> None:
    """See that the host puts on what the hires prompt asks for, where that is something else than the prompt does.

    Raises:
        InvalidSettings: it does not.
    """
    if len({key_of(bound) for bound in asked}) > 1 and getattr(p, "disable_extra_networks", False):
        raise InvalidSettings(
            "The hires prompt asks for other erasures than the prompt, but with disable_extra_networks the host does "
            "not read them; write the same <erase:…> tags into both, or leave disable_extra_networks out."
        )
    if len({_text_key(bound) for bound in asked}) > 1 and _is_hires_encoded_first(p):
        raise InvalidSettings(
            "The hires prompt asks for other erasures of text encoders than the prompt, but the setting 'For hires "
            "fix, calculate conds of second pass using extra networks of first pass' has it encoded with the "
            "prompt's; write the same <erase:…> tags into both, or switch that setting off."
        )


def _is_hires_encoded_first(p: Any) -> bool:
    """Whether the host encodes the hires prompt with what the prompt put on the model."""
    with_first = getattr(shared.opts, "hires_fix_use_firstpass_conds", False)
    return bool(with_first) and getattr(p, "hr_checkpoint_info", None) is None


def _note(p: Any) -> None:
    """Say in the infotext what was erased, in every generation."""
    state, profile = state_of(p), places.profile()
    unwritten = state.beside_tags()
    said = {INFOTEXT: wishes.to_text(unwritten)} if unwritten else {}
    if profile is not None:
        said[INFOTEXT_PROFILE] = f"{places.profile_name()} {profile.digest()}"
    _write(p, said)


def _write(p: Any, said: dict[str, str]) -> None:
    """Put this into the infotext, in the place of what we said before, and in a dict of this generation's own: the
    copies that an XYZ plot makes of a generation share theirs."""
    others = getattr(p, "extra_generation_params", None) or {}
    ours = (INFOTEXT, INFOTEXT_PROFILE, INFOTEXT_REFUSED)
    p.extra_generation_params = {name: value for name, value in others.items() if name not in ours} | said


def refuse(p: Any, error: Exception) -> None:
    """Remember why this generation must not show a picture, and tell the user; API clients read the infotext."""
    if not isinstance(error, ErasureError):
        errors.report("Concept Erasure: unexpected error", exc_info=True)
    state = state_of(p)
    none = "No further picture was made." if state.batch else "No picture was made."
    reason = state.refusal = f"Concept Erasure: {places.told(error)} {none}"
    _write(p, {INFOTEXT_REFUSED: reason})
    if hasattr(p, "comment"):
        p.comment(reason)


def _match(p: Any) -> list[Applied]:
    """Bind what this generation asks for to the model that is loaded now.

    Raises:
        ErasureError: something cannot be applied.
    """
    state, profile = state_of(p), places.profile()
    always = SESSION.bind_profile(profile) if profile is not None else []
    asked = state.asked()
    # Without any wish the model need not even be of a known kind.
    wished = SESSION.bind(asked) if asked else []
    check_kept(always, wished, SESSION.products)
    state.bound = [*always, *wished]
    state.bound_to = _model_now()
    return state.bound


class EraseTag(extra_networks.ExtraNetwork):
    """``<erase:name:strength>``. The host calls it before it reads the prompts, in every batch and in the hires pass,
    also for prompts without the tag and for generations that run without scripts."""

    def __init__(self) -> None:
        super().__init__("erase")

    def activate(self, p: Any, params_list: Sequence[Any]) -> None:
        state = state_of(p)
        try:
            if getattr(p, "all_prompts", None) is None:
                state.outer = None  # A1111 encodes the empty prompt of a model that it has just read, and keeps that
            if getattr(p, "hr_c", None) is None:
                state.encoded.pop(True, None)  # the host may encode the hires prompt next, with other LoRAs or models
            state.tags = [wishes.from_tag([str(item) for item in params.items]) for params in params_list]
            bound = _match(p)
            if _is_swapping():
                put_on(p, bound)
            if not state.refusal:
                _note(p)
        except Exception as error:
            refuse(p, error)

    def deactivate(self, p: Any) -> None:
        """What is on the model stays until the next generation asks for something else."""


def _is_swapping() -> bool:
    """Whether erasures go on before the prompts are encoded, all at once. A model that nobody asked to change is left
    alone, of whatever kind it is."""
    return getattr(shared.sd_model, "forge_objects", None) is None


def put_on(p: Any, bound: list[Applied]) -> None:
    """A1111: make the model paint with exactly these erasures."""
    before, SESSION.encoded = SESSION.encoded, UNKNOWN  # of what the host encodes if this fails half-way
    if bound or SESSION.touched():
        patcher = SESSION.patcher()
        if not patcher.in_effect(bound):
            patcher.apply(bound)
    text_key = _text_key(bound)
    if text_key != before:
        forget_conditioning(p)
    SESSION.encoded = text_key


def _text_key(bound: Sequence[Applied]) -> str:
    return key_of([one for one in bound if one.layers(text=True)])


def forget_conditioning(p: Any) -> None:
    """Hosts reuse encoded prompts; those of another text encoder must not be."""
    for holder in (p, *type(p).__mro__):
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            cache = vars(holder).get(name)
            if isinstance(cache, list):
                cache[:] = [None] * len(cache)


def put_on_text(p: Any) -> None:
    """Before a batch is encoded: change the text encoders, and see that they are changed. On A1111 all has been put on
    when the tags were activated, but a request can have switched that off (``disable_extra_networks``)."""
    state = state_of(p)
    if not _is_swapping():
        state.encoded = {}
        _put_on_text(p, False, True)  # of the hires pass too, unless the host puts its own networks on first
    elif not state.refusal:
        try:
            put_on(p, _bound(p))
        except Exception as error:
            refuse(p, error)


def put_on_hires_text(p: Any, network_data: Any) -> None:
    """Forge family, after the networks of a prompt went on: if the hires prompt is encoded next, as ``put_on_text``.

    Where its LoRAs differ the host has taken its own text encoder again, and a hires checkpoint brings another one.
    """
    is_next = not _is_swapping() and getattr(p, "hr_c", None) is None
    if is_next and network_data is not None and network_data is getattr(p, "hr_extra_network_data", None):
        _put_on_text(p, True)


def _put_on_text(p: Any, *passes: bool) -> None:
    state = state_of(p)
    if state.refusal:
        return
    try:
        bound = _bound(p)
        text_key = _text_key(bound)
        if text_key or SESSION.encoded:
            forget_conditioning(p)
        SESSION.encoded = text_key
        if not text_key and not SESSION.touched():
            return
        patcher = SESSION.patcher()
        assert isinstance(patcher, ForgePatcher)
        patcher.apply(bound, text=True)
        if not text_key:
            return
        patcher.load_text()
        if not patcher.in_effect(bound, text=True):
            why = patcher.why_not(bound, text=True)
            raise PatchFailed(why or "The host did not put the erasure on its text encoder.")
        state.encoded |= dict.fromkeys(passes, (text_key, SESSION.held().mark))
    except Exception as error:
        refuse(p, error)


def put_on_unet(p: Any) -> None:
    """Forge family, before every sampling, hires pass included: patch the network that the host will use."""
    state = state_of(p)
    if _is_swapping() or state.refusal:
        return
    try:
        bound = _bound(p)
        if bound:
            SESSION.patcher().apply(bound)
    except Exception as error:
        refuse(p, error)


def _bound(p: Any) -> list[Applied]:
    """What must be on the model now; matched anew if the host has changed its model meanwhile."""
    state = state_of(p)
    if state.bound is None and getattr(p, "disable_extra_networks", False):
        state.tags = _unread_tags(p)
    if state.bound is None or state.bound_to != _model_now():
        return _match(p)
    return state.bound


def _unread_tags(p: Any) -> list[Wish]:
    """The tags of the present batch where neither our script nor the host has read them; raises as ``from_batch``."""
    size, number = max(1, int(p.batch_size)), int(getattr(p, "iteration", 0))
    prompts = list(p.all_prompts or [])[number * size : (number + 1) * size]
    return wishes.from_batch(prompts) if prompts else []


def check_step(params: Any) -> None:
    """Before every sampling step of every generation."""
    p = getattr(getattr(params, "denoiser", None), "p", None)
    try:
        if p is not None:
            _verify(p)
        elif places.profile() is not None or RUNNING.inner().asked():
            raise Refused("This sampler does not say what it paints for, so it cannot be checked what is erased.")
    except Exception as error:
        spoil(params, Refused(str(error)))  # first: if telling fails, hosts swallow that too
        if p is not None and not state_of(p).refusal:
            refuse(p, error)
        reason = str(error) if p is None else state_of(p).refusal
        spoil(params, Refused(reason))
        shared.state.textinfo = reason


def _verify(p: Any) -> None:
    """Raises:
    ErasureError: the model is not as this generation needs it.
    """
    state = state_of(p)
    if state.refusal:
        raise Refused(state.refusal)
    bound = _bound(p)
    if not bound and not SESSION.touched():
        return
    patcher = SESSION.patcher()
    if not patcher.applies_while_sampling and _text_key(bound):
        _verify_encoded(state.encoded.get(bool(getattr(p, "is_hr_pass", False))), _text_key(bound))
    if patcher.in_effect(bound):
        return
    if isinstance(patcher, ForgePatcher):
        why = patcher.why_not(bound)
        raise PatchFailed(why or f"The erasure is not on the model that is painting. {ALLOW}")
    if _text_key(bound):
        raise PatchFailed("The model was changed during the generation, after the prompts had been encoded.")
    put_on(p, bound)
    if not patcher.in_effect(bound):
        raise PatchFailed("The host did not keep the erasure on its model.")


def _verify_encoded(encoded: tuple[str, object] | None, text_key: str) -> None:
    """Forge family: see that the prompts were encoded by this model, with these erasures on it.

    Raises:
        PatchFailed: they were not.
    """
    if encoded is None or encoded[0] != text_key:
        raise PatchFailed(f"The prompts were encoded without the erasure. {ALLOW}")
    if encoded[1] is not SESSION.held().mark:
        raise PatchFailed("The model was changed during the generation, after the prompts had been encoded.")


def model_loaded(sd_model: Any) -> None:
    """The host has read a checkpoint, maybe into a model that erasures were on, maybe in mid-generation."""
    SESSION.model_was_loaded(sd_model)


def leave() -> None:
    """The extension is unloaded: the model is left as the host made it."""
    stay_enabled()
    SESSION.take_off()
    extra_networks.extra_network_registry.pop("erase", None)


def register() -> None:
    extra_networks.register_extra_network(EraseTag())
