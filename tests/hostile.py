"""Files that are not what they say: each case is a name, the bytes, and a part of the sentence that refuses it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from erasure_core.manifest import Manifest

Case = tuple[str, bytes, str]
GOOD = json.loads(Manifest(("a",), None, (), "esd", "", {}, 1, "sd1", "00", [0.5], "epsilon").to_json())
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "u1"}
DIFF = "lora_unet_x.diff"
UP, DOWN, ALPHA = "lora_unet_x.lora_up.weight", "lora_unet_x.lora_down.weight", "lora_unet_x.alpha"
NESTED = 10_000


def raw(header: str | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A file of any header, true or not."""
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def one(body: bytes = b"\0" * 16, name: str = DIFF, **changed: Any) -> bytes:
    """A file of one tensor [2, 2] with some entries of its header changed; ``None`` takes an entry out."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changed
    return raw(json.dumps({name: {key: value for key, value in entry.items() if value is not None}}), body)


def tensors(metadata: object = None, kind: str = "F32", **content: Any) -> bytes:
    """A sound file; ``content`` is by the short names diff, up, down and alpha."""
    names = {"diff": DIFF, "up": UP, "down": DOWN, "alpha": ALPHA}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    body = b""
    for short, value in content.items():
        array = np.asarray(value, NUMPY[kind])
        place = [len(body), len(body) + array.nbytes]
        header[names.get(short, short)] = {"dtype": kind, "shape": list(array.shape), "data_offsets": place}
        body += array.tobytes()
    return raw(json.dumps(header), body)


def manifest(text: str | None = None, **changed: Any) -> bytes:
    """A sound file with a manifest that is not."""
    return tensors({"erasure": json.dumps(GOOD | changed) if text is None else text}, diff=np.zeros((2, 2)))


def containers() -> Iterator[Case]:
    """What is wrong before any tensor is named."""
    yield "nothing", b"", "cut short"
    yield "seven bytes", b"\0" * 7, "cut short"
    yield "a poem", b"Shall I compare thee to a summer's day", "cut short"
    yield "a pickle", b"\x80\x04\x95" + b"\0" * 60, "safetensors"
    yield "a zip", b"PK\x03\x04" + b"\0" * 60, "cut short"
    yield "a web page", b"<!doctype html><script>alert(1)</script>", "cut short"
    yield "header of no length", raw(b""), "no JSON"
    yield "header longer than the file", raw("{}", length=3), "cut short"
    yield "header of 4 exabytes", raw("{}", length=2**62), "cut short"
    yield "header of all bits", raw("{}", length=2**64 - 1), "cut short"
    yield "header of 17 MB", raw(b" " * (17 * 2**20)), "too large to trust"
    yield "header of single quotes", raw("{'a': 1}"), "no JSON"
    yield "header in UTF-16", raw(json.dumps({DIFF: {}}).encode("utf-16")), "no JSON"
    yield "header of broken UTF-8", raw(b'{"\xff\xfe": {}}'), "no JSON"
    yield "header that is a list", raw("[1, 2]"), "no object"
    yield "header that is a number", raw("1"), "no object"
    yield "header that is null", raw("null"), "no object"
    yield "a million lists in a list", raw("[" + "[]," * 10**6 + "[]]"), "entries"
    yield "a million tensors", raw("{" + ",".join(f'"{i}":{{}}' for i in range(10**6)) + "}"), "entries"
    yield "20,001 tensors", raw(json.dumps({f"lora_{i}.diff": {} for i in range(20_001)})), "20001 tensors"
    yield "lists nested deep", raw("[" * NESTED), "levels"
    yield "objects nested deep", raw('{"a":' * NESTED + "1" + "}" * NESTED), "levels"
    yield "an open string", raw('{"a'), "no JSON"
    yield "a number of 5,000 digits", raw('{"a": ' + "9" * 5000 + "}"), "too large a number"
    yield "no tensors", raw("{}"), "changes no layer"
    yield "bytes behind the tensors", one(b"\0" * 24), "it holds 24"


def entries() -> Iterator[Case]:
    """What is wrong in the entry of a tensor."""
    two = '"dtype":"F32","shape":[2,2],"data_offsets"'
    yield "a text for an entry", raw(json.dumps({DIFF: "b"})), "does not describe a tensor"
    yield "an empty entry", raw(json.dumps({DIFF: {}})), "does not describe a tensor"
    yield "no type", one(dtype=None), "does not describe a tensor"
    yield "no shape", one(shape=None), "does not describe a tensor"
    yield "no place", one(data_offsets=None), "does not describe a tensor"
    yield "one entry too many", one(code="import os"), "does not describe a tensor"
    yield "same name twice", raw(f'{{"{DIFF}":{{{two}:[0,16]}},"{DIFF}":{{{two}:[0,16]}}}}', b"\0" * 16), "stands twice"
    yield "same entry twice", raw(f'{{"{DIFF}":{{{two}:[0,16],"shape":[4]}}}}', b"\0" * 16), "stands twice"
    for name, first, second, body in (("overlap", 0, 8, 24), ("same place twice", 0, 0, 16), ("gap", 0, 20, 36)):
        pair = f'"lora_a.diff":{{{two}:[{first},{first + 16}]}},"lora_b.diff":{{{two}:[{second},{second + 16}]}}'
        yield name, raw(f"{{{pair}}}", b"\0" * body), "overlap or leave gaps"
    yield "place outside", one(data_offsets=[1000, 1016]), "gaps"
    yield "body cut short", one(b"\0" * 8), "it holds 8"
    yield "shape larger than its place", one(shape=[9, 9]), "does not fill its place"
    yield "shape of exabytes", one(shape=[2**30, 2**30]), "does not fill its place"
    yield "shape that wraps around 64 bits", one(shape=[2**32, 2**32, 1]), "does not fill its place"
    yield "shape with nothing beside 2^50", one(b"", shape=[0, 2**50], data_offsets=[0, 0]), "an invalid shape"
    yield "negative shape", one(shape=[-2, -2]), "an invalid shape"
    yield "fractions as shape", one(shape=[2.0, 2.0]), "an invalid shape"
    yield "truth as shape", one(shape=[True, 4]), "an invalid shape"
    yield "text as shape", one(shape="22"), "an invalid shape"
    yield "shape of a hundred sides", one(shape=[1] * 100), "an invalid shape"
    yield "negative place", one(data_offsets=[-16, 0]), "an invalid place"
    yield "place that ends before it begins", one(data_offsets=[16, 0]), "does not fill its place"
    yield "place of three numbers", one(data_offsets=[0, 8, 16]), "an invalid place"
    yield "place beyond 64 bits", one(data_offsets=[0, 2**64]), "an invalid place"
    yield "unknown type", one(dtype="F4"), "as F4; changes are floating point numbers"
    yield "type that is a list", one(dtype=["F32"]), "an invalid type"
    yield "8-bit floats", one(b"\0" * 4, dtype="F8_E4M3", data_offsets=[0, 4]), "F8_E4M3"
    yield "whole numbers", tensors(kind="I64", diff=np.zeros((2, 2))), "I64"
    yield "bytes as factors", tensors(kind="U8", up=np.ones((2, 1)), down=np.ones((1, 2))), "U8"
    yield "metadata that are a list", raw(json.dumps({"__metadata__": [1]})), "metadata are not texts"
    yield "metadata that are numbers", tensors({"erasure": 5}, diff=np.zeros((2, 2))), "metadata are not texts"
    yield "metadata that are objects", tensors({"erasure": GOOD}, diff=np.zeros((2, 2))), "metadata are not texts"


def contents() -> Iterator[Case]:
    """Sound files whose tensors are no changes of layers."""
    zeros, ones = np.zeros((2, 2)), np.ones((4, 2))
    yield "a model's weight", tensors(**{"model.weight": zeros}), "not a change of a layer"
    yield "a path for a name", tensors(**{"../../etc/passwd.diff": zeros}), "not a change of a layer"
    yield "markup for a name", tensors(**{"<img src=x onerror=alert(1)>": zeros}), "not a change of a layer"
    yield "control characters for a name", tensors(**{"\x1b[2J\n": zeros}), "not a change of a layer"
    yield "an empty name", tensors(**{"": zeros}), "not a change of a layer"
    yield "a name of 2,000 characters", tensors(**{"lora_" + "x" * 2000 + ".diff": zeros}), "characters long"
    yield "set weights", tensors(**{"lora_unet_x.set_weight": zeros}), "not a change of a layer"
    yield "bias changes", tensors(**{"lora_unet_x.diff_b": zeros}), "not a change of a layer"
    yield "not a number", tensors(diff=zeros * np.nan), "not finite"
    yield "infinite", tensors(diff=zeros + np.inf), "not finite"
    yield "beyond float32", tensors(kind="F64", diff=zeros + 1e300), "not finite"
    yield (
        "finite factors of an infinite product",
        tensors(up=1e30 * ones[:, :1], down=1e30 * ones[:1, :1]),
        "not finite",
    )
    yield "one factor", tensors(up=ones), "incomplete or misshapen"
    yield "the other factor", tensors(down=ones), "incomplete or misshapen"
    yield "alpha alone", tensors(alpha=1.0), "incomplete or misshapen"
    yield "a number for a factor", tensors(up=ones, down=1.0), "incomplete or misshapen"
    yield "numbers for both factors", tensors(up=1.0, down=1.0), "incomplete or misshapen"
    yield "dense with alpha", tensors(diff=zeros, alpha=1.0), "incomplete or misshapen"
    yield "dense and factors", tensors(diff=zeros, up=zeros, down=zeros), "incomplete or misshapen"
    yield "ranks that differ", tensors(up=np.ones((4, 2)), down=np.ones((3, 4))), "incomplete or misshapen"
    yield "rank 0", tensors(up=np.ones((4, 0)), down=np.ones((0, 4))), "incomplete or misshapen"
    yield "no outputs", tensors(up=np.ones((0, 2)), down=np.ones((2, 4))), "incomplete or misshapen"
    yield "one factor of a convolution", tensors(up=np.ones((4, 2, 1, 1)), down=np.ones((2, 4))), "misshapen"
    yield "a kernel in the second factor", tensors(up=np.ones((4, 2, 3, 3)), down=np.ones((2, 4, 3, 3))), "misshapen"
    yield "a vector", tensors(diff=np.zeros(4)), "incomplete or misshapen"
    yield "three sides", tensors(diff=np.zeros((2, 2, 2))), "incomplete or misshapen"
    yield "five sides", tensors(diff=np.zeros((2, 2, 1, 1, 1))), "incomplete or misshapen"
    yield "alpha that is a matrix", tensors(up=ones, down=ones.T, alpha=zeros), "incomplete or misshapen"
    yield "alpha that is nothing", tensors(up=ones, down=ones.T, alpha=[]), "incomplete or misshapen"
    yield "alpha that is no number", tensors(up=ones, down=ones.T, alpha=np.nan), "not finite"
    yield "alpha that is infinite", tensors(up=ones, down=ones.T, alpha=-np.inf), "not finite"
    yield "alpha beyond float32", tensors(kind="F64", up=ones, down=ones.T, alpha=1e300), "not finite"


def manifests() -> Iterator[Case]:
    """Sound changes that are described wrongly."""
    yield "manifest that is no JSON", manifest("hello"), "manifest cannot be read"
    yield "manifest that is a list", manifest("[]"), "no JSON object"
    yield "manifest without entries", manifest("{}"), "lacks its entry 'format_version'"
    yield "manifest of 2 MB", manifest(json.dumps(GOOD | {"method": "x" * 2**21})), "characters long"
    yield "manifest of a later format", manifest(format_version=99), "newer version (format 99)"
    yield "manifest of format true", manifest(format_version=True), "format_version has the wrong type"
    yield "manifest of format 0", manifest(format_version=0), "format_version has the wrong type"
    yield "manifest of format '1'", manifest(format_version="1"), "format_version has the wrong type"
    for name in ("words", "keep", "alternative", "method", "settings", "family", "base_sketch", "base_fingerprint"):
        left = {key: value for key, value in GOOD.items() if key != name}
        yield f"manifest without {name}", manifest(json.dumps(left)), f"lacks its entry '{name}'"
    for name, value in (
        ("words", "abc"), ("words", [1]), ("words", None), ("words", {"a": 1}), ("keep", "abc"), ("keep", [["a"]]),
        ("alternative", 3), ("alternative", ["a"]), ("method", None), ("method", "x" * 5000), ("family", 5),
        ("settings", []), ("settings", "x"), ("measured", 1), ("steps_done", None), ("steps_done", -1),
        ("storage_error", "x"), ("storage_error", True), ("base_sketch", ["x"]), ("base_sketch", {}), ("dtype", 4),
    ):  # fmt: skip
        yield f"manifest with {name} {str(value)[:20]}", manifest(**{name: value}), f"{name} has the wrong type"
    yield "no words", manifest(words=[]), "concept is empty"
    yield "an empty word", manifest(words=[""]), "concept is empty"
    yield "a word of 5,000 characters", manifest(words=["x" * 5000]), "5000 characters long"
    yield "a word that rewrites the terminal", manifest(words=["\x1b[2Jball"]), "control characters"
    yield "half a character", manifest(words=["\ud800"]), "half a character"
    yield "a word that is also kept", manifest(words=["ball"], keep=["a ball"]), "both erased and kept"
    text = json.dumps(GOOD)
    for number in ("NaN", "Infinity", "-Infinity"):
        wrong = text.replace('"storage_error": 0.0', f'"storage_error": {number}')
        yield f"storage error {number}", manifest(wrong), "is not a number"
    yield "storage error 1e999", manifest(text.replace("0.0", "1e999")), "too large a number"
    yield "steps of 400 digits", manifest(text.replace('"steps_done": 1', f'"steps_done": 1{"0" * 400}')), "too large"
    yield "settings nested deep", manifest(text.replace('"settings": {}', '"settings": {"a":' + "[" * 60)), "levels"
    yield "manifest with an entry twice", manifest(text[:-1] + ', "words": ["b"]}'), "stands twice"


def hostile_files() -> list[Case]:
    """Every case."""
    return [*containers(), *entries(), *contents(), *manifests()]
