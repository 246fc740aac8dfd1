"""What the groups of a recipe have in common: fields that check themselves.

A group is a frozen dataclass beside the component that reads it. A field stands there once: its
name, type, allowed values and range in the annotation, its default, and its meaning as the string
below it. This module imports no JAX, so a wrong value is refused before any device is touched.

>>> @dataclasses.dataclass(frozen=True, kw_only=True)
... class Assigner(ConfigGroup, name="assigner"):
...     k: Annotated[int, Range(1)] = 9
>>> Assigner(k=0)
Traceback (most recent call last):
atss_jax.errors.UserError: config.assigner.k=0: must be at least 1.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from atss_jax.errors import UserError

__all__ = ["ConfigGroup", "FieldInfo", "Range", "field_infos"]

Group = TypeVar("Group", bound="ConfigGroup")


@dataclasses.dataclass(frozen=True)
class Range:
    """Limits of a number, or of every number in a tuple.

    Attributes:
      low: smallest allowed value, None for no limit.
      high: largest allowed value, None for no limit.
      above: exclusive lower limit.
      below: exclusive upper limit.
    """

    low: int | float | None = None
    high: int | float | None = None
    above: int | float | None = None
    below: int | float | None = None

    def holds(self, value: int | float) -> bool:
        """Whether a number lies within the limits; NaN never does."""
        return (
            not math.isnan(value)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """As in "at least 1", "above 0 and at most 1"."""
        words = {"above": self.above, "at least": self.low, "below": self.below}
        words["at most"] = self.high
        return " and ".join(f"{word} {v:g}" for word, v in words.items() if v is not None)


class ConfigGroup:
    """Base of the groups: checks types, allowed values and ranges when an instance is made.

    Subclasses are frozen keyword-only dataclasses, `class DataConfig(ConfigGroup, name="data")`;
    a check of several fields together overrides `check` and raises `UserError`.
    """

    __no_type_check__ = True
    """Runtime type checkers leave the fields to `__post_init__`, whose errors are for users."""
    group: ClassVar[str]
    """Name of the group in a recipe, as in "config.<group>.<field>"."""

    def __init_subclass__(cls, *, name: str):
        cls.group = name

    def __post_init__(self):
        """Checks every field; an int for a float, or a list for a tuple, is converted."""
        for name, annotation in _annotations(type(self)).items():
            where = f"config.{self.group}.{name}"
            object.__setattr__(self, name, _checked(where, getattr(self, name), annotation))
        self.check()

    def check(self) -> None:
        """Raises UserError where fields do not go together."""

    @classmethod
    def upgrade(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values as an older version wrote them, in the fields of today."""
        return values

    @classmethod
    def from_mapping(cls: type[Group], values: Mapping[str, Any]) -> Group:
        """A group from names and values; a field that is not given has its default.

        Raises:
          UserError: an unknown field (the nearest known one is named), or a wrong value.
        """
        known = _annotations(cls)
        values = cls.upgrade(values)
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
                raise UserError(
                    f"config.{cls.group}.{name}: no such field. Did you mean "
                    f"config.{cls.group}.{near}?"
                )
        return cls(**values)


class FieldInfo(typing.NamedTuple):
    """What is known of a field without an instance."""

    group: str
    name: str
    type: str
    """As a reader would write it: "int", "float, above 0", "a | b", "tuple of int"."""
    choices: tuple[str, ...]
    """Allowed words; () where any value of the type is."""
    default: Any
    description: str


def field_infos(cls: type[ConfigGroup]) -> list[FieldInfo]:
    """The fields of a group in order, with default, allowed values and meaning.

    Raises:
      TypeError: a field has no default or no description.
    """
    descriptions = _descriptions(cls)
    infos = []
    for field in dataclasses.fields(typing.cast(Any, cls)):
        if field.default is dataclasses.MISSING or not descriptions.get(field.name):
            raise TypeError(f"{cls.__name__}.{field.name}: give it a default and a description.")
        annotation = _annotations(cls)[field.name]
        infos.append(
            FieldInfo(
                cls.group,
                field.name,
                _type_text(annotation),
                _choices(annotation),
                field.default,
                descriptions[field.name],
            )
        )
    return infos


def choices(cls: type[ConfigGroup], field: str) -> tuple[str, ...]:
    """The words that a field allows; () where any value of its type is."""
    return _choices(_annotations(cls)[field])


@functools.cache
def _annotations(cls: type[ConfigGroup]) -> dict[str, Any]:
    hints = inspect.get_annotations(cls, eval_str=True)
    names = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
    return {name: hints[name] for name in names}


@functools.cache
def _descriptions(cls: type[ConfigGroup]) -> dict[str, str]:
    """The string below each field, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[before.target.id] = " ".join(str(after.value.value).split())
    return found


def _checked(where: str, value: Any, annotation: Any) -> Any:
    """`value` as the annotation asks, converted where that loses nothing.

    Raises:
      UserError: it is of another type, not among the choices, or out of range.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        value = _checked(where, value, arguments[0])
        for limits in arguments[1:]:
            for number in value if isinstance(value, tuple) else (value,):
                if not limits.holds(number):
                    raise UserError(f"{where}={value!r}: must be {limits}.")
        return value
    if origin is Literal:
        if type(value) in {type(a) for a in arguments} and value in arguments:
            return value
        allowed = ", ".join(str(a) for a in arguments)
        near = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{where}={value!r}: use one of {allowed}.{hint}")
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _checked(where, value, option)
            except UserError:
                continue
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = arguments[:1] * len(value) if arguments[-1:] == (Ellipsis,) else arguments
            if len(kinds) == len(value):
                try:
                    return tuple(_checked(where, v, k) for v, k in zip(value, kinds, strict=True))
                except UserError as error:
                    if ": use one of" in str(error):
                        raise
    elif annotation is float and type(value) is int:
        return float(value)
    elif type(value) is annotation:
        return value
    raise UserError(f"{where}={value!r}: must be {_type_text(annotation)}.")


def _type_text(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return ", ".join([_type_text(arguments[0]), *(str(a) for a in arguments[1:])])
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(a) for a in arguments)
    if origin is tuple:
        if not arguments:
            return "()"
        if arguments[-1] is Ellipsis:
            return f"tuple of {_type_text(arguments[0])}"
        return f"({', '.join(_type_text(a) for a in arguments)})"
    return annotation.__name__


def _choices(annotation: Any) -> tuple[str, ...]:
    """The words of a Literal, or of a tuple of Literals."""
    if typing.get_origin(annotation) is Literal:
        return tuple(str(a) for a in typing.get_args(annotation))
    return tuple(
        choice for a in typing.get_args(annotation) if a is not Ellipsis for choice in _choices(a)
    )
