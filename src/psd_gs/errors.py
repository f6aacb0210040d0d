"""The error tree. Every message says what was expected, what was received and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class PsdGsError(Exception):
    """Base of all errors that the user can act on; the command line prints it without a traceback."""


class ConfigError(PsdGsError):
    """An option, preset or YAML key that does not exist or has a value out of range."""


class InputError(PsdGsError):
    """A prompt, image, point cloud or mesh that cannot be used."""


class FormatError(InputError):
    """A file that is not what its name says, is truncated, or holds non-finite data."""


class UnsupportedError(FormatError):
    """A sound file that uses something known that is not read here; the message names the thing and the way out."""


class ModelError(PsdGsError):
    """Weights that are missing, truncated or of another architecture."""


class BackendError(PsdGsError):
    """A device or rasterizer that was asked for and cannot run."""


class OutputError(PsdGsError):
    """A target that cannot be written, or that holds other work."""


class BusyError(OutputError):
    """A folder in which another process works."""


class PluginError(PsdGsError):
    """An installed package that offers a prior, reward, preference or exporter, and is broken."""


LESS_MEMORY = (
    "Fit into less with --vram 24, 12 or 8, lower cameras.size, densify.cap or prior_size in a --config file, or close "
    "other programs on the GPU."
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine itself, has no more memory to give; each says so in its own way."""
    import torch

    said = isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "backend out of memory")
    )
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


@contextmanager
def enough_memory(where: str) -> Iterator[None]:
    """What runs out of memory in here ends in one line.

    Args:
        where: completes "out of memory ".

    Raises:
        BackendError: out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise BackendError(f"out of memory {where}. {LESS_MEMORY}") from error
