"""The small parts of the engine: compiled programs, shardings, metric files, workdir files."""

import json
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import AxisType, PartitionSpec

from atss_jax.configs import quickstart
from atss_jax.run import workdir_files
from atss_jax.run.recipe_io import recipe_from_mapping
from atss_jax.runtime import compiled, metric_writer, parallel
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


class BucketPath:
    """A file in a bucket: whole reads and writes, nothing else."""

    content = None

    def __init__(self, _name):
        pass

    def __fspath__(self):
        return "gs://bucket/metrics.jsonl"

    def exists(self):
        return BucketPath.content is not None

    def read_text(self):
        return BucketPath.content

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


def test_checkpoints_keep_the_newest_the_best_and_every_mth(tmp_path):
    state = {"params": {"w": jnp.arange(4.0)}, "ema_params": None, "step": jnp.int32(0)}
    keeper = Checkpointer(epath.Path(tmp_path / "c"), keep_last=1, keep_best=1, keep_every=4)
    for step in range(1, 7):
        metrics = {"AP": {2: 0.9, 3: 0.1}[step]} if step in (2, 3) else None
        keeper.save(step, {**state, "step": jnp.int32(step)}, metrics, wait=True)
    assert keeper.steps() == [2, 4, 6]
    found = keeper.restore_latest(abstract(state))
    assert found is not None and found[0] == 6 and int(found[1]["step"]) == 6
    keeper.discard_after(4)
    assert keeper.steps() == [2, 4]
    keeper.close()
    step, part = restore_part(epath.Path(tmp_path / "c"), abstract({"params": state["params"]}))
    assert step == 4
    np.testing.assert_array_equal(part["params"]["w"], np.arange(4.0))


def test_no_checkpoint_is_said_clearly(tmp_path):
    with pytest.raises(FileNotFoundError, match="Train first"):
        restore_part(epath.Path(tmp_path / "nothing"), {})
    config = recipe_from_mapping(quickstart.get_config().to_dict())
    with pytest.raises(FileNotFoundError, match="Train first"):
        workdir_files.claim_workdir(config, epath.Path(tmp_path / "nothing"), training=False)


def test_eval_mode_may_change_evaluation_fields_only(tmp_path):
    config = recipe_from_mapping(quickstart.get_config().to_dict())
    workdir = epath.Path(tmp_path / "run")
    workdir_files.claim_workdir(config, workdir, training=True)
    values = quickstart.get_config().to_dict()
    values["eval"]["nms_iou"] = 0.5
    workdir_files.claim_workdir(recipe_from_mapping(values), workdir, training=False)
    with pytest.raises(ValueError, match="config.eval.nms_iou: 0.6 -> 0.5"):
        workdir_files.claim_workdir(recipe_from_mapping(values), workdir, training=True)
