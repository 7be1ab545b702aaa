"""Prompt files in LECO's form, presets, and several concepts in one."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest

from erasure_core import Concept
from erasure_core.cli.concept_arguments import add_concept_arguments, chosen_concept, implied_settings
from erasure_core.errors import ErasureError, InvalidConcept, InvalidFile, InvalidSettings
from erasure_core.layers import LAYER_GROUPS
from erasure_core.manifest import Manifest
from erasure_core.methods import METHODS
from erasure_core.presets import PRESETS, preset_settings
from erasure_core.prompt_file import parse_prompt_file, read_prompt_file

FILE = """# two concepts
- target: "van gogh" # the painter
  positive: "van gogh"
  unconditional: ""
  neutral: 'a child''s drawing'
  action: "erase"
  guidance_scale: 2.0
  resolution: 512
  batch_size: 2

- target: red car
  guidance_scale: 2
"""


def test_a_file_in_lecos_form() -> None:
    found = parse_prompt_file(FILE, "prompts.yaml")
    assert found.concept.words == ("van gogh", "red car")
    assert found.concept.instead == (("van gogh", "a child's drawing"),)
    assert found.negative == 2.0
    pairs = {saying.prompt: saying.instead for saying in found.concept.sayings()}
    assert pairs["a photo of a van gogh"] == "a photo of a child's drawing"
    assert pairs["the red car"] == "the"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ("- positive: x\n", "without a target"),
        ("- target: x\n  positive: y\n", "positive prompt differs"),
        ("- target: x\n  action: enhance\n", "'enhance' is not supported"),
        ("- target: x\n  unconditional: bad art\n", "the unconditional prompt is 'bad art', which is not supported"),
        ("- target: null\n", "without a target"),
        ('- target: "caf\\xe9"\n', r"line 1: an escape in .* is unknown"),
        ("- target: x\n  guidance_scale: 1\n- target: y\n  guidance_scale: 3\n", "different guidance_scale"),
        ("- target: x\n  guidance_scale: much\n", "must be a number"),
        ("- target: x\n  guidance_scale: nan\n", "must be a number"),
        ("- target: [ball, cube]\n", "line 1: .* another form; for a text put it in quotes"),
        ("- target: !!python/object/apply:os.system [id]\n", "another form"),
        ("- target: *a\n", "another form"),
        ("- target: a: b\n", "another form"),
        ("- target: x\n  neutral: y\n- target: X\n  neutral: z\n", "two alternatives"),
        ("- target: 'x\n", "line 1: the quotes"),
        ("target: x\n", "line 1: 'target: x' is not understood"),
        ("- target: x\n  colour: red\n", "line 2: 'colour: red' is not understood"),
        ("- target: x\n  target: y\n", "target is given twice"),
        ("- target: x\n  <<: *a\n", "line 2"),
        ("- target: " + "x" * 400, "400 characters long"),
    ],
)
def test_what_is_not_understood_is_said(text: str, message: str) -> None:
    with pytest.raises(ErasureError, match=message):
        parse_prompt_file(text, "prompts.yaml")


def test_nothing_is_written_in_many_ways_and_letters_too() -> None:
    """YAML's null is no text, and JSON's escapes are letters."""
    for nothing in ("null", "~", '""', "''", "", "Null # none"):
        assert not parse_prompt_file(f"- target: x\n  neutral: {nothing}\n", "p").concept.has_alternative, nothing
    written = parse_prompt_file(r'- target: "caf\u00e9 \"x\" \\"', "p").concept
    assert written.words == ('café "x" \\',)
    assert parse_prompt_file("- target: 'null'\n", "p").concept.words == ("null",)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="cannot be read"):
        read_prompt_file(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidFile, match="cannot be read"):
        read_prompt_file(tmp_path / "binary.yaml")
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    with pytest.raises(InvalidFile, match="more than 16 MiB"):
        read_prompt_file(tmp_path / "endless.yaml")


@contextmanager
def piped(content: bytes) -> Iterator[Path]:
    """A path whose content can be read once, as a shell's ``<(...)`` is."""
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    try:
        yield Path(f"/dev/fd/{reading}")
    finally:
        os.close(reading)


def test_a_prompt_file_may_be_a_pipe_and_have_a_byte_order_mark() -> None:
    with piped(b"\xef\xbb\xbf" + FILE.encode()) as path:
        options = parsed("--prompt-file", str(path))
        assert chosen_concept(options).words == ("van gogh", "red car")
        assert implied_settings(options, METHODS["esd"]) == {"negative": 2.0}


def test_words_and_kept_prompts_of_files(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_bytes(b"\xef\xbb\xbfa red box\n")
    (tmp_path / "leaking.txt").write_text("orb\n\n# a note\nround thing\n", encoding="utf-8")
    files = ("--keep-file", str(tmp_path / "keep.txt"), "--word-file", str(tmp_path / "leaking.txt"))
    concept = chosen_concept(parsed("--concept", "ball", "--word", "sphere", *files))
    assert concept.words == ("ball", "sphere", "orb", "round thing") and concept.keep == ("a red box",)
    with pytest.raises(InvalidConcept, match="--word-file and --instead belong"):
        chosen_concept(parsed("--also", "star", *files))


def test_several_concepts_keep_their_own_alternatives() -> None:
    joined = Concept.joined([Concept(("dog", "puppy"), "cat", ("a red ball",)), Concept(("star",))])
    assert joined.words == ("dog", "puppy", "star") and joined.has_alternative
    pairs = {saying.prompt: saying.instead for saying in joined.sayings()}
    assert (pairs["a dog"], pairs["a puppy"], pairs["a star"]) == ("a cat", "a cat", "a")
    said = {saying.prompt: saying.word for saying in joined.sayings()}
    assert [said[prompt] for prompt in ("a dog", "the puppy", "star")] == [0, 1, 2]
    with pytest.raises(InvalidConcept, match="is also the concept"):
        Concept.joined([Concept(("dog",), "star"), Concept(("star",))])
    with pytest.raises(InvalidConcept, match="not erased"):
        Concept(("dog",), None, (), (("star", "box"),))


def test_the_manifest_remembers_alternatives_of_words() -> None:
    manifest = Manifest(
        ("dog", "star"), None, (), "esd", "", {}, 1, "sd1", "", [], "epsilon", instead=(("dog", "cat"),)
    )
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.concept.instead == (("dog", "cat"),) and manifest.concept.each == (("dog", "star"),)
    several = replace(manifest, groups=(("dog",), ("star",)))
    assert Manifest.from_json(several.to_json()) == several and several.concept.each == (("dog",), ("star",))
    with pytest.raises(InvalidFile, match="groups has the wrong type"):
        Manifest.from_json(several.to_json().replace('["star"]]', '"star"]'))
    grown = replace(manifest, found=("star",))
    assert Manifest.from_json(grown.to_json()) == grown and grown.concept.named == ("dog",)
    with pytest.raises(InvalidFile, match="found has the wrong type"):
        Manifest.from_json(grown.to_json().replace('"found": ["star"]', '"found": [7]'))
    older = json.loads(manifest.to_json())
    del older["found"]
    assert Manifest.from_json(json.dumps(older)).concept.named == ("dog", "star"), "older files do not tell"
    with pytest.raises(InvalidFile, match="instead has the wrong type"):
        Manifest.from_json(manifest.to_json().replace('["dog", "cat"]', '["dog"]'))


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_concept_arguments(parser)
    return parser.parse_args(arguments)


def test_concepts_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(FILE, encoding="utf-8")
    options = parsed(
        "--concept", "dog", "--word", "puppy", "--also", "star=box", "--prompt-file", str(tmp_path / "p.yaml")
    )
    concept = chosen_concept(options)
    assert concept.words == ("dog", "puppy", "star", "van gogh", "red car")
    assert dict(concept.instead) == {"star": "box", "van gogh": "a child's drawing"}
    assert implied_settings(options, METHODS["esd"]) == {"negative": 2.0}
    assert implied_settings(options, METHODS["closed_form"]) == {}
    beside = {"negative_beside": 2.0} if hasattr(METHODS["leco"].settings, "negative_beside") else {}
    assert implied_settings(options, METHODS["leco"]) == {"negative": 2.0} | beside
    with pytest.raises(InvalidConcept, match="nothing to erase"):
        chosen_concept(parsed())
    with pytest.raises(InvalidConcept, match="--instead belong"):
        chosen_concept(parsed("--instead", "box", "--also", "star"))


def test_a_file_without_a_scale_leaves_the_methods_own(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("- target: van gogh\n", encoding="utf-8")
    assert implied_settings(parsed("--prompt-file", str(path)), METHODS["auto"]) == {}
    assert parse_prompt_file("- target: x\n- target: y\n  guidance_scale: 3\n", "p.yaml").negative == 3.0


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_preset_gives_valid_settings_to_every_method(preset: str, method: str) -> None:
    chosen = preset_settings(preset, METHODS[method])
    settings = METHODS[method].settings(**chosen)
    assert chosen.keys() <= {f.name for f in fields(settings)} and set(settings.layers.split("+")) <= set(LAYER_GROUPS)
    if METHODS[method].solve is not None:
        assert settings.layers in ("cross-attention", "cross-attention-kv")


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="choose from object, style"):
        preset_settings("weather", METHODS["esd"])
