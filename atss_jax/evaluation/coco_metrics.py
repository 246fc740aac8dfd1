"""Detections -> COCO result list -> the 12 COCO numbers, AP per class, precision-recall curves.

pycocotools is the referee; hotcoco is a faster backend that must give the same numbers. This is
the only module that knows either. Host code only: NumPy in, plain dictionaries out.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from atss_jax.structures import Detections

METRICS = (
    "AP", "AP50", "AP75", "APs", "APm", "APl",
    "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip
"""The COCO numbers, in the order of pycocotools' `stats`."""

BACKENDS = ("pycocotools", "hotcoco")


class ClassCurves(NamedTuple):
    """What an evaluation says about one class; -1 where the class has no objects of the size.

    Sizes: all, small (area of the annotation under 32^2 px), medium (under 96^2), large.
    """

    precision: np.ndarray
    """[10 IoU thresholds, 101 recalls, 4 sizes] at 100 detections an image."""
    recall: np.ndarray
    """[10 IoU thresholds, 4 sizes]: highest recall."""


def detections_to_coco(
    detections: Detections,
    record_index: np.ndarray,
    image_ids: Sequence[int] | np.ndarray,
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Detections of a batch as a COCO result list, xywh px.

    Args:
      detections: host arrays, leading B.
      record_index: which record of the data set each row is, [B]; rows with -1 are filling and
        left out.
      image_ids: COCO image id of each record.
      category_ids: COCO category id of each class index.

    Returns:
      One dictionary for each valid detection: image_id, category_id, bbox, score.
    """
    results = []
    boxes, scores, labels, is_valid = (np.asarray(field) for field in detections)
    for row, record in enumerate(np.asarray(record_index).tolist()):
        if record < 0:
            continue
        keep = is_valid[row]
        xyxy = boxes[row][keep].astype(np.float64)
        xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        for box, score, label in zip(
            xywh.tolist(), scores[row][keep].tolist(), labels[row][keep].tolist(), strict=True
        ):
            results.append(
                {
                    "image_id": int(image_ids[record]),
                    "category_id": int(category_ids[label]),
                    "bbox": box,
                    "score": score,
                }
            )
    return results


def coco_metrics(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    backend: str = "pycocotools",
) -> dict[str, float]:
    """The 12 COCO numbers and AP of each class.

    All images of the ground truth count, also those without detections. Neither argument is
    changed, nothing is printed.

    Args:
      ground_truth: COCO annotation dictionary (images, annotations, categories).
      results: COCO result list, as from `detections_to_coco`.
      class_names: of each class index.
      category_ids: COCO category id of each class index.
      backend: "pycocotools" or "hotcoco".

    Returns:
      `METRICS` and "AP/<class name>", in [0, 1]; -1 where there is no object to find.

    Raises:
      ValueError: unknown backend, or results about images or categories that do not exist.
      ImportError: hotcoco asked for, but not installed.
    """
    evaluator = _evaluator(ground_truth, results, backend)
    metrics = {name: float(x) for name, x in zip(METRICS, evaluator.stats, strict=True)}
    curves = _class_curves(evaluator, category_ids)
    for name, curve in zip(class_names, curves, strict=True):
        metrics[f"AP/{name}"] = mean_known(curve.precision[:, :, 0])
    return metrics


def precision_curves(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    category_ids: Sequence[int],
) -> list[ClassCurves]:
    """Precision-recall curves of each class, from pycocotools. Arguments as `coco_metrics`."""
    return _class_curves(_evaluator(ground_truth, results, "pycocotools"), category_ids)


def mean_known(values: np.ndarray) -> float:
    """Mean of the entries that are not -1 (no objects), or -1 where all are."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _class_curves(evaluator: Any, category_ids: Sequence[int]) -> list[ClassCurves]:
    """One entry for each class index; the evaluator sorts categories by id."""
    precision = np.asarray(evaluator.eval["precision"])  # [T, R, K, areas, max detections]
    recall = np.asarray(evaluator.eval["recall"])  # [T, K, areas, max detections]
    position = {category: k for k, category in enumerate(sorted(category_ids))}
    return [
        ClassCurves(precision[:, :, position[c], :, -1], recall[:, position[c], :, -1])
        for c in category_ids
    ]


def _evaluator(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], backend: str
) -> Any:
    """A finished COCOeval of the backend."""
    if backend not in BACKENDS:
        raise ValueError(f'eval.backend={backend!r}: use "pycocotools" or "hotcoco".')
    _check_ids(ground_truth, results)
    make = _pycocotools if backend == "pycocotools" else _hotcoco
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = make(ground_truth, results)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _pycocotools(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def make_index(dataset: dict[str, Any]) -> Any:
        index: Any = COCO()
        index.dataset = dataset
        index.createIndex()
        return index

    # pycocotools writes into the dictionaries that it is given.
    annotations = [dict(annotation) for annotation in ground_truth["annotations"]]
    truth = make_index({"info": {}, **ground_truth, "annotations": annotations})
    if results:
        found = truth.loadRes([dict(result) for result in results])
    else:  # which loadRes does not accept
        found = make_index({**truth.dataset, "annotations": []})
    return COCOeval(truth, found, "bbox")


def _hotcoco(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Any:
    try:
        import hotcoco
    except ImportError as error:
        raise ImportError(
            'eval.backend="hotcoco" needs the package hotcoco: pip install "atss_jax[fast-eval]", '
            'or use eval.backend="pycocotools".'
        ) from error
    truth = hotcoco.COCO(dict(ground_truth))
    return hotcoco.COCOeval(truth, truth.load_res([dict(r) for r in results]), "bbox")


def _check_ids(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    """Raises for results about images or categories that the ground truth does not have."""
    for field, group in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in ground_truth[group]}
        unknown = sorted({r[field] for r in results} - known)
        if unknown:
            raise ValueError(
                f"results with {field} {unknown[:5]}: not among the {len(known)} {group} of the "
                "ground truth. Evaluate against the annotations that the detections belong to."
            )
