"""scripts/scale_simulation.py and scripts/weak_scaling.py: what follows from how many there are."""

import pytest

import scale_simulation
import weak_scaling


def test_figures_of_many_processes():
    found = scale_simulation.simulate(256, 2, steps=2, images=1000)
    assert found["global_batch"] == 512
    assert found["plan_step_ms"] > 0 and found["restart_plan_s"] > 0
    # 5,000 validation images are 20 of each of 256 processes, 100 detections of 25 bytes each.
    assert found["gather_mib"] == 256 * 20 * (100 * 25 + 12) / 2**20
    assert found["gather_mib_of_one"] == 20 * (100 * 25 + 12) / 2**20


@pytest.mark.parametrize("fsdp", [False, True])
def test_a_checkpoint_is_written_once_and_read_by_all(fsdp):
    alone = scale_simulation.checkpoint_sizes(1, 1, fsdp=fsdp)
    total = alone["total_mib"]
    assert total == pytest.approx(246, abs=1)  # as scripts/bench_checkpoint.py measures
    assert alone["first_process_writes_mib"] == alone["process_reads_mib"] == total
    for processes in (2, 256, 1024):
        found = scale_simulation.checkpoint_sizes(processes, 4, fsdp=fsdp)
        first, other = found["first_process_writes_mib"], found["other_process_writes_mib"]
        assert first + (processes - 1) * other == pytest.approx(total)
        assert found["process_reads_mib"] <= total
        assert (found["process_reads_mib"] < total) == (fsdp and processes < 1024)
    assert other == 0  # no axis of a ResNet-50 divides by 4,096 devices


def test_a_pass_around_the_chips_on_paper():
    links = weak_scaling.Links(ici=200e9, dcn=2e9, slice_chips=4)
    assert weak_scaling.pass_ms(1, 1e9, links) == 0
    assert weak_scaling.pass_ms(4, 1e9, links) == pytest.approx(0.75 * 5)
    across = 0.5 * 1e9 / 4 / 2e9 * 1e3  # a quarter of the array between two slices
    assert weak_scaling.pass_ms(8, 1e9, links) == pytest.approx(3.75 + across)


REPORT = {
    **{"part": "train", "topology": "v5e:2x2", "devices": 4},
    **{"modelled_ms": 100.0, "per_device": 8},
}


def collectives(*parts):
    return {"collectives": [{"kind": kind, "mib": mib} for kind, mib in parts]}


def test_the_step_and_its_exchange_make_the_efficiency():
    report = REPORT | collectives(("all-reduce", 90.0), ("all-reduce", 10.0), ("all-to-all", 1e6))
    alone, many = weak_scaling.table(report, [1, 256])
    assert alone["efficiency"] == 1 and alone["images_per_s"] == pytest.approx(80)
    exchange = 2 * 255 / 256 * 100 * 2**20 / 200e9 * 1e3
    assert many["exchange_ms"] == pytest.approx(exchange)
    assert many["efficiency"] == pytest.approx(100 / (100 + exchange))
    assert many["global_batch"] == 2048


def test_gathered_parameters_and_scattered_gradients_are_an_all_reduce():
    whole = weak_scaling.table(REPORT | collectives(("all-reduce", 100.0)), [64])
    # a report holds results: all of a gathered array, a fourth of a scattered one on 4 chips
    sharded = collectives(("all-gather", 100.0), ("reduce-scatter", 25.0))
    assert weak_scaling.table(REPORT | sharded, [64]) == whole


@pytest.mark.parametrize("wrong", [{"topology": "h100:8"}, {"part": "stem"}, {"modelled_ms": None}])
def test_other_reports_are_refused(wrong):
    report = REPORT | collectives(("all-reduce", 1.0)) | wrong
    with pytest.raises(ValueError, match="give a report of a whole training step .* on v5e or v5p"):
        weak_scaling.table(report, [1])
