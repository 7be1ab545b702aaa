"""Every error that a user can cause, each with a message that says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

DeviceOutOfMemory: type[BaseException] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
"""What torch raises; it got a name of its own in torch 2.5."""
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "not enough gpu video memory",  # DirectML
    "invalid buffer size",  # Apple's, for one larger than it ever makes
    "status_alloc_failed",  # NVIDIA's libraries, which need memory of their own
    "unable to find a valid cudnn algorithm",
    "out_of_device_memory",  # Intel's
    "out_of_resources",
)
"""Of what devices and libraries say in lower case where memory is short, what tells it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short: only on CUDA and its like torch has a type of its own for that, and
    not for what their libraries find."""
    told = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
    return told or isinstance(error, (DeviceOutOfMemory, MemoryError))


@contextmanager
def telling_memory() -> Iterator[None]:
    """Inside, whatever a device says where its memory is short is one and the same error.

    Raises:
        DeviceOutOfMemory: it is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, DeviceOutOfMemory) or not is_out_of_memory(error):
            raise
        raise DeviceOutOfMemory(str(error)) from error


@contextmanager
def raising_out_of_memory() -> Iterator[None]:
    """Inside, or in a function that this decorates, a device that is short of memory is an error for the user.

    Raises:
        OutOfMemory: it is.
    """
    try:
        with telling_memory():
            yield
    except DeviceOutOfMemory as error:
        raise OutOfMemory(
            "The device has too little memory for this model; free some, paint smaller pictures, or use the CPU."
        ) from error


class ErasureError(Exception):
    """Base of all errors with a message for the user. ``exit_code`` is what the command line returns."""

    exit_code = 3


class InvalidConcept(ErasureError):
    """The concept, alternative or a kept prompt cannot be used."""


class InvalidSettings(ErasureError):
    """A method was given settings it cannot work with."""


class ModelError(ErasureError):
    """The base model is missing, corrupt or of a kind that cannot be used."""


class PromptTooLong(ErasureError):
    """A prompt has more tokens than the text encoder reads."""


class InvalidFile(ErasureError):
    """A file is missing, damaged, hostile or not an erasure."""


class Unconverted(InvalidFile):
    """A file is no erasure, but may hold what other software published, which can be converted into one."""


class OtherTraining(InvalidFile):
    """A resumable state is of a training with another concept, method, settings or model."""


class WrongBase(ErasureError):
    """An erasure was made for another base model."""


class TrainingFailed(ErasureError):
    """Training produced numbers that are not finite."""

    exit_code = 4


class OutOfMemory(ErasureError):
    """The device has too little memory. A training that had begun can be resumed; other work starts anew."""

    exit_code = 6


class OutputError(ErasureError):
    """A result cannot be written."""

    exit_code = 5


class InUse(OutputError):
    """Another process works on the file that a result is to be written to."""


class Cancelled(ErasureError):
    """The user stopped the work. A training can be resumed; other work starts anew."""

    exit_code = 130
