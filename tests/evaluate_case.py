"""A small evaluation without files: a network of plain sums, six images, and a batch iterator.

Also a program: `python evaluate_case.py PROCESS COUNT PORT BATCH...` evaluates as one of COUNT
processes and prints a JSON line for each batch size. `test_evaluate.py` uses both.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from atss_jax.evaluation.coco_results import detections_to_coco
from atss_jax.evaluation.passes import make_passes
from atss_jax.evaluation.postprocess import PostprocessSettings
from atss_jax.evaluation.predict_step import make_predict_step
from atss_jax.evaluation.whole_split import PlannedPass, evaluate
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.geometry.config import AnchorConfig
from atss_jax.models.normalization import Normalization
from atss_jax.runtime import parallel
from atss_jax.structures import Batch, GroundTruth, HeadOutputs

SIZES = [(64, 96), (40, 90), (96, 64), (33, 96), (64, 50), (90, 40), (64, 96), (12, 20), (77, 60)]
"""(h, w) of the nine images; two buckets, 64x96 and 96x64."""

BUCKETS = ((64, 96), (96, 64))
NORMALIZATION = Normalization(mean=(0.0, 0.0, 0.0), std=(64.0, 64.0, 64.0))
SETTINGS = PostprocessSettings(pre_nms_top_k=20, max_detections=10)


class MeanNetwork:
    """Predicts from mean colours of cells: as deterministic as a sum of few numbers can be."""

    def apply(self, variables, images, image_size, *, train):
        del image_size, train
        grid = AnchorGrid((images.shape[1], images.shape[2]))
        cls_logits, regression, centerness = [], [], []
        for (height, width), stride in zip(grid.level_shapes, grid.strides, strict=True):
            pad = [(0, 0), (0, height * stride - images.shape[1])]
            pad += [(0, width * stride - images.shape[2]), (0, 0)]
            cells = jnp.pad(images, pad).reshape(-1, height, stride, width, stride, 3)
            means = jnp.round(cells.mean((2, 4)) * 64) / 64 + variables["shift"]  # [B, h, w, 3]
            cls_logits.append((means[..., :2] - 3)[..., None, :])
            regression.append(jnp.stack([means[..., 0], means[..., 1]] * 2, -1)[..., None, :])
            centerness.append(means[..., 2:])
        return HeadOutputs(tuple(cls_logits), tuple(regression), tuple(centerness))


class SmallSet:
    """Nine images of noise with two objects each."""

    image_ids = [900_000_000_000 + 7 * i for i in range(len(SIZES))]
    category_ids = [3, 1]
    class_names = ["box", "ring"]

    def image(self, record):
        return np.random.default_rng(record).integers(0, 256, (*SIZES[record], 3), np.uint8)

    def coco_ground_truth(self):
        annotations = []
        for record, (height, width) in enumerate(SIZES):
            for j, category in enumerate(self.category_ids):
                box = [width * 0.2 * j, 0, width * 1.8, height * 1.8]  # images are twice as large
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": self.image_ids[record], "bbox": box,
                     "category_id": category, "area": box[2] * box[3], "iscrowd": 0}
                )  # fmt: skip
        return {
            "images": [
                {"id": i, "height": 2 * h, "width": 2 * w}
                for i, (h, w) in zip(self.image_ids, SIZES, strict=True)
            ],
            "categories": [{"id": 3, "name": "box"}, {"id": 1, "name": "ring"}],
            "annotations": annotations,
        }


def batches(batch_size, process_index=0, process_count=1):
    """This process' rows, `batch_size` each, of every global batch."""
    dataset = SmallSet()
    for bucket in BUCKETS:
        landscape = bucket[1] > bucket[0]
        records = [i for i, (h, w) in enumerate(SIZES) if (w >= h) == landscape]
        global_size = batch_size * process_count
        records += [-1] * (-len(records) % global_size)
        for start in range(0, len(records), global_size):
            rows = records[start + process_index * batch_size :][:batch_size]
            images = np.zeros((batch_size, *bucket, 3), np.uint8)
            sizes = np.ones((batch_size, 2), np.int32)
            for row, record in enumerate(rows):
                if record >= 0:
                    sizes[row] = SIZES[record]
                    images[row, : sizes[row, 0], : sizes[row, 1]] = dataset.image(record)
            empty = GroundTruth(
                np.zeros((batch_size, 1, 4), np.float32),
                np.zeros((batch_size, 1), np.int32),
                np.zeros((batch_size, 1), bool),
            )
            yield Batch(
                images,
                sizes,
                empty,
                np.array(rows, np.int32),
                np.full((batch_size, 2), 0.5, np.float32),
            )


@functools.cache
def predict_step(mesh, *, flip=False):
    return make_predict_step(
        MeanNetwork(), AnchorConfig(), NORMALIZATION, SETTINGS, mesh=mesh, flip=flip
    )


def plain_pass(step, make_batches):
    """One look at the images at their own size."""
    return PlannedPass(make_passes("none", 48, 96)[0], step, make_batches)


def as_results(outcome):
    """(metrics, COCO results) of an outcome."""
    dataset = SmallSet()
    found = detections_to_coco(outcome.detections, dataset.image_ids, dataset.category_ids)
    return outcome.metrics, found


def run(mesh, step, batch_size):
    """(metrics, results) of the small set."""
    make_batches = functools.partial(batches, batch_size, jax.process_index(), jax.process_count())
    variables = jax.device_put({"shift": jnp.float32(0.25)}, parallel.replicated(mesh))
    outcome = evaluate([plain_pass(step, make_batches)], variables, SmallSet(), mesh=mesh)
    if outcome is None:
        raise RuntimeError("stopped")
    return as_results(outcome)


def main(process, count, port, *batch_sizes):
    parallel.initialize(
        mode="address", coordinator=f"localhost:{port}", num_processes=int(count),
        process_id=int(process), timeout=60,
    )  # fmt: skip
    mesh = parallel.make_mesh()
    step = predict_step(mesh)
    for batch_size in batch_sizes:
        print(json.dumps(run(mesh, step, int(batch_size))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
