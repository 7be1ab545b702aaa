"""Recognising a base model by the tensors that an erasure touches, whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from .delta import weight_of


def fingerprint(layers: Mapping[str, nn.Module]) -> str:
    """SHA-256 over names, shapes and values of the layers' weights.

    Values are rounded to float16 first, so that one checkpoint has one fingerprint whether a host keeps it in float32
    or float16.
    """
    digest = hashlib.sha256()
    for name, layer in sorted(layers.items()):
        weight = weight_of(layer).detach()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()
