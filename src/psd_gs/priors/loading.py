"""From a folder of a diffusers pipeline to its components: checked first, then loaded without any remote code."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from psd_gs.errors import ModelError
from psd_gs.weights import SKIPPED, Shapes, compare_shapes, components_of, pipeline_class, read_header, weight_files

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Pipeline = TypeVar("Pipeline", bound="DiffusionPipeline")

LIBRARIES = ("diffusers", "transformers")
"""Classes are taken from these alone, whatever a ``model_index.json`` says."""

OPTIONAL = (*SKIPPED, "image_encoder", "text_encoder_3", "tokenizer_3")
"""Components that a pipeline may lack."""

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in autoencoders that were saved before diffusers 0.12, which still loads them."""


def load_pipeline(cls: type[Pipeline], folder: Path, dtype: torch.dtype, **components: Any) -> Pipeline:
    """A pipeline with all its tensors and no other.

    Args:
        cls: expected class; its name must be the one in ``model_index.json``.
        folder: as ``save_pretrained`` or the hub lays it out.
        dtype: of the weights.
        components: used instead of those in the folder.

    Raises:
        ModelError: one line about the first thing that is wrong.
    """
    with explained(folder), without_bars():
        found = pipeline_class(folder)
        if found != cls.__name__:
            raise ModelError(
                f"{folder}: expected a {cls.__name__}, received a {found}. Name another folder or another --prior."
            )
        present = components_of(folder)
        unused: dict[str, Any] = dict.fromkeys((set(OPTIONAL) & _slots(cls)) - set(present))
        for name, (library, kind) in present.items():
            if name not in components:
                check_component(folder / name, library, kind)
        pipeline = cls.from_pretrained(
            folder,
            local_files_only=True,
            torch_dtype=None,
            dtype=dtype,
            variant=variant_of(folder),
            **{**unused, **components},
        )
        check_tokenizers(pipeline)
        return pipeline


def variant_of(folder: Path) -> str | None:
    """``fp16`` if components have such files; diffusers takes the plain ones of those that have none."""
    return "fp16" if any("fp16" in path.name for path in folder.glob("*/*.safetensors")) else None


def _slots(cls: type[DiffusionPipeline]) -> set[str]:
    required, optional = cls._get_signature_keys(cls)
    return set(required) | set(optional)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep the progress bars of diffusers and transformers away, which fill a terminal for a second of loading."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say in one line what diffusers, transformers, safetensors or the disk have against a folder."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(" For more information")[0]
        raise ModelError(
            f"cannot load the prior in {folder}: {reason[:250]}. Download or install it again, or name another folder."
        ) from error


def check_component(folder: Path, library: str, kind: str) -> None:
    """Compare the header of a component's weights with the network that its configuration describes.

    Raises:
        ModelError: files are missing or truncated, or tensors missing, unknown or of another shape.
    """
    if library not in LIBRARIES:
        raise ModelError(
            f"{folder}: expected a class of {' or '.join(LIBRARIES)}, received {kind} of {library}. "
            "Remote code is never run; use a repository with stock classes."
        )
    cls = getattr(importlib.import_module(library), kind, None)
    if cls is None:
        raise ModelError(f"{folder}: {library} has no class {kind}. Install a newer {library}, or name another folder.")
    if not folder.is_dir():
        raise ModelError(f"{folder}: expected the files of a {kind}, received no such folder. Download it again.")
    if not issubclass(cls, nn.Module):
        return
    network = on_meta(cls, folder)
    files = weight_files(folder)
    if any(file.suffix != ".safetensors" for file in files):  # a pickle is read with weights_only, when it is loaded
        return
    received = {name: shape for file in files for name, shape in read_header(file).items()}
    tied = set(getattr(network, "_tied_weights_keys", None) or ())
    expected = {name: tuple(t.shape) for name, t in network.state_dict().items() if name not in tied}
    compare_shapes(expected, renamed(received, expected, tied), str(folder))


def on_meta(cls: Any, folder: Path) -> nn.Module:
    """The network of a configuration without memory for its weights."""
    with torch.device("meta"):
        if cls.__module__.startswith("diffusers"):
            return cls.from_config(cls.load_config(folder, local_files_only=True))
        return cls(cls.config_class.from_pretrained(folder, local_files_only=True))


def renamed(received: Shapes, expected: Shapes, tied: set[str]) -> Shapes:
    """Tensors of older files under the names of today, as diffusers and transformers rename them when loading."""
    prefixed = any(name.startswith("text_model.") for name in expected)
    out = {}
    for name, shape in received.items():
        if name.endswith("position_ids") or name in tied:
            continue
        if not prefixed:
            name = name.removeprefix("text_model.")
        elif f"text_model.{name}" in expected:
            name = f"text_model.{name}"
        owner, _, leaf = name.rpartition(".")
        stem, _, last = owner.rpartition(".")
        if name not in expected and last in _OLD_ATTENTION:
            name = f"{stem}.{_OLD_ATTENTION[last]}.{leaf}"
        if name in expected and len(shape) == 4 and shape[2:] == (1, 1) and len(expected[name]) == 2:
            shape = shape[:2]
        out[name] = shape
    return out


def check_tokenizers(pipeline: DiffusionPipeline) -> None:
    """Every tokenizer must fit its text encoder.

    Raises:
        ModelError: more tokens than embeddings.
    """
    for suffix in ("", "_2", "_3"):
        tokenizer = getattr(pipeline, f"tokenizer{suffix}", None)
        encoder = getattr(pipeline, f"text_encoder{suffix}", None)
        if tokenizer is None or encoder is None:
            continue
        check_tokenizer(tokenizer, encoder, suffix)


def check_tokenizer(tokenizer: Any, encoder: Any, suffix: str = "") -> None:
    """A tokenizer must fit its text encoder; ``suffix`` is of their names.

    Raises:
        ModelError: more tokens than embeddings.
    """
    rows = encoder.config.vocab_size
    if len(tokenizer) > rows:
        raise ModelError(
            f"tokenizer{suffix}: expected at most {rows} tokens, as text_encoder{suffix} has, "
            f"received {len(tokenizer)}. Download both again."
        )
