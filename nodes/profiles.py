"""Safety profiles: made, applied in a graph, and applied by the server to every graph. All fail closed."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..erasure_core.errors import ErasureError, ModelError
from ..erasure_core.hosts.comfyui import ComfyModel
from ..erasure_core.hosts.comfyui_patches import Strengths, Wanted, lacking, put, refuse_taken_back, wanted_patches
from ..erasure_core.profile import (
    ProfileEntry,
    ProfileFailed,
    SafetyProfile,
    bind_entries,
    check_content,
    entries_for,
    make_profile,
    profile_names,
    profile_path,
    read_profile,
    write_profile,
)
from ..erasure_core.safe_files import read_header
from .host import CATEGORY, PREFIX, ErasureType, Item, Stack, file_fingerprint, library, working
from .refusal import Refused, hidden, profile_folder

APPLY_ID = f"{PREFIX}SafetyProfile"
SERVER_ID = f"{PREFIX}ServerProfile"
MARK = "concept_erasure_profile"
"""Under this key a MODEL or CLIP carries what the profiles that are on it asked for. A node may drop patches, or undo
them, and keep the mark: it says what to look for, and no more."""


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
                _check_name(profile)
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


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise ProfileFailed(f"{name!r} is not the name of a safety profile; choose or write one.")


class ServerProfile(io.ComfyNode):
    """What the server puts behind every node that yields a MODEL or CLIP while a default profile is set."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return hidden(
            io.Schema(
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
        )

    @classmethod
    def fingerprint_inputs(cls, profile: str, **others: Any) -> str:
        return profile_fingerprint(profile)

    @classmethod
    def execute(cls, profile: str, digest: str, model: Any = None, clip: Any = None) -> io.NodeOutput:
        with working():
            wanted = _as_queued(profile, digest)
            return io.NodeOutput(*apply_profile(wanted, model, clip))


def _as_queued(name: str, digest: str) -> SafetyProfile:
    """The profile that a graph was queued with.

    Raises:
        ProfileFailed: it is gone or was changed. A server that has a default profile exchanges these nodes when the
            graph is queued again; one that has none any more leaves them in.
    """
    remedy = "Queue again; where the server has no default profile any more, remove the Server Safety Profile nodes."
    try:
        wanted = load_profile(name)
    except ProfileFailed as error:
        raise ProfileFailed(f"{error} {remedy}") from error
    if wanted.digest() != digest:
        raise ProfileFailed(f"The safety profile {name!r} was changed after this graph was queued. {remedy}")
    return wanted


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
            _check_name(name)
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
    """MODEL and CLIP with a profile on them: what they lack of it is added, so one that carries it stays as it is.

    Nodes that merge models may weaken, undo or subtract what is on their inputs, and keep the marks.

    Raises:
        ProfileFailed: anything at all that keeps it from being applied whole.
    """
    try:
        wanted = _marked(profile, model), _marked(profile, clip)
        if None in wanted:
            wanted = _wanted(profile, model, clip)
        return _completed(model, profile, wanted[0] or {}), _completed(clip, profile, wanted[1] or {})
    except ProfileFailed:
        raise
    except ErasureError as error:
        raise ProfileFailed(f"The safety profile {profile.name!r} cannot be applied: {error}") from error


def _wanted(profile: SafetyProfile, model: Any, clip: Any) -> tuple[Wanted, Wanted]:
    """What a profile asks of MODEL and of CLIP."""
    loaded = ComfyModel(model, clip)
    entries = _reachable(profile, entries_for(profile, library(), loaded), model, clip)
    bound = bind_entries(profile, entries, library(), loaded)
    return wanted_patches(
        loaded, [(each.deltas, Strengths(each.entry.strength_unet, each.entry.strength_text)) for each in bound]
    )


def _completed(part: Any, profile: SafetyProfile, wanted: Wanted) -> Any:
    """MODEL or CLIP with what it lacks of a profile, and with its mark."""
    patcher = _patcher(part)
    if patcher is None:
        return part
    refuse_taken_back(patcher, wanted)
    lacks = lacking(patcher, wanted)
    if not lacks and _marked(profile, part) is not None:
        return part
    safe = part.clone()
    put(safe, lacks)
    if still := lacking(_patcher(safe), wanted):
        raise ModelError(f"ComfyUI did not keep the change of {min(still)}.")
    marks = dict(_patcher(safe).get_attachment(MARK) or {})
    _patcher(safe).set_attachments(MARK, marks | {profile.digest(): wanted})
    return safe


def _patcher(part: Any) -> Any:
    return getattr(part, "patcher", part)


def _reachable(profile: SafetyProfile, entries: list[ProfileEntry], model: Any, clip: Any) -> list[ProfileEntry]:
    """The entries that change what is connected: where MODEL and CLIP come from different nodes, each gets its own, and
    one of them maybe none.

    Raises:
        ProfileFailed: an entry changes both, but only one is connected, so that its base cannot be recognised.
    """
    if model is not None and clip is not None:
        return entries
    return [entry for entry in entries if _touches(profile, entry, text=model is None)]


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


def _marked(profile: SafetyProfile, part: Any) -> Wanted | None:
    """What a profile asked of a MODEL or CLIP that it was put on; ``None`` where it was not, and nothing of no part."""
    patcher = _patcher(part)
    if patcher is None:
        return {}
    asked: Wanted | None = (patcher.get_attachment(MARK) or {}).get(profile.digest())
    return asked


def is_of_profile(part: Any, patch: Any) -> bool:
    """Whether a patch on a MODEL's or CLIP's patcher, this very object, came with a profile."""
    marks = part.get_attachment(MARK) or {}
    return any(held is patch for asked in marks.values() for patches in asked.values() for _, held in patches)


NODES = [SafetyProfileNode, SaveSafetyProfile, ServerProfile, Refused]
