"""A run that is started again without a length keeps the length that it has.

Its length may have been typed at the first start only, and a packaged recipe has one of its own,
often a longer one. A recipe of the user's own, or one with an argument, says what it means. This
module imports no JAX.
"""

import os
from collections.abc import Collection
from typing import Any

from etils import epath

from atss_jax.run import recipe_changes, recipe_files, recipe_io
from atss_jax.run.recipe import Recipe


def of_run(
    recipe: Recipe, name: str, workdir: str | os.PathLike, given: Collection[str]
) -> tuple[dict[str, Any], str]:
    """The fields of a run's length, and a line that says so; {} and "" where the recipe's counts.

    Args:
      recipe: as named, without what was given beside it.
      name: of the recipe, as in --config.
      workdir: folder of the run; one without a run keeps nothing.
      given: fields that the user gave, as "group.field".

    Raises:
      UserError: the run's config.json is none.
    """
    path = epath.Path(workdir) / "config.json"
    if set(given) & set(recipe_changes.LENGTH) or not _is_packaged(name) or not path.exists():
        return {}, ""
    run = recipe_io.read_recipe(path)
    if run.run.max_minutes and "run.max_minutes" in given:
        return {}, ""  # the length was chosen in time, and is kept with the limit
    fields = {
        change.name: change.old
        for change in recipe_changes.changes(run, recipe)
        if change.name in recipe_changes.LENGTH
    }
    if not fields:
        return {}, ""
    return fields, (
        f"the run in {workdir} keeps its length of {_length(run)} ({name} has {_length(recipe)}); "
        "for a longer one, give --optim.num_epochs or --optim.num_steps"
    )


def _is_packaged(name: str) -> bool:
    """Whether this is a recipe of the package without an argument, which may hold a length."""
    if ":" in name:
        return False
    return recipe_files.find_recipe(name).resolve().parent == recipe_files.PACKAGED.resolve()


def _length(recipe: Recipe) -> str:
    """As messages show it."""
    optim = recipe.optim
    return f"{optim.num_steps} steps" if optim.num_steps else f"{optim.num_epochs:g} epoch(s)"
