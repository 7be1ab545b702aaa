"""Safety profiles: read back as written, and refused as a whole when any part does not hold."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from erasure_core import Concept
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.library import Library
from erasure_core.making import make_erasure
from erasure_core.methods import find_method
from erasure_core.profile import (
    ProfileEntry,
    ProfileFailed,
    SafetyProfile,
    bind_profile,
    make_profile,
    profile_names,
    profile_path,
    read_profile,
    write_profile,
)
from erasure_core.progress import Silent

METHOD = find_method("closed_form")


@pytest.fixture(scope="module")
def made(pico_models: dict[str, DiffusersModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two erasures, made once."""
    folder = tmp_path_factory.mktemp("made")
    for word in ("ball", "cat"):
        one = make_erasure(Library([folder]), pico_models["sd1"], Concept((word,)), METHOD, METHOD.settings(), Silent())
        one.path.rename(one.path.with_name(f"{word}.safetensors"))
    return folder


@pytest.fixture
def library(made: Path, tmp_path: Path) -> Library:
    return Library([Path(shutil.copytree(made, tmp_path / "erasures"))])


@pytest.fixture
def profile(library: Library) -> SafetyProfile:
    return make_profile("studio", library, [("ball.safetensors", 1.0, 1.0), ("cat.safetensors", 0.5, 0.0)])


def test_reads_what_was_written(profile: SafetyProfile, tmp_path: Path) -> None:
    path = write_profile(tmp_path, profile)
    assert read_profile(path) == profile and profile_names(tmp_path) == ["studio"]
    assert read_profile(path).digest() == profile.digest() != replace(profile, name="other").digest()


def test_binds_every_entry_at_its_strengths(profile: SafetyProfile, library: Library, pico: DiffusersModel) -> None:
    bound = bind_profile(profile, library, pico)
    assert [len(b.deltas) for b in bound] == [len(bound[0].deltas)] * 2
    name = next(iter(bound[1].deltas))
    assert (bound[1].strength(name), bound[1].strength("text_encoder.text_model.x")) == (0.5, 0.0)


def test_another_profile_of_that_name_is_not_overwritten(profile: SafetyProfile, tmp_path: Path) -> None:
    write_profile(tmp_path, profile)
    write_profile(tmp_path, profile)
    weaker = replace(profile, entries=profile.entries[:1])
    with pytest.raises(ProfileFailed, match="another profile"):
        write_profile(tmp_path, weaker)
    write_profile(tmp_path, weaker, overwrite=True)
    assert read_profile(profile_path(tmp_path, "studio")) == weaker


def test_a_missing_file_fails_the_whole_profile(profile: SafetyProfile, library: Library, pico: DiffusersModel) -> None:
    library.find("cat.safetensors").unlink()
    with pytest.raises(ProfileFailed, match="no erasure 'cat"):
        bind_profile(profile, library, pico)


def test_an_exchanged_file_fails_the_whole_profile(
    profile: SafetyProfile, library: Library, pico: DiffusersModel
) -> None:
    library.find("ball.safetensors").replace(library.find("cat.safetensors"))
    library.new_path("ball").write_bytes(library.find("cat.safetensors").read_bytes())
    with pytest.raises(ProfileFailed, match="not the file"):
        bind_profile(profile, library, pico)


def test_a_kind_of_model_that_nothing_is_for_fails(
    profile: SafetyProfile, library: Library, pico_models: dict[str, DiffusersModel]
) -> None:
    with pytest.raises(ProfileFailed, match=r"none of its erasures is for this kind of model \(sdxl\)"):
        bind_profile(profile, library, pico_models["sdxl"])


def test_each_kind_of_model_gets_what_is_for_it(
    made: Path, library: Library, pico_models: dict[str, DiffusersModel], tmp_path: Path
) -> None:
    large = make_erasure(
        Library([tmp_path / "large"]), pico_models["sdxl"], Concept(("ball",)), METHOD, METHOD.settings(), Silent()
    )
    shutil.copy(large.path, library.new_path("large"))
    entries = [("ball.safetensors", 1.0, 1.0), ("large.safetensors", 0.5, 0.5), ("cat.safetensors", 1.0, 1.0)]
    both = make_profile("school", library, entries)
    bound = {family: bind_profile(both, library, pico_models[family]) for family in ("sd1", "sdxl")}
    named = {family: [one.entry.file for one in found] for family, found in bound.items()}
    assert named == {"sd1": ["ball.safetensors", "cat.safetensors"], "sdxl": ["large.safetensors"]}
    with pytest.raises(ProfileFailed, match=r"this kind of model \(sd2\)"):
        bind_profile(both, library, pico_models["sd2"])
    other = copy.deepcopy(pico_models["sd1"])
    for layer in other.layers().values():
        layer.weight.data.mul_(1.5)  # type: ignore[operator,union-attr]
    with pytest.raises(ProfileFailed, match="another base model"):  # of one kind all must fit
        bind_profile(both, library, other)
    # What is left out is looked at too: nobody takes an entry out of a profile by an exchange of its file.
    library.new_path("large").write_bytes((made / "cat.safetensors").read_bytes())
    for family in ("sd1", "sdxl"):
        with pytest.raises(ProfileFailed, match="not the file"):
            bind_profile(both, library, pico_models[family])
    shutil.copy(large.path, library.new_path("cat"))
    shutil.copy(large.path, library.new_path("large"))
    with pytest.raises(ProfileFailed, match="not the file"):
        bind_profile(both, library, pico_models["sd1"])
    library.new_path("cat").unlink()
    with pytest.raises(ProfileFailed, match="no erasure 'cat"):
        bind_profile(both, library, pico_models["sdxl"])


def test_a_file_that_does_not_say_what_it_is_for_is_for_all(
    library: Library, pico_models: dict[str, DiffusersModel]
) -> None:
    save_file(load_file(library.find("cat.safetensors")), library.find("cat.safetensors"))
    profile = make_profile("plain", library, [("ball.safetensors", 1.0, 1.0), ("cat.safetensors", 1.0, 1.0)])
    assert len(bind_profile(profile, library, pico_models["sd1"])) == 2
    with pytest.raises(ProfileFailed, match="another kind of model"):
        bind_profile(profile, library, pico_models["sdxl"])


def test_what_would_change_nothing_fails(library: Library, pico: DiffusersModel) -> None:
    """The closed form leaves the text encoder alone: a strength for that alone switches it off."""
    profile = make_profile("off", library, [("ball.safetensors", 0.0, 1.0)])
    with pytest.raises(ProfileFailed, match="change nothing"):
        bind_profile(profile, library, pico)


@pytest.mark.parametrize("entry", [("../x.safetensors", 1.0, 1.0), ("x.safetensors", 0.0, 0.0),
                                   ("x.safetensors", -1.0, 1.0), ("x.safetensors", float("nan"), 1.0)])  # fmt: skip
def test_entries_that_cannot_protect_are_refused(entry: tuple[str, float, float]) -> None:
    with pytest.raises(ProfileFailed):
        ProfileEntry(*entry)


@pytest.mark.parametrize("change", [{"entries": []}, {"entries": {}}, {"entries": ["x"]}, {"name": 3}, {"name": " "},
                                    {"format_version": 99}, {"entries": [{"file": 3}]},
                                    {"entries": [{"file": "a.safetensors", "strength_text": ""}]},
                                    {"entries": [{"file": "a.safetensors", "strength_text": 10**400}]}])  # fmt: skip
def test_damaged_profiles_are_refused(change: dict[str, object], profile: SafetyProfile, tmp_path: Path) -> None:
    path = write_profile(tmp_path, profile)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ProfileFailed):
        read_profile(path)


def test_a_name_of_long_letters_has_a_file(profile: SafetyProfile, tmp_path: Path) -> None:
    named = replace(profile, name="梵" * 100)
    assert read_profile(write_profile(tmp_path, named)) == named
    with pytest.raises(ProfileFailed, match="another profile"):
        write_profile(tmp_path, replace(profile, name="梵" * 99 + "高"))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_files_that_are_no_profiles_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.profile.json"
    path.write_text(text)
    with pytest.raises(ProfileFailed):
        read_profile(path)
    with pytest.raises(ProfileFailed, match="cannot be read"):
        read_profile(tmp_path / "missing.profile.json")
