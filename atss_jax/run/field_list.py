"""`atss config`: the fields of the recipe, with default, allowed values and meaning.

This module imports no JAX.
"""

import fnmatch
import textwrap
from collections.abc import Sequence
from pathlib import Path

from atss_jax.config import FieldInfo, field_infos
from atss_jax.errors import UserError
from atss_jax.run import given_run, recipe_io
from atss_jax.run.recipe import Recipe


def find_recipe(words: Sequence[str], config: str | None) -> tuple[list[str], Recipe | None, str]:
    """(the words that are searched for, the recipe whose values are shown, what it is of).

    Args:
      words: as given; one that is the folder of a run names its recipe. One with a slash must be.
      config: recipe, by name or path; None for none.

    Raises:
      UserError: no such run or recipe, or several.
    """
    runs = [word for word in words if "/" in word or (Path(word) / "config.json").is_file()]
    others = [word for word in words if word not in runs]
    if len(runs) + (config is not None) > 1:
        raise UserError("atss config: give one run or one recipe, whose values are shown.")
    if runs:
        given_run.check_folder(Path(runs[0]))
        return others, recipe_io.read_recipe(Path(runs[0]) / "config.json"), runs[0]
    if config is None:
        return others, None, ""
    from atss_jax.run import recipe_files  # ml_collections: only where it is used

    values = recipe_files.load_recipe(config).to_dict()
    return others, recipe_io.recipe_from_mapping(values), config


def describe_fields(
    pattern: str, width: int, recipe: Recipe | None = None, source: str = ""
) -> str:
    """The fields of the recipe that match, with default, allowed values and meaning.

    Args:
      pattern: "" for all; a pattern over "group.field"; or words, each in the name or the meaning.
        A word that other trainers use finds the field that it is here.
      width: of a line, characters.
      recipe: whose values are shown too; None for none.
      source: what the recipe is of.

    Raises:
      UserError: no field matches.
    """
    lines = []
    for info in _matching(pattern):
        name = f"{info.group}.{info.name}"
        text = f"{name} = {info.default!r}  ({info.type})"
        if recipe is not None:
            value = getattr(getattr(recipe, info.group), info.name)
            text = f"{name} = {value!r} in {source}; default {info.default!r}  ({info.type})"
        lines += textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False)
        meaning = " ".join(info.description.split())
        lines += textwrap.wrap(meaning, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _matching(pattern: str) -> list[FieldInfo]:
    pattern = pattern.strip()
    own = recipe_io.SYNONYMS.get("_".join(pattern.split()), "")
    words = pattern.lower().split()
    if own and len(words) == 1:
        words = [own]
    found = []
    for group in recipe_io.GROUPS.values():
        for info in field_infos(group):
            name = f"{info.group}.{info.name}"
            text = f"{name} {info.description}".lower()
            is_named = name == own or fnmatch.fnmatch(name, pattern)
            if is_named or all(word in text for word in words):
                found.append(info)
    if not found:
        hint = recipe_io.WITHOUT_FIELD.get(pattern, "`atss config` lists all.")
        raise UserError(f"atss config: no field matches {pattern!r}. {hint}")
    return found
