"""The list of augmentations of a recipe: read from words, checked, applied in order.

>>> parse_augmentation("scale_crop(0.5, 2.0)")
Call(name='scale_crop', arguments=(0.5, 2.0))
>>> parse_augmentation("flipp(0.5)")
Traceback (most recent call last):
atss_jax.errors.UserError: config.data.augmentations: no augmentation 'flipp'. Did you mean \
flip(probability)?
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from atss_jax.config import Range
from atss_jax.data.augment import FUNCTIONS, Draws, NotBelow, Sample
from atss_jax.data.images import Placement
from atss_jax.errors import UserError

_WHERE = "config.data.augmentations"


class Call(NamedTuple):
    """One entry of the list."""

    name: str
    arguments: tuple[float, ...]


def parse_augmentation(text: str) -> Call:
    """An entry such as "flip(0.5)".

    Raises:
      UserError: not a name with numbers in parentheses, an unknown name, a wrong number of
        arguments, or one out of range; it gives the signature.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.keywords:
            raise ValueError(text)
        name, arguments = node.func.id, [ast.literal_eval(a) for a in node.args]
    except (SyntaxError, ValueError):
        raise UserError(
            f"{_WHERE}: {text!r} is not a name with arguments. Write it as in 'flip(0.5)'."
        ) from None
    if name not in FUNCTIONS:
        near = difflib.get_close_matches(name, FUNCTIONS, n=1, cutoff=0.0)[0]
        raise UserError(f"{_WHERE}: no augmentation {name!r}. Did you mean {_signature(near)}?")
    limits = _limits(name)
    if len(arguments) != len(limits) or any(type(a) not in (int, float) for a in arguments):
        count = f"{len(limits)} number{'s' if len(limits) > 1 else ''}"
        raise UserError(f"{_WHERE}: {text!r}: give {count}: {_signature(name)}.")
    given = dict(zip(limits, (float(a) for a in arguments), strict=True))
    for argument, value in given.items():
        for limit in limits[argument]:
            if isinstance(limit, Range) and not limit.holds(value):
                fault = f"{argument} must be {limit}"
            elif isinstance(limit, NotBelow) and value < given[limit.argument]:
                fault = f"{argument} must be at least {limit.argument}"
            else:
                continue
            raise UserError(f"{_WHERE}: {text!r}: {fault}: {_signature(name)}.")
    return Call(name, tuple(given.values()))


class Augmentations:
    """The augmentations of a training run; pickles into worker processes."""

    def __init__(self, entries: Sequence[str], *, seed: int, pool: Int[np.ndarray, " n"]):
        """Reads the list.

        Args:
          entries: as in `data.augmentations`.
          seed: of the draws.
          pool: records that may be mixed into another image.

        Raises:
          UserError: an entry is wrong.
        """
        self.calls = tuple(parse_augmentation(entry) for entry in entries)
        self._seed, self._pool = seed, pool

    def apply(self, sample: Sample, step: int, row: int, read: Callable[[int], Sample]) -> Sample:
        """Augments a row.

        Args:
          sample: the image, not augmented.
          step: of training.
          row: in the global batch.
          read: record -> its sample, not augmented; for those that mix several images.
        """

        def others(place: float, limit: tuple[int, int]) -> Sample:
            found = read(int(self._pool[int(place * len(self._pool))]))
            height, width = found.image.shape[:2]
            factor = min(limit[0] / height, limit[1] / width)
            fitted = (
                min(limit[0], max(1, round(height * factor))),
                min(limit[1], max(1, round(width * factor))),
            )
            return dataclasses.replace(found, placement=Placement.whole(fitted, limit))

        for place, call in enumerate(self.calls):
            more = {"others": others} if _wants_others(call.name) else {}
            draws = Draws(self._seed, step, row, place)
            sample = FUNCTIONS[call.name](sample, draws, *call.arguments, **more)
        return sample


@functools.cache
def _limits(name: str) -> dict[str, tuple[Any, ...]]:
    """Argument -> its limits, of an augmentation."""
    found = {}
    for argument, annotation in inspect.get_annotations(FUNCTIONS[name], eval_str=True).items():
        if typing.get_origin(annotation) is Annotated:
            found[argument] = typing.get_args(annotation)[1:]
    return found


@functools.cache
def _wants_others(name: str) -> bool:
    return "others" in inspect.signature(FUNCTIONS[name]).parameters


def _signature(name: str) -> str:
    return f"{name}({', '.join(_limits(name))})"
