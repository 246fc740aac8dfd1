"""Two processes of one job read disjoint rows of the same global batches (loopback)."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atss_jax.data import loader
from atss_jax.data.batch_plan import BatchPlan
from tests.conftest import with_devices
from tests.input_case import BUCKETS, STEPS
from tests.test_loader import make_set

CASE = Path(__file__).with_name("input_case.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_share_the_batches(tmp_path):
    dataset = make_set(tmp_path, 13)
    coordinator = f"127.0.0.1:{free_port()}"
    environment = with_devices(1)
    jobs = [
        # the second process reads in a worker: that must change nothing
        subprocess.Popen(
            [sys.executable, str(CASE), coordinator, str(n), str(tmp_path), str(n)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for n in range(2)
    ]
    outputs = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(outputs)
    parts = [np.load(tmp_path / f"process_{n}.npz") for n in range(2)]
    plan = BatchPlan(
        dataset.sizes,
        buckets=BUCKETS,
        global_batch=4,
        seed=3,
        short_sides=(40, 48),
        max_long_side=96,
    )
    for step in range(STEPS):
        whole = loader.batch_at(dataset, plan, step)
        records = np.concatenate([part["records"][step] for part in parts])
        np.testing.assert_array_equal(records, whole.record_index)
        pixels = np.concatenate([part[f"image_{step}"] for part in parts])
        np.testing.assert_array_equal(pixels, whole.image)
    evaluated = np.concatenate([part["evaluated"] for part in parts])
    assert sorted(evaluated[evaluated >= 0]) == list(range(13))


def test_reading_data_initialises_no_backend():
    """Worker processes import the package; they must not grab the accelerator."""
    script = (
        "import atss_jax.data.loader, atss_jax.data.records, atss_jax.data.coco, jax, sys\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, xla_bridge._backends\n"
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
