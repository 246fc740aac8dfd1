"""A tiny untrained detector in a workdir, for the tests of prediction, export and reports."""

from typing import Any

import jax
import numpy as np
from etils import epath

from atss_jax.configs import coco_json
from atss_jax.models.detector import DetectorNetwork, init_variables
from atss_jax.run import recipe_io, workdir_files
from atss_jax.run.recipe import Recipe
from atss_jax.runtime.checkpoint import Checkpointer

CLASS_NAMES = ("ring", "box", "dot")
CATEGORY_IDS = (2, 5, 9)


def make_config(**fields) -> Recipe:
    """The COCO recipe, as small as it gets; `fields` are "group.name" -> value."""
    config: Any = coco_json.get_config().unlock()
    values = {
        "data.short_side": 64, "data.max_long_side": 96, "data.buckets": ((96, 128),),
        "model.width": 0.125, "model.fpn_channels": 32, "model.head_convs": 1,
        "model.regression": "box", "model.side_bins": 0, "optim.ema_decay": 0.0,
        "eval.batch_size": 2, "eval.max_detections": 20, "eval.pre_nms_top_k": 50,
        "eval.score_threshold": 0.0, "eval.multiscale": "none",
        **fields,
    }  # fmt: skip
    for name, value in values.items():
        group, field = name.split(".")
        config[group][field] = value
    return recipe_io.recipe_from_mapping(config.to_dict())


def make_variables(config: Recipe):
    """Random weights, louder than a fresh network's so that images differ."""
    model = DetectorNetwork(config.model, len(CLASS_NAMES), config.anchors.num_per_location)
    variables = jax.device_get(jax.jit(lambda: init_variables(model, config.data.buckets[0], 3))())

    def louder(path, leaf):
        rng = np.random.default_rng(len(jax.tree_util.keystr(path)))
        noise = rng.normal(0, 0.05, leaf.shape).astype(leaf.dtype)
        return leaf + noise if "head" in jax.tree_util.keystr(path) else leaf

    params = jax.tree_util.tree_map_with_path(louder, variables["params"])
    return {"params": params, "batch_stats": variables.get("batch_stats", {})}


def write_workdir(folder, config: Recipe) -> None:
    """A run with one checkpoint."""
    workdir = epath.Path(folder)
    workdir_files.claim_workdir(config, workdir)
    workdir_files.write_classes(workdir, CLASS_NAMES, CATEGORY_IDS)
    checkpointer = Checkpointer(workdir / "checkpoints", keep_last=1, keep_best=0, keep_every=0)
    checkpointer.save(7, {"step": np.int32(7), **make_variables(config)}, None, wait=True)
    checkpointer.close()
