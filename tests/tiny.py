"""A run small enough for tests: a dozen drawn images in COCO format, and a recipe for them."""

import json
from pathlib import Path

import cv2

from atss_jax.configs import quickstart
from atss_jax.data import synthetic
from atss_jax.run.recipe import Recipe
from atss_jax.run.recipe_io import recipe_from_mapping


def make_coco(folder: Path, count: int = 12, split: str = "train") -> None:
    """Writes `count` images and split.json; every fourth image has no objects."""
    images, annotations = [], []
    (folder / split).mkdir(parents=True)
    for index in range(count):
        scene = synthetic.make_scene(split if split == "train" else "validation", index)
        height, width = scene.image.shape[:2]
        cv2.imwrite(str(folder / split / f"{index}.png"), scene.image[..., ::-1])
        images.append(
            {"id": 100 + index, "file_name": f"{index}.png", "height": height, "width": width}
        )
        for box, label in zip(scene.boxes, scene.labels, strict=True):
            if index % 4 == 3:
                continue
            x1, y1, x2, y2 = (float(v) for v in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + index,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": n} for i, n in enumerate(synthetic.CLASS_NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content))


def overrides(folder: Path) -> dict[str, dict[str, object]]:
    """Fields of the tiny recipe that differ from the quickstart's."""
    return {
        "data": {
            "source": "coco_json",
            "train_annotations": str(folder / "train.json"),
            "train_images": str(folder / "train"),
            "val_annotations": str(folder / "val.json"),
            "val_images": str(folder / "val"),
            "buckets": ((64, 96),),
            "short_side": 56,
            "max_long_side": 88,
        },
        "model": {"width": 0.125, "fpn_channels": 32, "head_convs": 1},
        "optim": {"name": "sgd", "learning_rate": 0.002, "num_steps": 6, "warmup_steps": 2},
        "eval": {"num_pictures": 2},
        "run": {
            "checkpoint_every": 2,
            "eval_every": 0,
            "log_every": 2,
            "report": False,
            "compilation_cache": str(folder / "cache"),
        },
    }


def make_config(folder: Path, **changes: object) -> Recipe:
    """The tiny recipe; changes are written "group__field"."""
    values = quickstart.get_config().to_dict()
    for group, fields in overrides(folder).items():
        values[group].update(fields)
    for name, value in changes.items():
        group, field = name.split("__")
        values[group][field] = value
    return recipe_from_mapping(values)


def flags(folder: Path) -> list[str]:
    """The tiny recipe as arguments of `python -m atss_jax.main`."""
    return ["--config=configs/quickstart.py"] + [
        f"--config.{group}.{name}={value}"
        for group, fields in overrides(folder).items()
        for name, value in fields.items()
    ]
