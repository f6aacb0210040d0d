"""Where an asset came from (prompt, seed, models, scores), as JSON that every container accepts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

Metadata = Mapping[str, Any]
"""Field name to anything that JSON can hold; other values are written as their text."""

METADATA_KEY = "psd_gs"
"""Its name inside of containers of named values."""
RECORD = "psd_gs.json"
"""In the folder of a run: the metadata of everything in it."""


def to_json(metadata: Metadata, *, limit: int | None = None) -> str:
    """``metadata`` as one line of ASCII JSON.

    Args:
        metadata: fields by name. Non-finite numbers become null, because JSON has none.
        limit: most characters of the result. Above it the longest fields are shortened if they
            are text, else left out; a container with little room keeps what fits.
    """
    kept = jsonable(metadata)
    text = _dump(kept)
    while limit is not None and len(text) > limit:
        longest = max(kept, key=lambda name: len(_dump(kept[name])))
        value = kept[longest]
        if isinstance(value, str) and len(value) > 16:
            kept[longest] = value[: len(value) // 2].rstrip(".") + "..."
        else:
            del kept[longest]
        text = _dump(kept)
    return text


def jsonable(value: Any) -> Any:
    """A copy of ``value`` made of what strict JSON knows."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
