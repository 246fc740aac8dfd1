"""The small parts of the engine: compiled programs, shardings, metric files, workdir files."""

import inspect
import json
import logging
import os
import signal
import socket
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import AxisType, PartitionSpec

from atss_jax.configs import quickstart
from atss_jax.errors import UserError
from atss_jax.run import mode_table, stop_signal, workdir_files, workdir_lock
from atss_jax.run.recipe_io import recipe_from_mapping
from atss_jax.runtime import checkpoint_record, compiled, metric_writer, parallel
from atss_jax.runtime.checkpoint import Checkpointer, restore_part


def test_one_program_a_shape_and_a_warning_for_more(caplog):
    step = compiled.CompiledByShape(jax.jit(lambda s, b: s + b.sum()), expected=2)
    for width in (3, 5, 3, 5, 3):
        step(jnp.zeros(()), jnp.ones((2, width)))
    assert step.num_programs == 2 and not caplog.records
    with caplog.at_level(logging.WARNING):
        step(jnp.zeros(()), jnp.ones((2, 7)))
    assert step.num_programs == 3 and "only 2 were planned" in caplog.text
    assert all(min(cost.trace_seconds, cost.compile_seconds) > 0 for cost in step.costs.values())


def test_peak_flops_knows_accelerators_only():
    assert compiled.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert compiled.peak_flops("TPU v5p") == 459e12
    assert compiled.peak_flops("cpu") is None


def test_fsdp_splits_large_arrays_along_a_divisible_axis():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    state = {"kernel": jnp.zeros((3, 3, 64, 128)), "bias": jnp.zeros(8), "odd": jnp.zeros((99, 99))}
    specs = {k: s.spec for k, s in parallel.state_shardings(state, mesh, fsdp=True).items()}
    assert specs == {
        "kernel": PartitionSpec(None, None, None, "data"),
        "bias": PartitionSpec(),
        "odd": PartitionSpec(),
    }
    whole = parallel.state_shardings(state, mesh, fsdp=False)
    assert all(s.is_fully_replicated for s in whole.values())


def test_batches_that_do_not_divide_are_refused():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    parallel.check_batch(32, mesh, accumulate=4)
    with pytest.raises(ValueError, match="multiple of 32"):
        parallel.check_batch(16, mesh, accumulate=4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mode": "cluster"}, "auto"),
        ({"coordinator": ""}, "host:port"),
        ({"process_id": 2}, "from 0"),
    ],
)
def test_bad_addresses_are_refused_before_waiting(changes, message):
    arguments = {
        "mode": "address",
        "coordinator": "localhost:1",
        "num_processes": 2,
        "process_id": 0,
        "timeout": 1,
    }
    with pytest.raises(ValueError, match=message):
        parallel.initialize(**{**arguments, **changes})


def test_rows_after_the_restored_step_are_written_again(tmp_path):
    path = epath.Path(tmp_path / "metrics.jsonl")
    rows = metric_writer.JsonLines(path, keep_until=0)
    for step in range(1, 6):
        rows.write({"step": step, "loss": 0.5})
    rows.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # a kill while writing
    rows = metric_writer.JsonLines(path, keep_until=3)
    rows.write({"step": 4, "loss": float("nan")})
    rows.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] is None


def test_a_damaged_row_loses_no_other_and_is_said(tmp_path, caplog):
    path = epath.Path(tmp_path / "metrics.jsonl")
    lines = [json.dumps({"step": step, "loss": 0.5}) for step in range(1, 6)]
    before = "\n".join([*lines[:2], '{"step": 3, "lo\x00', *lines[3:]]) + "\n"
    path.write_text(before)
    metric_writer.JsonLines(path, keep_until=9).close()
    assert [row["step"] for row in metric_writer.read_rows(path)] == [1, 2, 4, 5]
    assert (tmp_path / "metrics.jsonl.bad-1").read_text() == before
    assert "damaged lines [3]" in caplog.text


def test_an_evaluation_that_was_not_recorded_is_written_again(tmp_path):
    path = epath.Path(tmp_path / "metrics.jsonl")
    rows = metric_writer.JsonLines(path, keep_until=0)
    for row in ({"step": 2, "eval/AP": 0.1}, {"step": 4, "loss": 1.0}, {"step": 4, "eval/AP": 0.2}):
        rows.write(row)
    rows.close()
    metric_writer.JsonLines(path, keep_until=4, is_evaluated=False).close()
    assert metric_writer.read_rows(path) == [{"step": 2, "eval/AP": 0.1}, {"step": 4, "loss": 1.0}]


class BucketPath:
    """A file in a bucket: whole reads and writes, nothing else."""

    content: str | None = None

    def __init__(self, _name):
        pass

    def __fspath__(self):
        return "gs://bucket/metrics.jsonl"

    def exists(self):
        return BucketPath.content is not None

    def read_bytes(self):
        return (BucketPath.content or "").encode()

    def write_text(self, text):
        BucketPath.content = text


def test_rows_in_a_bucket(monkeypatch):
    monkeypatch.setattr(metric_writer, "epath", types.SimpleNamespace(Path=BucketPath))
    rows = metric_writer.JsonLines("gs://bucket/metrics.jsonl", keep_until=0)
    for step in (1, 2, 3):
        rows.write({"step": step})
        rows.flush()
    rows.write({"step": 4})  # never flushed: lost with its process
    rows = metric_writer.JsonLines("gs://bucket/metrics.jsonl", keep_until=2)
    rows.write({"step": 3})
    rows.close()
    assert [row["step"] for row in metric_writer.read_rows("gs://bucket/metrics.jsonl")] == [
        1,
        2,
        3,
    ]


def test_rows_match_their_steps(tmp_path):
    writer = metric_writer.MetricWriter(epath.Path(tmp_path), keep_until=0)
    writer.write(3, {"AP": 0.5}, prefix="eval/")
    writer.write_timing(3, {"seconds": 1.5})
    writer.close()
    assert metric_writer.read_rows(epath.Path(tmp_path) / "metrics.jsonl") == [
        {"step": 3, "eval/AP": 0.5}
    ]
    assert metric_writer.read_rows(epath.Path(tmp_path) / "timing.jsonl") == [
        {"step": 3, "seconds": 1.5}
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_other_processes_write_nothing(tmp_path):
    writer = metric_writer.MetricWriter(epath.Path(tmp_path), keep_until=0, is_active=False)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert not list(tmp_path.iterdir())


def abstract(tree):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


STATE: dict[str, Any] = {
    "params": {"w": np.arange(40000.0)},
    "ema_params": None,
    "step": np.int32(0),
}


def save_steps(folder, *steps, ap=None, **keywords):
    """Saves small states; returns the steps that are kept."""
    keeper = Checkpointer(epath.Path(folder), **keywords)
    for step in steps:
        state = {**STATE, "step": jnp.int32(step), "params": {"w": jnp.arange(40000.0)}}
        keeper.save(step, state, wait=True, run={"bad_steps": step})
        if step in (ap or {}):
            keeper.attach(step, {"AP": (ap or {})[step]}, {"bad_steps": step})
    kept = keeper.steps()
    keeper.close()
    return kept


def restore(folder):
    keeper = Checkpointer(epath.Path(folder))
    try:
        found = keeper.restore_latest(abstract({**STATE, "step": jnp.int32(0)}))
        assert found is not None
        return found
    finally:
        keeper.close()


def test_checkpoints_keep_the_newest_the_best_and_every_mth(tmp_path):
    folder = tmp_path / "c"
    kept = save_steps(folder, *range(1, 7), ap={2: 0.9, 3: 0.1}, keep_last=1, keep_every=4)
    assert kept == [2, 4, 6]
    assert sorted(p.stem for p in folder.glob("*.json")) == ["2", "4", "6"]
    found = restore(folder)
    assert found.step == 6 and int(found.state["step"]) == 6 and found.run == {"bad_steps": 6}
    step, part = restore_part(epath.Path(folder), abstract({"params": STATE["params"]}))
    assert step == 6
    np.testing.assert_array_equal(part["params"]["w"], np.arange(40000.0))


def test_the_best_checkpoint_survives_a_restart(tmp_path):
    save_steps(tmp_path / "c", 10, 20, 30, ap={10: 0.9, 20: 0.2, 30: 0.1})
    assert save_steps(tmp_path / "c", 40, 50) == [10, 40, 50]


def flip_a_bit(checkpoint):
    """Changes one bit in the middle of the largest file."""
    file = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_falls_back_and_is_set_aside(tmp_path, caplog):
    folder = tmp_path / "c"
    save_steps(folder, 3, 6)
    flip_a_bit(folder / "6")
    step, _ = restore_part(epath.Path(folder), abstract({"params": STATE["params"]}))
    assert step == 3 and (folder / "6").exists()  # reading alone renames nothing
    assert restore(folder).step == 3
    assert "checkpoint 6 is damaged" in caplog.text
    assert (folder / "6.damaged" / "record.json").exists() and not (folder / "6").exists()
    assert save_steps(folder, 6) == [3, 6] and restore(folder).step == 6


def test_a_missing_file_falls_back(tmp_path):
    save_steps(tmp_path / "c", 3, 6)
    next(p for p in (tmp_path / "c" / "6").rglob("*") if p.is_file()).unlink()
    assert restore(tmp_path / "c").step == 3


def test_a_failed_read_is_no_damage(tmp_path, monkeypatch):
    save_steps(tmp_path / "c", 3, 6)
    monkeypatch.setattr(checkpoint_record, "PAUSE_SECONDS", 0.0)
    original, calls = checkpoint_record.checksum, []

    def failing(path, failures):
        calls.append(path)
        if len(calls) <= failures:
            raise OSError("timed out")
        return original(path)

    monkeypatch.setattr(checkpoint_record, "checksum", lambda path: failing(path, 99))
    with pytest.raises(OSError, match="timed out"):
        restore(tmp_path / "c")
    assert (tmp_path / "c" / "6").exists() and len(calls) == 3
    calls.clear()
    monkeypatch.setattr(checkpoint_record, "checksum", lambda path: failing(path, 2))
    assert restore(tmp_path / "c").step == 6


def test_a_checkpoint_without_checksums_is_restored_with_a_notice(tmp_path, caplog):
    save_steps(tmp_path / "c", 3)
    (tmp_path / "c" / "3.json").unlink()
    found = restore(tmp_path / "c")
    assert found.step == 3 and found.run is None and "no checksums" in caplog.text


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "a\\b"])
def test_folders_that_orbax_cannot_read_again_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot be read again"):
        Checkpointer(epath.Path(tmp_path / name))
    assert not list(tmp_path.iterdir())


def test_no_checkpoint_is_said_clearly(tmp_path):
    with pytest.raises(UserError, match="Train first"):
        restore_part(epath.Path(tmp_path / "nothing"), {})
    with pytest.raises(UserError, match="Train first"):
        workdir_files.open_workdir(quickstart.recipe(), epath.Path(tmp_path / "nothing"))


def test_checkpoints_without_a_recipe_are_refused(tmp_path):
    (tmp_path / "checkpoints" / "9").mkdir(parents=True)
    config = recipe_from_mapping(quickstart.get_config().to_dict())
    with pytest.raises(UserError, match="no config.json"):
        workdir_files.claim_workdir(config, epath.Path(tmp_path))


def test_classes_are_compared_and_never_overwritten(tmp_path):
    workdir = epath.Path(tmp_path)
    workdir_files.write_classes(workdir, ("cat", "dog"), (1, 2))
    before = (tmp_path / "classes.json").read_text()
    workdir_files.write_classes(workdir, ("cat", "dog"), (1, 2))
    for names, ids in ((("dog", "cat"), (1, 2)), (("cat", "dog", "cow"), (1, 2, 3))):
        with pytest.raises(UserError, match="was trained on"):
            workdir_files.write_classes(workdir, names, ids)
    assert (tmp_path / "classes.json").read_text() == before


def test_one_run_per_workdir(tmp_path):
    workdir, lock = epath.Path(tmp_path), tmp_path / "run.lock"
    with (
        workdir_lock.hold(workdir),
        pytest.raises(UserError, match=f"process {os.getpid()}"),
        workdir_lock.hold(workdir),
    ):
        pass
    assert not lock.exists()
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "time": 0}))
    with workdir_lock.hold(workdir):  # no such process: a kill left it
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_a_burst_of_signals_is_one_and_a_late_interrupt_acts(monkeypatch):
    stop = stop_signal.StopSignal()
    try:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        with pytest.raises(stop_signal.Preempted, match="before the first step"):
            stop.check()
        monkeypatch.setattr(stop_signal, "BURST_SECONDS", -1.0)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.restore()


@pytest.mark.parametrize("name", mode_table.MODES)
def test_every_mode_has_its_function(name):
    mode = mode_table.MODES[name]
    arguments = list(inspect.signature(mode.load()).parameters)
    assert len(arguments) == 3 if mode.needs_recipe else not arguments
    assert bool(mode.command) == bool(mode.help)
