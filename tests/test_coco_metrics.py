"""The evaluation path: cocoapi's published numbers, both backends, empty results, conversions."""

import copy
import json

import numpy as np
import pytest

from atss_jax.evaluation.coco_metrics import (
    METRICS,
    coco_metrics,
    known_or_none,
    metric_names,
    precision_curves,
)
from atss_jax.evaluation.coco_results import coco_to_detections, detections_to_coco
from atss_jax.structures import Detections


@pytest.fixture(scope="module")
def cocoapi(shared):
    """(ground truth, results, expected) of the cocoapi fixture."""
    folder = shared / "data/cocoapi_fixture"
    names = ("instances_val2014_100", "instances_val2014_fakebbox100_results", "expected")
    return tuple(json.loads((folder / f"{name}.json").read_text()) for name in names)


def classes_of(ground_truth) -> dict:
    return {
        "class_names": [c["name"] for c in ground_truth["categories"]],
        "category_ids": [c["id"] for c in ground_truth["categories"]],
    }


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
def test_published_numbers(cocoapi, backend, capfd):
    pytest.importorskip(backend)
    ground_truth, results, expected = cocoapi
    without_detections = {i["id"] for i in ground_truth["images"]} - {
        r["image_id"] for r in results
    }
    assert without_detections  # it counts all the same, or the recalls below would differ
    before = copy.deepcopy(ground_truth), copy.deepcopy(results)
    metrics = coco_metrics(ground_truth, results, **classes_of(ground_truth), backend=backend)
    for name in METRICS:
        assert metrics[name] == pytest.approx(expected["stats"][name], abs=1e-12), name
        assert round(metrics[name], 3) == expected["published_3_decimals"][name]
    for category in ground_truth["categories"]:
        ap = expected["per_category_AP"].get(str(category["id"]))
        if ap is not None:
            assert metrics[f"AP/{category['name']}"] == pytest.approx(ap, abs=1e-12)
    assert (ground_truth, results) == before
    assert capfd.readouterr().out == ""


def small_truth() -> dict:
    return {
        "images": [
            {"id": 2**40 + i, "width": 60, "height": 40, "file_name": f"{i}.jpg"} for i in (0, 1)
        ],
        "categories": [{"id": 9, "name": "late"}, {"id": 4, "name": "early"}],
        "annotations": [
            {"id": 1, "image_id": 2**40, "category_id": 9, "bbox": [5, 6, 20, 10],
             "area": 200, "iscrowd": 0},
            {"id": 2, "image_id": 2**40 + 1, "category_id": 9, "bbox": [5, 6, 20, 10],
             "area": 200, "iscrowd": 0},
        ],
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
def test_recall_at_a_higher_limit(backend):
    """150 objects, each found exactly: COCO's numbers take the best 100 detections."""
    pytest.importorskip(backend)
    truth = small_truth()
    boxes = [[4.0 * (n % 15), 4.0 * (n // 15), 3.0, 3.0] for n in range(150)]
    about = {"image_id": 2**40, "category_id": 9, "area": 9, "iscrowd": 0}
    truth["annotations"] = [{"id": n + 1, "bbox": box, **about} for n, box in enumerate(boxes)]
    results = [
        {"image_id": 2**40, "category_id": 9, "bbox": box, "score": 1 - n / 200}
        for n, box in enumerate(boxes)
    ]
    found = {
        limit: coco_metrics(
            truth, results, **classes_of(truth), backend=backend, max_detections=limit
        )
        for limit in (100, 120, 300)
    }
    assert metric_names(found[100]) == list(METRICS)
    assert metric_names(found[300]) == [*METRICS, "AR300"]
    assert found[300]["AR300"] == 1 and found[120]["AR120"] == pytest.approx(120 / 150)
    for metrics in found.values():
        assert metrics["AR100"] == metrics["AR/late"] == pytest.approx(100 / 150)
        assert metrics["AP"] == found[100]["AP"]


def test_detections_become_results():
    detections = Detections(
        boxes=np.array([[[0, 0, 0, 0]] * 2, [[5, 6, 25, 16], [0, 0, 0, 0]]], np.float32),
        scores=np.array([[0, 0], [0.75, 0]], np.float32),
        labels=np.zeros((2, 2), np.int32),
        is_valid=np.array([[False, False], [True, False]]),
    )
    truth = small_truth()
    ids = [image["id"] for image in truth["images"]]
    results = detections_to_coco(detections, ids, [9, 4])
    assert results == [
        {"image_id": 2**40 + 1, "category_id": 9, "bbox": [5.0, 6.0, 20.0, 10.0], "score": 0.75}
    ]
    again = coco_to_detections(results, ids, [9, 4])
    for a, b in zip(again, detections, strict=True):
        np.testing.assert_array_equal(a, b[:, :1])
    metrics = coco_metrics(truth, results, **classes_of(truth))
    # One of two objects found, exactly: precision 1 up to recall 0.5 (51 of 101 points).
    assert metrics["AP"] == metrics["AP/late"] == pytest.approx(51 / 101)
    assert metrics["AR100"] == 0.5 and metrics["AP/early"] == -1
    assert known_or_none(metrics)["AP/early"] is None
    assert known_or_none(metrics)["AP"] == metrics["AP"]
    curves = precision_curves(truth, results, category_ids=[9, 4])
    assert curves[0].precision.shape == (10, 101, 4) and (curves[1].precision == -1).all()
    assert curves[0].precision[0, :, 0].sum() == pytest.approx(51)


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
def test_nothing_found(backend):
    pytest.importorskip(backend)
    truth = small_truth()
    metrics = coco_metrics(truth, [], **classes_of(truth), backend=backend)
    assert metrics["AP"] == metrics["AR100"] == metrics["AP/late"] == 0


def test_bad_arguments():
    truth = small_truth()
    result = {"image_id": 7, "category_id": 9, "bbox": [0, 0, 1, 1], "score": 1.0}
    with pytest.raises(ValueError, match=r"image_id \[7\]"):
        coco_metrics(truth, [result], **classes_of(truth))
    with pytest.raises(ValueError, match='use "pycocotools"'):
        coco_metrics(truth, [], **classes_of(truth), backend="coco")


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
@pytest.mark.parametrize(("field", "value"), [("bbox", [5, 6, np.nan, 10]), ("score", np.inf)])
def test_results_that_are_not_finite(backend, field, value):
    """pycocotools alone takes a NaN box for a perfect match: AP 1."""
    truth = small_truth()
    result = {"image_id": 2**40 + 1, "category_id": 9, "bbox": [5, 6, 20, 10], "score": 1.0}
    results = [{**result, "image_id": 2**40}, {**result, field: value}]
    with pytest.raises(ValueError, match=f"1 of 2 results are not finite.*image {2**40 + 1}"):
        coco_metrics(truth, results, **classes_of(truth), backend=backend)


def test_classes_of_one_name():
    truth = small_truth()
    for category in truth["categories"]:
        category["name"] = "same"
    metrics = coco_metrics(truth, [], **classes_of(truth))
    assert metrics["AP/same (id 9)"] == 0 and metrics["AP/same (id 4)"] == -1
    assert "AP/same" not in metrics
