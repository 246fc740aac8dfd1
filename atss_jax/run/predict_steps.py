"""From a recipe to predict steps: the one place where its groups meet post-processing."""

from typing import Any, NamedTuple

from jax.sharding import Mesh

from atss_jax.evaluation.passes import Pass, make_passes
from atss_jax.evaluation.postprocess import make_settings
from atss_jax.evaluation.predict_step import PredictStep, make_predict_step
from atss_jax.models.normalization import Normalization
from atss_jax.run.recipe import Recipe


class Look(NamedTuple):
    """One look at images: at which size, mirrored or not, and the step that does it."""

    settings: Pass
    predict_step: PredictStep


def normalization(config: Recipe) -> Normalization:
    """How the recipe normalises images."""
    data = config.data
    return Normalization(data.mean, data.std, data.channel_order)


def predict_step(
    config: Recipe, model: Any, *, mesh: Mesh | None = None, flip: bool = False
) -> PredictStep:
    """The recipe's predict step, see `evaluation.predict_step.make_predict_step`.

    Args:
      config: the recipe.
      model: the network.
      mesh: devices over which a batch is split; None for whatever device holds it.
      flip: look at mirrored images.
    """
    settings = make_settings(config.eval, config.model.regression)
    return make_predict_step(
        model,
        config.anchors,
        normalization(config),
        settings,
        dtype=config.model.dtype,
        mesh=mesh,
        flip=flip,
    )


def make_looks(config: Recipe, model: Any, *, mesh: Mesh | None = None) -> tuple[Look, ...]:
    """What `eval.multiscale` asks for: one look, or several whose detections are merged.

    Args:
      config: the recipe.
      model: the network.
      mesh: see `predict_step`.
    """
    plain = predict_step(config, model, mesh=mesh)
    mirrored = predict_step(config, model, mesh=mesh, flip=True)
    passes = make_passes(config.eval.multiscale, config.data.short_side, config.data.max_long_side)
    return tuple(Look(p, mirrored if p.flip else plain) for p in passes)
