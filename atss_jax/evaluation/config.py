"""Recipe group "eval": post-processing and metrics."""

import dataclasses
from typing import Annotated, Literal

from atss_jax.config import ConfigGroup, Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig(ConfigGroup, name="eval"):
    """See `postprocess.postprocess` and `whole_split`."""

    batch_size: Annotated[int, Range(1)] = 16
    """Images per step over all devices."""
    score_threshold: Annotated[float, Range(0, 1)] = 0.05
    """On the class score, before centerness."""
    pre_nms_top_k: Annotated[int, Range(1)] = 1000
    """Candidates per level that enter NMS."""
    nms_iou: Annotated[float, Range(0, 1)] = 0.6
    """NMS drops a box that overlaps a better one of its class by more than this IoU."""
    max_detections: Annotated[int, Range(1)] = 100
    """Detections per image."""
    score: Literal["sqrt", "product", "cls"] = "sqrt"
    """Final score: sqrt or product of class score and centerness (ATSS: sqrt), or cls alone
    (RetinaNet)."""
    multiscale: Literal["none", "flip", "light", "paper"] = "none"
    """Test-time augmentation; paper has 26 passes."""
    backend: Literal["pycocotools", "hotcoco"] = "pycocotools"
    """Who computes the metrics: pycocotools is the referee."""
    format_only: bool = False
    """Write detections without metrics (COCO test-dev)."""
    num_pictures: Annotated[int, Range(0)] = 8
    """Images drawn after an evaluation."""
