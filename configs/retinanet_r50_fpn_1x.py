r"""RetinaNet with ResNet-50-FPN and nine anchors a location, 1x schedule: the classic baseline.

Paper: Table 7, first row of ATSS (arXiv 1912.02424), "RetinaNet (#A=9)": AP 36.3 on COCO val2017.
Settings of RetinaNet (arXiv 1708.02002) as its official PyTorch implementation has them. Not run
by this project.

    python -m atss_jax.main --config=configs/retinanet_r50_fpn_1x.py --workdir=workdirs/retinanet

With the paper's "improvements" it is `configs/ablations.py:assigner=iou,num_scales=3,...`.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from atss_jax.configs import atss_r50_fpn_1x, common
from atss_jax.run.recipe import Recipe


def recipe(arg: str = "") -> Recipe:
    """The recipe; it takes no argument."""
    common.refuse_argument(arg, "configs/retinanet_r50_fpn_1x.py")
    base = atss_r50_fpn_1x.recipe()
    return replace(
        base,
        # RetinaNet Sec. 4: sides 4S x (1, 2^1/3, 2^2/3), 32 to 813 px
        anchors=replace(
            base.anchors, anchor_scale=4.0, scales_per_octave=3, aspect_ratios=(0.5, 1.0, 2.0)
        ),
        assigner=replace(base.assigner, name="max_iou", positives_in_box=False),
        model=replace(
            base.model, p6_from="c5", head_norm="none", level_scale=False, centerness="none"
        ),
        loss=replace(base.loss, box_loss="smooth_l1", box_loss_weight=1.0, normalizer="retinanet"),
        # the solver's default, which this configuration keeps
        optim=replace(base.optim, warmup="linear"),
        eval=replace(base.eval, nms_iou=0.4, score="cls"),
    )


def get_config(arg: str = "") -> ConfigDict:
    """The recipe for the command line."""
    return common.config_dict(recipe(arg))
