r"""RetinaNet with ResNet-50-FPN and nine anchors a location, 1x schedule: the classic baseline.

Paper: Table 7, first row of ATSS (arXiv 1912.02424), "RetinaNet (#A=9)": AP 36.3 on COCO val2017.
Settings of RetinaNet (arXiv 1708.02002) as its official PyTorch implementation has them. Not run
by this project.

    python -m atss_jax.main --config=configs/retinanet_r50_fpn_1x.py --workdir=workdirs/retinanet

With the paper's "improvements" it is `configs/ablations.py:assigner=iou,num_scales=3,...`.
"""

from ml_collections import ConfigDict

from configs import atss_r50_fpn_1x, common


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; it takes no argument."""
    if arg:
        raise ValueError(f"config argument {arg!r}: configs/retinanet_r50_fpn_1x.py takes none.")
    config = common.editable(atss_r50_fpn_1x.get_config())
    # RetinaNet Sec. 4: sides 4S x (1, 2^1/3, 2^2/3), 32 to 813 px
    config.anchors.anchor_scale = 4.0
    config.anchors.scales_per_octave = 3
    config.anchors.aspect_ratios = (0.5, 1.0, 2.0)

    config.assigner.name = "max_iou"
    config.assigner.positives_in_box = False

    model = config.model
    model.p6_from = "c5"
    model.head_norm = "none"
    model.level_scale = False
    model.centerness = "none"

    config.loss.box_loss = "smooth_l1"
    config.loss.box_loss_weight = 1.0
    config.loss.normalizer = "retinanet"

    config.optim.warmup = "linear"  # the solver's default, which this configuration keeps
    config.eval.nms_iou = 0.4
    config.eval.score = "cls"
    return config.lock()
