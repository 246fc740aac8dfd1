"""The rows of the paper's Tables 1 to 8 (arXiv 1912.02424) and of recipes after it, as data.

A row is a recipe with its argument, the recipe that it is compared with, and the fields in which
the two differ: no others do (a test compares them).
"""

import re
from typing import NamedTuple

from atss_jax.configs import beyond

BEYOND = "beyond"
"""Name of the table of recipes after the paper."""
TABLES = (*(str(n) for n in range(1, 9)), BEYOND)
ATSS = "ablations"
"""Recipe of ATSS with ResNet-50, the base of most rows."""


ALIASES = {"paper_table8:backbone=r50,schedule=1x,multiscale=false": ATSS}
"""Recipe with its argument -> the one that is equal to it, whose run it shares."""


class Row(NamedTuple):
    """One row of a table."""

    table: str
    """One of `TABLES`."""
    name: str
    """As in the paper."""
    config: str
    """Packaged recipe with its argument, "ablations:k=15"."""
    base: str
    """What it is compared with, likewise."""
    changes: tuple[str, ...]
    """Every "group.field" in which it differs from its base."""
    paper_ap: float | None = None
    """Percent; COCO val2017, test-dev in Table 8. None where it is not at hand."""
    fields: tuple[tuple[str, str], ...] = ()
    """("group.field", value) that are changed besides, for `config` and not for `base`."""

    @property
    def trained(self) -> tuple[tuple[str, str], ...]:
        """`fields` that the training has."""
        return tuple(field for field in self.fields if not field[0].startswith("eval."))

    @property
    def flags(self) -> tuple[str, ...]:
        """Those for the command line."""
        return tuple(f"--config.{name}={value}" for name, value in self.trained)

    @property
    def test(self) -> tuple[str, ...]:
        """The others: flags of a further evaluation of the same run, whose AP is the row's."""
        rest = [field for field in self.fields if field not in self.trained]
        return tuple(f"--config.{name}={value}" for name, value in rest)

    @property
    def run(self) -> str:
        """Name of the training run: rows with equal recipes share it."""
        recipe, _, argument = ALIASES.get(self.config, self.config).partition(":")
        defaults = ("", "k=9", "anchor_scale=8", "aspect_ratio=1")
        parts = [p for p in argument.split(",") if p not in defaults]
        parts += [f"{name.split('.')[1]}={value}" for name, value in self.trained]
        return re.sub(r"[^\w.+-]", "_", "-".join([recipe, *parts]))


_HEAD_WITHOUT_CENTERNESS = ("model.centerness", "loss.normalizer", "eval.score")


def _steps() -> list[Row]:
    """Table 1: RetinaNet with one anchor, one improvement after the other, and FCOS."""
    removed = (
        "head_norm=none",
        "box_loss=smooth_l1",
        "positives_in_box=false",
        "centerness=false",
        "level_scale=false",
    )
    names = ("RetinaNet (#A=1)", "+ GroupNorm", "+ GIoU loss", "+ in GT box", "+ centerness")
    changes = (
        (
            *("assigner.name", "assigner.positives_in_box", "model.head_norm"),
            *("model.level_scale", "loss.box_loss", "loss.box_loss_weight"),
            *_HEAD_WITHOUT_CENTERNESS,
        ),
        ("model.head_norm",),
        ("loss.box_loss", "loss.box_loss_weight"),
        ("assigner.positives_in_box",),
        _HEAD_WITHOUT_CENTERNESS,
    )
    configs = [f"ablations:{','.join(('assigner=iou', *removed[i:]))}" for i in range(5)]
    rows = [
        Row("1", name, config, base, changed, ap)
        for name, config, base, changed, ap in zip(
            names, configs, [ATSS, *configs], changes, (32.5, 33.4, 34.9, 35.3, 36.8), strict=False
        )
    ]
    last = "ablations:assigner=iou"
    rows.append(Row("1", "+ scalar", last, configs[-1], ("model.level_scale",), 37.0))
    fcos = ("assigner.name", "model.regression", "loss.box_loss", "loss.box_loss_weight")
    return [*rows, Row("1", "FCOS", "fcos_r50_fpn_1x:improved", last, fcos, 37.8)]


def _assigners() -> list[Row]:
    """Tables 2 and 3."""
    iou, fcos = "ablations:assigner=iou", "ablations:assigner=spatial_scale,regression=point"
    name, point = ("assigner.name",), ("model.regression",)
    sampled = "ablations:assigner=center_sampling,regression=point"
    return [
        Row("2", "IoU, box", iou, ATSS, name, 37.0),
        Row("2", "IoU, point", f"{iou},regression=point", iou, point, 36.9),
        Row("2", "spatial and scale, box", "ablations:assigner=spatial_scale", iou, name, 37.8),
        Row("2", "spatial and scale, point", fcos, iou, (*name, *point), 37.8),
        Row("3", "RetinaNet (#A=1)", iou, ATSS, name, 37.0),
        Row("3", "RetinaNet (#A=1) + ATSS", ATSS, iou, name, 39.3),
        Row("3", "FCOS", fcos, ATSS, (*name, *point), 37.8),
        Row("3", "FCOS + center sampling", sampled, fcos, ("assigner.center_radius",), 38.6),
        Row("3", "FCOS + ATSS", "ablations:regression=point", fcos, name, 39.2),
    ]


def _settings() -> list[Row]:
    """Tables 4 to 7: k, scale, aspect ratio and number of anchors."""
    averages = (38.0, 38.8, 39.1, 39.3, 39.1, 39.0, 39.1, 39.2, 38.9)
    rows = [
        Row("4", f"k = {k}", f"ablations:k={k}", ATSS, _unless(k, 9, "candidates"), ap)
        for k, ap in zip(range(3, 20, 2), averages, strict=True)
    ]
    rows += [
        Row("5", f"scale {s}", f"ablations:anchor_scale={s}", ATSS, _unless(s, 8, "scale"), ap)
        for s, ap in zip(range(5, 10), (39.0, 39.2, 39.3, 39.3, 38.9), strict=True)
    ]
    # The text of the paper that was used here lacks Table 6.
    for ratio in (0.25, 0.5, 1, 2, 4):
        config = f"ablations:aspect_ratio={ratio:g}"
        changes = _unless(ratio, 1, "ratio")
        ap = 39.3 if ratio == 1 else None
        rows.append(Row("6", f"height / width {ratio:g}", config, ATSS, changes, ap))
    scale, ratios = "anchors.anchor_scale", "anchors.aspect_ratios"
    scales = (scale, "anchors.scales_per_octave")
    nine = "num_scales=3,num_ratios=3,anchor_scale=4"
    three = "ablations:num_scales=3,anchor_scale=4"
    improved, all_nine = f"ablations:assigner=iou,{nine}", f"ablations:{nine}"
    classic = (
        *("assigner.positives_in_box", "model.p6_from", "model.head_norm", "model.level_scale"),
        *("loss.box_loss", "loss.box_loss_weight", "optim.warmup", "eval.nms_iou"),
        *_HEAD_WITHOUT_CENTERNESS,
    )
    return [
        *rows,
        Row(
            *("7", "RetinaNet (#A=9), 3 scales, 3 ratios", "retinanet_r50_fpn_1x", improved),
            *(classic, 36.3),
        ),
        Row("7", "+ improvements", improved, all_nine, ("assigner.name",), 38.4),
        Row("7", "+ ATSS, 3 scales, 3 ratios", all_nine, ATSS, (*scales, ratios), 39.2),
        Row("7", "+ ATSS, 3 scales, 1 ratio", three, ATSS, scales, 39.3),
        Row("7", "+ ATSS, 1 scale, 3 ratios", "ablations:num_ratios=3", ATSS, (ratios,), 39.2),
        Row("7", "+ ATSS, 1 scale, 1 ratio", ATSS, ATSS, (), 39.3),
    ]


def _unless(value: float, default: float, what: str) -> tuple[str, ...]:
    """The field that a row of Tables 4 to 6 changes; none where it has the default."""
    fields = {
        "candidates": "assigner.candidates_per_level",
        "scale": "anchors.anchor_scale",
        "ratio": "anchors.aspect_ratios",
    }
    return () if value == default else (fields[what],)


def _final_models() -> list[Row]:
    """Table 8 (single-scale, then multi-scale testing) with the ResNet-50 of the model zoo."""
    long = ("optim.num_steps", "data.train_short_sides")
    dcn = ("model.dcn_stages", "model.head_dcn")
    backbone = ("model.backbone", "model.init_from")
    short = "schedule=1x,multiscale=false"
    rows = [
        Row("8", "ATSS r50", f"paper_table8:backbone=r50,{short}", ATSS, (), 39.3),
        Row("8", "ATSS r50 DCN", f"paper_table8:backbone=r50,dcn,{short}", ATSS, dcn, 43.0),
    ]
    averages = {
        "r101": (43.6, 46.3, None),
        "x101_32x8d": (45.1, 47.7, 50.6),
        "x101_64x4d": (45.6, 47.7, 50.7),
    }
    test = ("eval.multiscale", "paper")
    for name, (plain, deformable, tested) in averages.items():
        config = f"paper_table8:backbone={name}"
        changes = (*backbone, *(() if name == "r101" else ("model.flavour",)), *long)
        rows.append(Row("8", f"ATSS {name}", config, ATSS, changes, plain))
        rows.append(Row("8", f"ATSS {name} DCN", f"{config},dcn", config, dcn, deformable))
        if tested is not None:
            title = f"ATSS {name} DCN, multi-scale testing"
            both = (*dcn, "eval.multiscale")
            rows.append(Row("8", title, f"{config},dcn", config, both, tested, fields=(test,)))
    return rows


_QUALITY = ("model.centerness", "loss.cls_loss", "loss.box_weights", "eval.score")
_SIDES = ("model.regression", "model.side_bins")
_STAR = ("model.regression", "model.point_activation", "model.star_refinement")
_MODERN = (
    *("data.train_short_sides", "data.mean", "data.std", "data.channel_order", "model.flavour"),
    *("model.backbone_norm", "model.frozen_stages", "model.init_from", "optim.name"),
    *("optim.learning_rate", "optim.num_steps", "optim.num_epochs", "optim.decay_at"),
    *("optim.warmup", "optim.warmup_steps", "optim.warmup_factor", "optim.weight_decay"),
    *("optim.decay_norms", "optim.bias_lr_factor"),
)
PARTS = (
    ("quality focal loss", "qfl", ATSS, _QUALITY),
    ("distribution focal loss", "dfl", ATSS, _SIDES),
    ("both: GFL", "gfl", ATSS, (*_QUALITY, *_SIDES)),
    ("GFL + distribution quality: GFLv2", "gflv2", "beyond:gfl", ("model.distribution_quality",)),
    ("varifocal loss", "vfl", ATSS, _QUALITY),
    ("star-shaped refinement", "star", ATSS, _STAR),
    ("both: VFNet", "vfnet", ATSS, (*_QUALITY, *_STAR)),
    ("dynamic head", "dynamic", ATSS, ("model.dynamic_blocks", "model.head_convs")),
    ("task-aligned after ATSS", "tal", ATSS, ("assigner.name", "assigner.warmup_steps")),
    ("torchvision's modern recipe", "r50_v2", ATSS, _MODERN),
    ("large-scale jitter", "lsj", ATSS, ("data.augmentations",)),
)
"""(name, argument of configs/beyond.py, base, changes): rows where the recipe knows the words."""


def _after_the_paper() -> list[Row]:
    """Single fields, and the parts of configs/beyond.py."""
    fields = {
        "top-k IoU assigner": ("assigner.name", "top_k_iou"),
        "task-aligned assigner from the start": ("assigner.name", "task_aligned"),
        "DIoU loss": ("loss.box_loss", "diou"),
        "CIoU loss": ("loss.box_loss", "ciou"),
        "soft NMS, linear": ("eval.nms", "soft_linear"),
        "soft NMS, Gaussian": ("eval.nms", "soft_gaussian"),
        "averaged parameters": ("optim.ema_decay", "0.99"),
        "group norm in the backbone": ("model.backbone_norm", "group_norm"),
        "no P7 activation": ("model.relu_before_p7", "False"),
        "product of class score and centerness": ("eval.score", "product"),
    }
    rows = [
        Row(BEYOND, name, ATSS, ATSS, (field,), fields=((field, value),))
        for name, (field, value) in fields.items()
    ]
    known = {*beyond.PARTS, *beyond.METHODS}
    for name, argument, base, changes in PARTS:
        if known.issuperset(argument.split(",")):
            rows.append(Row(BEYOND, name, f"beyond:{argument}", base, changes))
    return rows


ROWS = [*_steps(), *_assigners(), *_settings(), *_final_models(), *_after_the_paper()]


def selected(tables: list[str] | None = None, words: list[str] | None = None) -> list[Row]:
    """Rows of the given tables, in the order of the tables, by name or argument.

    Raises:
      ValueError: a table or a word that is none.
    """
    unknown = [table for table in tables or () if table not in TABLES]
    if unknown:
        raise ValueError(
            f"--tables {','.join(unknown)}: no such table. Tables are {', '.join(TABLES)}."
        )
    rows = [row for table in tables or TABLES for row in ROWS if row.table == table]
    unknown = [word for word in words or () if not any(word in _words(row) for row in rows)]
    if unknown:
        where = f"in table {', '.join(tables)}" if tables else "in any table"
        raise ValueError(
            f"--rows {' '.join(map(repr, unknown))}: no such row {where}. A row is named as `list` "
            "does, or by one of its arguments, such as k=15."
        )
    return [row for row in rows if not words or any(word in _words(row) for word in words)]


def _words(row: Row) -> tuple[str, ...]:
    return (row.name, *row.config.partition(":")[2].split(","))
