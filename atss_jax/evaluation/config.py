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
    nms: Literal["hard", "soft_linear", "soft_gaussian"] = "hard"
    """hard drops overlapping boxes; soft lowers their scores (arXiv 1704.04503): linear by 1 - IoU
    above nms_iou, gaussian by exp(-IoU^2 / soft_nms_sigma)."""
    soft_nms_sigma: Annotated[float, Range(above=0)] = 0.5
    """Width of soft_gaussian."""
    soft_nms_min_score: Annotated[float, Range(0, 1)] = 0.05
    """Soft NMS drops boxes whose lowered final score is less than this."""
    max_detections: Annotated[int, Range(1)] = 100
    """Detections per image. An evaluation with several passes keeps up to 1,000 of all of them, as
    the official code does."""
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
