"""The one string argument of a recipe: `--config=configs/x.py:k=15,backbone=r101`."""

import difflib
from typing import Any

from ml_collections import ConfigDict


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
            raise ValueError(
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
        raise ValueError(
            f"config argument {name}={text!r}: expected {kind.__name__}, as in {name}={default}."
        ) from None


def editable(config: ConfigDict) -> Any:
    """An unlocked recipe, to change fields of; typed as Any, since its attributes are dynamic."""
    return config.unlock()


def choose(name: str, value: str, options: dict[str, Any]) -> Any:
    """The option of a name, or a ValueError that lists them."""
    if value not in options:
        raise ValueError(f"config argument {name}={value!r}: use one of {', '.join(options)}.")
    return options[value]
