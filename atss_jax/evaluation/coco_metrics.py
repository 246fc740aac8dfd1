"""COCO result list -> the 12 COCO numbers, AP per class, precision-recall curves.

pycocotools is the referee; hotcoco is a faster backend that must give the same numbers. This is
the only module that knows either. Host code only: NumPy in, plain dictionaries out.
"""

import collections
import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

METRICS = (
    "AP", "AP50", "AP75", "APs", "APm", "APl",
    "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip
"""The COCO numbers, in the order of pycocotools' `stats`."""

MAIN_METRIC = METRICS[0]
"""The number that checkpoints are chosen by."""

NO_OBJECTS = -1.0
"""A metric's value where there is no object to find; `known_or_none` says so to people."""

COCO_LIMIT = 100
"""Detections per image that `METRICS` take."""

BACKENDS = ("pycocotools", "hotcoco")


class ClassCurves(NamedTuple):
    """What an evaluation says about one class; -1 where the class has no objects of the size.

    Sizes: all, small (area of the annotation under 32^2 px), medium (under 96^2), large.
    """

    precision: np.ndarray
    """[10 IoU thresholds, 101 recalls, 4 sizes] at 100 detections per image."""
    recall: np.ndarray
    """[10 IoU thresholds, 4 sizes]: highest recall."""


def coco_metrics(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    backend: str = "pycocotools",
    max_detections: int = COCO_LIMIT,
) -> dict[str, float]:
    """The 12 COCO numbers, AP and AR of each class, and AR at a higher limit of detections.

    All images of the ground truth count, also those without detections. Neither argument is
    changed, nothing is printed.

    Args:
      ground_truth: COCO annotation dictionary (images, annotations, categories).
      results: COCO result list, as from `detections_to_coco`.
      class_names: of each class index.
      category_ids: COCO category id of each class index.
      backend: "pycocotools" or "hotcoco".
      max_detections: of an image.

    Returns:
      `METRICS`, "AP/<class>" and "AR/<class>" (as AR100) with names of `unique_names`, and where
      `max_detections` is above COCO's 100, "AR<max_detections>"; in [0, 1], or `NO_OBJECTS` (-1)
      where there is no object to find.

    Raises:
      ValueError: unknown backend, results about images or categories that do not exist, or a box
        or score that is not finite.
      ImportError: hotcoco asked for, but not installed.
    """
    evaluator = _evaluator(ground_truth, results, backend)
    curves = _class_curves(evaluator, category_ids)
    metrics = {name: float(x) for name, x in zip(METRICS, evaluator.stats, strict=True)}
    for name, curve in zip(unique_names(class_names, category_ids), curves, strict=True):
        metrics[f"AP/{name}"] = mean_known(curve.precision[:, :, 0])
        metrics[f"AR/{name}"] = mean_known(curve.recall[:, 0])
    if max_detections > COCO_LIMIT:
        metrics[f"AR{max_detections}"] = _recall_at(evaluator, max_detections)
    return metrics


def metric_names(metrics: Mapping[str, float | None]) -> list[str]:
    """`METRICS`, and AR at a higher limit where it was measured."""
    more = [name for name in metrics if name[2:].isdigit() and name.startswith("AR")]
    return [*METRICS, *(name for name in more if name not in METRICS)]


def _recall_at(evaluator: Any, max_detections: int) -> float:
    """AR of all sizes with so many detections per image; the evaluator is used up."""
    params = evaluator.params
    params.maxDets = [max_detections]
    evaluator.params = params
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
    return mean_known(np.asarray(evaluator.eval["recall"])[:, :, 0, -1])


def precision_curves(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    category_ids: Sequence[int],
) -> list[ClassCurves]:
    """Precision-recall curves of each class, from pycocotools. Arguments as `coco_metrics`."""
    return _class_curves(_evaluator(ground_truth, results, "pycocotools"), category_ids)


def unique_names(class_names: Sequence[str], category_ids: Sequence[int]) -> list[str]:
    """Class names; those that several categories share are followed by the category id.

    >>> unique_names(["cat", "dog", "cat"], [1, 2, 5])
    ['cat (id 1)', 'dog', 'cat (id 5)']
    """
    counts = collections.Counter(class_names)
    return [
        name if counts[name] == 1 else f"{name} (id {category})"
        for name, category in zip(class_names, category_ids, strict=True)
    ]


def known_or_none(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for people and files: None (null in JSON) instead of -1 where nothing was to find."""
    return {name: None if x == NO_OBJECTS else x for name, x in metrics.items()}


def mean_known(values: np.ndarray) -> float:
    """Mean of the entries that are not -1 (no objects), or -1 where all are."""
    known = values[values > -1]
    return float(known.mean()) if known.size else NO_OBJECTS


def _class_curves(evaluator: Any, category_ids: Sequence[int]) -> list[ClassCurves]:
    """One entry per class index; the evaluator sorts categories by id."""
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
    _check_finite(results)
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


def _check_finite(results: Sequence[Mapping[str, Any]]) -> None:
    """Raises for a NaN or infinite number: pycocotools takes an IoU of NaN for a match."""
    if not results:
        return
    numbers = np.array([(*result["bbox"], result["score"]) for result in results], np.float64)
    wrong = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if wrong.size:
        first = results[wrong[0]]
        raise ValueError(
            f"{wrong.size} of {len(results)} results are not finite; the first is of image "
            f"{first['image_id']}: bbox {first['bbox']}, score {first['score']}. Leave out results "
            "with NaN or infinite numbers, and look for the reason in the network."
        )
