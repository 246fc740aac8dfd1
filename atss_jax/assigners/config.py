"""Recipe group "assigner": the definition of positives, what the paper is about."""

import dataclasses
from typing import Annotated, Literal

from atss_jax.config import ConfigGroup, Range
from atss_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssignerConfig(ConfigGroup, name="assigner"):
    """The assigner and its hyper-parameters; each field names the assigners that read it."""

    name: Literal["atss", "max_iou", "spatial_scale", "top_k_iou", "task_aligned"] = "atss"
    """atss; max_iou (RetinaNet); spatial_scale (FCOS, with centre sampling); top_k_iou;
    task_aligned (TOOD: by the predictions)."""
    candidates_per_level: Annotated[int, Range(1)] = 9
    """atss: candidates per object and level, the paper's k (Table 4)."""
    num_candidates: Annotated[int, Range(1)] = 9
    """top_k_iou: positives per object over all levels."""
    foreground_iou: Annotated[float, Range(0, 1)] = 0.5
    """max_iou: positive from this IoU on (RetinaNet Sec. 4)."""
    background_iou: Annotated[float, Range(0, 1)] = 0.4
    """max_iou: negative below this IoU; ignored between the two."""
    center_radius: Annotated[float, Range(0)] = 0.0
    """spatial_scale: radius of centre sampling in strides, 0 for the whole box (FCOS: 1.5)."""
    positives_in_box: bool = True
    """max_iou: anchors whose centre lies outside their object are not positives (paper Table 1,
    "In GT Box")."""
    alignment_top_k: Annotated[int, Range(1)] = 13
    """task_aligned: candidates per object over all levels."""
    alignment_alpha: Annotated[float, Range(0)] = 1.0
    """task_aligned: exponent of the class probability."""
    alignment_beta: Annotated[float, Range(0)] = 6.0
    """task_aligned: exponent of the IoU of the predicted box."""
    warmup_steps: Annotated[int, Range(0)] = 0
    """task_aligned: steps at the start of a run in which ATSS assigns, while predictions say
    nothing yet (mmdetection's TOOD: 4 of 12 epochs)."""

    def check(self) -> None:
        """Only an assigner that looks at predictions has a warm-up."""
        if self.warmup_steps and self.name != "task_aligned":
            raise UserError(
                f"config.assigner.warmup_steps={self.warmup_steps} with config.assigner.name="
                f'{self.name!r}: only task_aligned has a warm-up. Set 0, or name="task_aligned".'
            )
