"""Safety profiles: made, applied in a graph, and applied by the server to every graph. All fail closed."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..erasure_core.errors import ErasureError
from ..erasure_core.hosts.comfyui import ComfyModel
from ..erasure_core.hosts.comfyui_patches import Strengths, apply_deltas, is_applied
from ..erasure_core.profile import (
    ProfileEntry,
    ProfileFailed,
    SafetyProfile,
    bind_profile,
    check_content,
    make_profile,
    profile_names,
    profile_path,
    read_profile,
    write_profile,
)
from ..erasure_core.safe_files import read_header
from .host import CATEGORY, PREFIX, ErasureType, Item, Stack, file_fingerprint, library, working
from .refusal import Refused, profile_folder

APPLY_ID = f"{PREFIX}SafetyProfile"
SERVER_ID = f"{PREFIX}ServerProfile"
MARK = "concept_erasure_profile"
"""Under this key a MODEL or CLIP carries the patches of the profiles that are on it."""


def load_profile(name: str) -> SafetyProfile:
    """A profile of the host's folder.

    Raises:
        ProfileFailed: there is none of that name, which may be the file's or as it was given to Save Safety Profile, or
            it is damaged.
    """
    path = profile_path(profile_folder(), name)
    if not path.is_file():
        raise ProfileFailed(
            f"There is no safety profile {name!r} in {profile_folder()}; no picture is made without it."
        )
    return read_profile(path)


def profile_fingerprint(name: str) -> str:
    """Changes when the profile or one of its files does."""
    path = profile_path(profile_folder(), name)
    try:
        files = [folder / entry.file for entry in read_profile(path).entries for folder in library().folders]
    except ErasureError:
        files = []
    return file_fingerprint([path, *files])


class SafetyProfileNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=APPLY_ID,
            display_name="Safety Profile",
            category=CATEGORY,
            description="Applies a named list of erasures, whole or not at all: if anything is wrong, the graph stops.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the profile's erasures were made on."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Combo.Input("profile", options=profile_names(profile_folder()), tooltip="From Save Safety Profile."),
            ],
            outputs=[
                io.Model.Output("safe_model", display_name="model"),
                io.Clip.Output("safe_clip", display_name="clip"),
            ],
        )

    @classmethod
    def validate_inputs(cls, profile: str | None) -> bool | str:
        # Not every host checks a choice against its list, and the branch that saves the profile must run without this.
        try:
            if profile is not None:
                load_profile(profile)
        except ProfileFailed as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, profile: str, **others: Any) -> str:
        return profile_fingerprint(profile)

    @classmethod
    def execute(cls, model: Any, clip: Any, profile: str) -> io.NodeOutput:
        with working():
            return io.NodeOutput(*apply_profile(load_profile(profile), model, clip))


class ServerProfile(io.ComfyNode):
    """What the server puts behind every node that yields a MODEL or CLIP while a default profile is set."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=SERVER_ID,
            display_name="Server Safety Profile",
            category=f"{CATEGORY}/internal",
            description="Put into graphs by the server itself while a default safety profile is set.",
            inputs=[
                io.String.Input("profile", default="", tooltip="The default profile of this server."),
                io.String.Input("digest", default="", tooltip="Of the profile when the graph was queued."),
                io.Model.Input("model", optional=True, tooltip="What the node before it yields."),
                io.Clip.Input("clip", optional=True, tooltip="What the node before it yields."),
            ],
            outputs=[
                io.Model.Output("safe_model", display_name="model"),
                io.Clip.Output("safe_clip", display_name="clip"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, profile: str, **others: Any) -> str:
        return profile_fingerprint(profile)

    @classmethod
    def execute(cls, profile: str, digest: str, model: Any = None, clip: Any = None) -> io.NodeOutput:
        with working():
            wanted = load_profile(profile)
            if wanted.digest() != digest:
                raise ProfileFailed(
                    f"The safety profile {profile!r} was changed after this graph was queued; queue again."
                )
            return io.NodeOutput(*apply_profile(wanted, model, clip))


class SaveSafetyProfile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=f"{PREFIX}SaveSafetyProfile",
            display_name="Save Safety Profile",
            category=CATEGORY,
            description="Writes a named list of erasures with their strengths, pinned to the files as they are now.",
            inputs=[
                ErasureType.Input("erasure", tooltip="One erasure or a stack; each must be a file in models/erasures."),
                io.String.Input(
                    "name", default="studio", tooltip="A taken name is only accepted for the same content."
                ),
            ],
            outputs=[io.String.Output("path", display_name="path")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, **others: Any) -> str:
        # Where somebody has removed the file, the host's cache must not stand for it.
        return str(isinstance(name, str) and profile_path(profile_folder(), name).is_file())

    @classmethod
    def execute(cls, erasure: Stack, name: str) -> io.NodeOutput:
        with working():
            wanted = [(_library_name(item), item.unet, item.text) for item in erasure]
            path = write_profile(profile_folder(), make_profile(name, library(), wanted))
            return io.NodeOutput(str(path), ui={"text": [f"{path.name}: {len(wanted)} erasures"]})


def _library_name(item: Item) -> str:
    if item.is_file:
        for folder in library().folders:
            if item.stored.path.is_relative_to(folder):
                name = item.stored.path.relative_to(folder).as_posix()
                return name
    raise ProfileFailed(f"{item.stored.path.name} is no file in models/erasures; put it there with Save Erasure first.")


def apply_profile(profile: SafetyProfile, model: Any, clip: Any) -> tuple[Any, Any]:
    """MODEL and CLIP with a profile on them; one that carries it already stays as it is.

    Raises:
        ProfileFailed: anything at all that keeps it from being applied whole.
    """
    if _carries(model, profile) and _carries(clip, profile):
        return model, clip
    try:
        return _applied(profile, model, clip)
    except ProfileFailed:
        raise
    except ErasureError as error:
        raise ProfileFailed(f"The safety profile {profile.name!r} cannot be applied: {error}") from error


def _applied(profile: SafetyProfile, model: Any, clip: Any) -> tuple[Any, Any]:
    before = [_patches(part) for part in (model, clip)]
    loaded = ComfyModel(model, clip)
    for bound in bind_profile(_reachable(profile, model, clip), library(), loaded):
        strengths = Strengths(bound.entry.strength_unet, bound.entry.strength_text)
        loaded = ComfyModel(*apply_deltas(loaded, bound.deltas, strengths))
    if model is not None and loaded.patcher is model:
        loaded.patcher = model.clone()
    if clip is not None and loaded.clip is clip:
        loaded.clip = clip.clone()
    for part, earlier in zip((loaded.patcher, loaded.clip), before, strict=True):
        if part is not None:
            _mark(part, profile, earlier)
    return loaded.patcher, loaded.clip


def _reachable(profile: SafetyProfile, model: Any, clip: Any) -> SafetyProfile:
    """The entries that change what is connected. Where MODEL and CLIP come from different nodes, each gets its own.

    Raises:
        ProfileFailed: an entry changes both, but only one is connected, so that its base cannot be recognised.
    """
    if model is not None and clip is not None:
        return profile
    kept = [entry for entry in profile.entries if _touches(profile, entry, text=model is None)]
    return profile if len(kept) == len(profile.entries) else _Partial(profile.name, tuple(kept))


class _Partial(SafetyProfile):
    """The part of a profile that concerns one of two links; it may be empty."""

    def __post_init__(self) -> None:
        return None


def _touches(profile: SafetyProfile, entry: ProfileEntry, text: bool) -> bool:
    path = library().find(entry.file)
    check_content(entry, path)  # before its header says which of the two links it is for
    names = [name for name in read_header(path) if name != "__metadata__"]
    of_text = [name.startswith("lora_te") for name in names]
    if any(of_text) and not all(of_text):
        raise ProfileFailed(
            f"The safety profile {profile.name!r} cannot be applied: {entry.file} changes MODEL and CLIP, which come "
            "from different nodes here. Load both from one checkpoint."
        )
    return any(of_text) == text


def _patches(part: Any) -> dict[str, int]:
    patcher = getattr(part, "patcher", part)
    return {} if patcher is None else {key: len(patches) for key, patches in patcher.patches.items()}


def _mark(part: Any, profile: SafetyProfile, before: dict[str, int]) -> None:
    patcher = getattr(part, "patcher", part)
    added = {key: [p[1] for p in patches[before.get(key, 0) :]] for key, patches in patcher.patches.items()}
    marks = dict(patcher.get_attachment(MARK) or {})
    marks[profile.digest()] = {key: patches for key, patches in added.items() if patches}
    patcher.set_attachments(MARK, marks)


def _carries(part: Any, profile: SafetyProfile) -> bool:
    """Whether a profile is on a MODEL or CLIP: its very patches, for a node may drop patches and keep the mark."""
    patcher = getattr(part, "patcher", part)
    if patcher is None:
        return True
    marks = patcher.get_attachment(MARK) or {}
    if profile.digest() not in marks:
        return False
    return all(
        is_applied(patcher, {key: patch}) for key, patches in marks[profile.digest()].items() for patch in patches
    )


def is_of_profile(part: Any, patch: Any) -> bool:
    """Whether a patch on a MODEL's or CLIP's patcher, this very object, came with a profile."""
    marks = part.get_attachment(MARK) or {}
    return any(held is patch for added in marks.values() for patches in added.values() for held in patches)


NODES = [SafetyProfileNode, SaveSafetyProfile, ServerProfile, Refused]
