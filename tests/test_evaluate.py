"""Evaluation: the same numbers for all hosts, devices and batch sizes; each image once."""

import functools
import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atss_jax.evaluation import predict_step, whole_split
from atss_jax.evaluation.passes import make_passes
from atss_jax.runtime import parallel
from atss_jax.runtime.parallel import AXIS
from tests import evaluate_case as case
from tests.conftest import with_devices

ONE_DEVICE = jax.make_mesh(
    (1,), (AXIS,), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,)
)


@pytest.fixture(scope="module")
def reference():
    """(metrics, results) one image at a time on one device."""
    return case.run(ONE_DEVICE, case.predict_step(ONE_DEVICE), 1)


def test_reference_is_worth_comparing(reference):
    metrics, results = reference
    assert 0 < metrics["AP50"] < 1 and 0 < metrics["AP/ring"] < 1
    assert {result["image_id"] for result in results} == set(case.SmallSet.image_ids)
    # Resized by 0.5: boxes are in original px, twice the size.
    assert max(result["bbox"][0] + result["bbox"][2] for result in results) == 192


@pytest.mark.parametrize(
    ("mesh", "batch_size"),
    [(ONE_DEVICE, 7), (ONE_DEVICE, 16), (parallel.make_mesh(), 7)],
    ids=["1_device-7", "1_device-16", "8_devices-7"],
)
def test_batches_and_devices(reference, mesh, batch_size):
    assert case.run(mesh, case.predict_step(mesh), batch_size) == reference


@pytest.mark.slow
def test_two_processes(reference):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    program = Path(case.__file__)
    environment = with_devices(1)
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), str(i), "2", port, "1", "7", "16"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (output, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
        found = [json.loads(line) for line in output.splitlines() if line.startswith("[{")]
        assert found == [list(reference)] * 3


def test_no_collectives():
    """The batch stays where it is: no device waits for another."""
    mesh = parallel.make_mesh()
    batch = next(case.batches(8))
    arrays = parallel.shard_batch((batch.image, batch.image_size, batch.scale), mesh)
    variables = jax.device_put({"shift": jnp.float32(0.25)}, parallel.replicated(mesh))
    program = case.predict_step(mesh).lower(variables, *arrays).compile().as_text()  # type: ignore[attr-defined]
    assert "fusion" in program
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in program


def test_lost_and_doubled_images():
    with pytest.raises(RuntimeError, match=r"records \[1\] were seen \[0\] times"):
        whole_split.check_each_once(np.array([0, 2]), 3)
    with pytest.raises(RuntimeError, match=r"records \[0\] were seen \[2\] times"):
        whole_split.check_each_once(np.array([0, 0, 1]), 2)


def test_stop_and_no_metrics():
    step = case.predict_step(ONE_DEVICE)
    variables = {"shift": jnp.float32(0.25)}
    passes = [case.plain_pass(step, lambda: case.batches(1))]
    stopped = whole_split.evaluate(
        passes, variables, case.SmallSet(), mesh=ONE_DEVICE, should_stop=lambda: True
    )
    assert stopped is None
    found = whole_split.evaluate(
        passes, variables, case.SmallSet(), mesh=ONE_DEVICE, with_metrics=False
    )
    assert found is not None and found.metrics == {} and found.detections.is_valid.sum() > 10


def test_mirroring():
    """A mirrored image in a mirrored pass gives the mirrored boxes of the plain pass."""
    batch = next(case.batches(5))
    variables = {"shift": jnp.float32(0.25)}
    sizes, scale = jnp.asarray(batch.image_size), jnp.asarray(batch.scale)
    images = jnp.asarray(batch.image)
    mirrored = predict_step.mirror_images(images, sizes)
    for row, (height, width) in enumerate(batch.image_size):
        np.testing.assert_array_equal(
            mirrored[row, :height, :width], images[row, :height, :width][:, ::-1]
        )
        assert not mirrored[row, height:].any() and not mirrored[row, :, width:].any()
    plain = case.predict_step(None)(variables, images, sizes, scale)
    unmirrored = case.predict_step(None, flip=True)(variables, mirrored, sizes, scale)
    np.testing.assert_array_equal(plain.scores, unmirrored.scores)
    np.testing.assert_allclose(
        predict_step.mirror_boxes(jnp.asarray(plain.boxes), sizes, scale)[plain.is_valid],
        unmirrored.boxes[unmirrored.is_valid],
        atol=1e-3,
    )


@pytest.mark.slow
def test_passes_are_merged(reference):
    """A plain pass alone changes nothing but what voting merges; a second one adds boxes."""
    plain, mirrored = case.predict_step(ONE_DEVICE), case.predict_step(ONE_DEVICE, flip=True)
    variables = {"shift": jnp.float32(0.25)}
    passes = make_passes("flip", 48, 96)
    seen = []

    def make_batches(one_pass):
        seen.append(one_pass)
        return case.batches(7)

    planned = [
        whole_split.PlannedPass(
            one, mirrored if one.flip else plain, functools.partial(make_batches, one)
        )
        for one in passes
    ]
    found = whole_split.evaluate(planned, variables, case.SmallSet(), mesh=ONE_DEVICE)
    assert found is not None and seen == list(passes)
    metrics, results = case.as_results(found)
    assert 0 < metrics["AP50"] <= 1 and len(results) > len(reference[1])
    best = {r["image_id"]: r["score"] for r in reversed(results)}
    for result in reference[1]:
        assert best[result["image_id"]] >= result["score"]
