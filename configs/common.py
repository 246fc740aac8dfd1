"""The one string argument of a recipe: `--config=configs/x.py:k=15,backbone=r101`."""

import difflib
from typing import Any

from ml_collections import ConfigDict

from atss_jax.errors import UserError
from atss_jax.run import recipe_io
from atss_jax.run.recipe import Recipe


def parse_arg(arg: str, **declared: Any) -> dict[str, Any]:
    """Values of a recipe's argument.

    Args:
      arg: "name=value,name=value"; a bare name means True. Lists use "+": "ratios=0.5+1+2".
      **declared: every known name with its default; the default's type is the value's.

    Returns:
      All declared names with their values.

    Raises:
      ValueError: unknown name (the nearest known one is named), or a value of another type.

    >>> parse_arg("k=15,dcn", k=9, dcn=False, backbone="r50")
    {'k': 15, 'dcn': True, 'backbone': 'r50'}
    """
    values = dict(declared)
    for part in filter(None, (arg or "").split(",")):
        name, _, text = part.partition("=")
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=1, cutoff=0.0)
            raise UserError(
                f"config argument {name!r}: not known. Did you mean {near[0]!r}? "
                f"Known: {', '.join(sorted(declared))}."
            )
        values[name] = _parse(name, text, declared[name])
    return values


def _parse(name: str, text: str, default: Any) -> Any:
    """`text` as the type of `default`."""
    kind = type(default)
    try:
        if kind is bool:
            return {"": True, "true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is tuple:
            return tuple(float(v) for v in text.split("+"))
        return kind(text)
    except (KeyError, ValueError):
        raise UserError(
            f"config argument {name}={text!r}: expected {kind.__name__}, as in {name}={default}."
        ) from None


def refuse_argument(arg: str, path: str) -> None:
    """Raises ValueError if a recipe without arguments was given one."""
    if arg:
        raise UserError(f"config argument {arg!r}: {path} takes none.")


def config_dict(recipe: Recipe) -> ConfigDict:
    """A recipe for the command line, where fields are given as --config.group.field=value."""
    return ConfigDict(recipe_io.recipe_to_dict(recipe)).lock()


def choose(name: str, value: str, options: dict[str, Any]) -> Any:
    """The option of a name, or a ValueError that lists them."""
    if value not in options:
        raise UserError(f"config argument {name}={value!r}: use one of {', '.join(options)}.")
    return options[value]
