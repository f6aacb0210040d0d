"""Reading published weights into transformers' classes: safe, without a second copy, and strict about keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from psd_gs.errors import ModelError
from psd_gs.weights import compare_shapes

Network = TypeVar("Network", bound=nn.Module)
Tokenizer = TypeVar("Tokenizer", bound=Sized)


def find_file(path: str | Path, names: Sequence[str], what: str) -> Path:
    """``path`` itself where it is a file, else the first of ``names`` in the folder ``path``.

    Raises:
        ModelError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    state = f"a folder without {'it' if len(names) == 1 else 'them'}" if path.is_dir() else "nothing"
    raise ModelError(f"{what}: expected {' or '.join(names)} at {path}, received {state}. Check the path.")


def read_tensors(path: Path, what: str, *, mmap: bool = False) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a torch checkpoint, on the CPU.

    Nothing is unpickled but tensors. The wrappings that trainers leave are removed: an outer
    ``state_dict`` and a ``module.`` before every key.

    Args:
        path: of the file.
        what: it is for, for the message.
        mmap: tensors of a torch checkpoint stay in the file until they are used; older formats cannot do that.

    Raises:
        ModelError: not such a file, truncated, or one that holds more than tensors.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            state = state.get("state_dict", state)
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("the file holds something other than named tensors")
    except Exception as error:  # safetensors, zip archives and torch's restricted reader each raise their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{what}: expected a checkpoint of tensors, received {path} ({path.stat().st_size:,} bytes), which cannot "
            f"be read: {reason}. Download it again."
        ) from error
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def renamed(name: str, table: Sequence[tuple[str, str]]) -> str:
    """``name`` after all substitutions of a table, pattern to replacement, in order."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def checked_tokenizer(make: Callable[[], Tokenizer], vocabulary: int, what: str, path: Path, model: str) -> Tokenizer:
    """The tokenizer that ``make`` reads from ``path``, if it has ``vocabulary`` entries, as that of ``model`` has.

    Raises:
        ModelError: its files are damaged or another tokenizer's.
    """
    try:
        tokenizer = make()
    except Exception as error:  # tokenizers raises a bare Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{what}: cannot read the tokenizer {path}: {reason}. Download it again.") from error
    if len(tokenizer) != vocabulary:
        raise ModelError(
            f"{what}: expected a tokenizer of {vocabulary} entries, received {len(tokenizer)} in {path}. "
            f"Use the tokenizer of {model}."
        )
    return tokenizer


def build(
    make: Callable[[], Network],
    tensors: Mapping[str, Tensor],
    what: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    known: str = "",
) -> Network:
    """A network that is nothing but ``tensors``: frozen, in evaluation mode, never randomly initialized.

    Args:
        make: builds the network; called under the meta device.
        tensors: its state dict, every key and no other.
        what: for errors.
        device: where it goes.
        dtype: of its floating-point tensors.
        known: leave out tensors that the network has no place for, unless their names begin with this; empty: none.

    Raises:
        ModelError: names the first keys that are missing, too many or of another shape.
    """
    with torch.device("meta"):
        network = make()
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if known:
        tensors = {key: value for key, value in tensors.items() if key in expected or key.startswith(known)}
    compare_shapes(expected, {key: tuple(value.shape) for key, value in tensors.items()}, what)
    cast = {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in tensors.items()}
    network.load_state_dict(cast, strict=True, assign=True)
    for name, buffer in network.named_buffers():
        if buffer.is_meta:  # transformers' position_ids, which no checkpoint holds
            owner, _, leaf = name.rpartition(".")
            counted = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
            setattr(network.get_submodule(owner), leaf, counted)
    return network.requires_grad_(False).eval()
