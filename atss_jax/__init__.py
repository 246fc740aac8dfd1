"""ATSS detectors in JAX (Zhang et al., CVPR 2020, arXiv 1912.02424).

The map, in the order in which the data flows:

- `structures`: the nouns; read it first. `typing`: the dimension letters.
- `data/`: COCO JSON, ArrayRecord -> batch plan -> images -> `Batch`.
- `models/`: backbones, FPN, head -> `HeadOutputs`.
- `geometry/`: pyramid, anchors, boxes, NMS. `assigners/`: `GroundTruth` -> `Assignment`.
- `training/`: targets, losses, optimizer, the step.
- `evaluation/`: `HeadOutputs` -> `Detections` -> AP.
- `runtime/`: devices, compiled programs, checkpoints, metric files. `drawing/`: pictures, curves.
- `run/`: the recipe as a whole and every mode of the command line, `main`.

The names below are imported when they are first used, so `import atss_jax` costs nothing. It only
sets an XLA switch where the installed jaxlib is known to compute wrong (`runtime.xla_flags`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from atss_jax.runtime.xla_flags import avoid_known_miscompilations

if TYPE_CHECKING:
    from atss_jax.assigners import (
        assign_atss,
        assign_max_iou,
        assign_spatial_scale,
        assign_top_k_iou,
    )
    from atss_jax.geometry.anchors import AnchorGrid
    from atss_jax.run.detector import Detector
    from atss_jax.run.result import Result
    from atss_jax.run.train_folder import Run, train
    from atss_jax.structures import Assignment, Detections, GroundTruth

__version__ = "0.2.0"

avoid_known_miscompilations()  # here, so that scripts and users' own programs have it too

_MODULES = {
    "AnchorGrid": "geometry.anchors",
    "Assignment": "structures",
    "Detections": "structures",
    "Detector": "run.detector",
    "GroundTruth": "structures",
    "Result": "run.result",
    "Run": "run.train_folder",
    "assign_atss": "assigners",
    "assign_max_iou": "assigners",
    "assign_spatial_scale": "assigners",
    "assign_top_k_iou": "assigners",
    "train": "run.train_folder",
}
"""Public name -> module of the package."""

__all__ = [
    "AnchorGrid",
    "Assignment",
    "Detections",
    "Detector",
    "GroundTruth",
    "Result",
    "Run",
    "assign_atss",
    "assign_max_iou",
    "assign_spatial_scale",
    "assign_top_k_iou",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'atss_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"atss_jax.{_MODULES[name]}"), name)
