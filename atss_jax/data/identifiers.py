"""Ids of images, categories and annotations: any integer or text in a file, int64 inside.

pycocotools keeps ids in int64, so ids that do not fit (text, UUIDs as integers) are numbered from 1
for it; results are written with the originals.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Int

MAX_SHOWN = 80
"""Characters of a wrong value in a message."""


class Ids(NamedTuple):
    """Ids by index."""

    inside: Int[np.ndarray, " N"]
    """int64: the originals where all of them fit, 1..N otherwise."""
    originals: tuple[int | str, ...] | None
    """None where `inside` are the originals."""


def is_id(value: Any) -> TypeGuard[int | str]:
    """Whether a JSON value can be an id: an integer (true and false are not), or some text."""
    return type(value) is int or (type(value) is str and value != "")


def sort_key(id_: int | str) -> tuple[bool, int | str]:
    """Integers by value, then texts."""
    return isinstance(id_, str), id_


def to_int64(ids: Sequence[int | str]) -> Ids:
    """Ids as int64, in their order."""
    if all(type(id_) is int and -(2**63) <= id_ < 2**63 for id_ in ids):
        return Ids(np.array(ids, np.int64), None)
    return Ids(np.arange(1, len(ids) + 1, dtype=np.int64), tuple(ids))


def shown(value: Any) -> str:
    """A value for a message, however long it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, deep nesting
        return f"of type {type(value).__name__}, too long to show"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
