"""scripts/scale_simulation.py: figures that follow from the number of processes."""

import scale_simulation


def test_figures_of_many_processes():
    found = scale_simulation.simulate(256, 2, steps=2, images=1000)
    assert found["global_batch"] == 512
    assert found["plan_step_ms"] > 0
    # 5,000 validation images are 20 of each of 256 processes, 100 detections of 25 bytes each.
    assert found["gather_mib"] == 256 * 20 * (100 * 25 + 12) / 2**20
    assert found["gather_mib_of_one"] == 20 * (100 * 25 + 12) / 2**20
