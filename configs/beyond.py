r"""After the paper: what later detectors added to ATSS, each part a name in this recipe's argument.

Not run on COCO by this project. `docs/beyond.md` says what each part is, which fields it sets and
what its formulas are checked against.

    python -m atss_jax.main --config=configs/beyond.py:gfl --workdir=workdirs/gfl
    python -m atss_jax.main --config=configs/beyond.py:qfl --workdir=workdirs/qfl

Names of methods stand for their parts, and names go together where they do not contradict each
other. Without any, the recipe is `configs/atss_r50_fpn_1x.py`.
"""

from collections.abc import Callable
from dataclasses import replace

from ml_collections import ConfigDict

from atss_jax.configs import atss_r50_fpn_1x, common
from atss_jax.errors import UserError
from atss_jax.run.recipe import Recipe


def _qfl(base: Recipe) -> Recipe:
    return replace(
        base,
        model=replace(base.model, centerness="none"),
        loss=replace(base.loss, cls_loss="quality_focal", box_weights="score"),
        eval=replace(base.eval, score="cls"),
    )


def _dfl(base: Recipe) -> Recipe:
    return replace(base, model=replace(base.model, regression="point", side_bins=16))


def _dgqp(base: Recipe) -> Recipe:
    return replace(base, model=replace(base.model, distribution_quality=True))


def _vfl(base: Recipe) -> Recipe:
    return replace(
        base,
        model=replace(base.model, centerness="none"),
        loss=replace(base.loss, cls_loss="varifocal", box_weights="iou"),
        eval=replace(base.eval, score="cls"),
    )


def _star(base: Recipe) -> Recipe:
    model = replace(base.model, regression="point", point_activation="exp", star_refinement=True)
    return replace(base, model=model)


PARTS: dict[str, Callable[[Recipe], Recipe]] = {
    "qfl": _qfl,
    "dfl": _dfl,
    "dgqp": _dgqp,
    "vfl": _vfl,
    "star": _star,
}
"""Name of a part -> what it changes, in the order of application."""

METHODS = {
    "gfl": ("qfl", "dfl"),
    "gflv2": ("qfl", "dfl", "dgqp"),
    "vfnet": ("vfl", "star"),
}
"""Name of a method -> its parts."""

NEEDS = {"dgqp": "dfl"}
"""A part -> the part that it works on."""

CONTRADICTIONS = (("qfl", "vfl"), ("dfl", "star"))
"""Parts that set the same thing to different values."""


def recipe(arg: str = "") -> Recipe:
    """The recipe of some parts.

    Args:
      arg: names of `PARTS` and `METHODS`, "name,name".

    Raises:
      UserError: an unknown name, or parts that contradict each other or lack what they work on.
    """
    chosen = common.parse_arg(arg, **dict.fromkeys((*PARTS, *METHODS), False))
    parts = {part for part in PARTS if chosen[part]}
    for method, of_method in METHODS.items():
        parts |= set(of_method) if chosen[method] else set()
    for one, other in CONTRADICTIONS:
        if {one, other} <= parts:
            raise UserError(f"config argument {arg!r}: {one} and {other} exclude each other.")
    for one, other in NEEDS.items():
        if one in parts and other not in parts:
            raise UserError(f"config argument {arg!r}: {one} works on {other}. Add {other}.")
    made = atss_r50_fpn_1x.recipe()
    for name, change in PARTS.items():
        made = change(made) if name in parts else made
    return made


def get_config(arg: str = "") -> ConfigDict:
    """The recipe for the command line."""
    return common.config_dict(recipe(arg))
