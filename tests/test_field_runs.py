"""Fields of a run, of prediction and of export: a run with all of them changed, and its traces."""

import csv
import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from atss_jax.errors import UserError
from atss_jax.evaluation import whole_split
from atss_jax.run import build, export, predict, preflight, train, training_setup
from atss_jax.run.detector import Detector
from atss_jax.run.step_log import NonFiniteError
from atss_jax.runtime import checkpoint, metric_writer, parallel
from tests import small_detector, tiny

pytestmark = pytest.mark.slow

COVERED = {
    "run.seed", "run.log_every", "run.checkpoint_every", "run.async_checkpoints",
    "run.eval_every", "run.keep_last", "run.keep_best", "run.keep_every", "run.max_bad_steps",
    "run.distributed", "run.coordinator", "run.num_processes", "run.process_id",
    "run.init_timeout", "run.fsdp", "run.compilation_cache", "run.profile_steps", "run.report",
    "run.wandb", "eval.backend", "eval.format_only", "eval.num_pictures", "model.init_from",
    "predict.input", "predict.output", "predict.score_threshold", "export.format",
    "export.batch_size", "export.platforms",
}  # fmt: skip
"""Fields of the tests below."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The tiny set with a validation split."""
    folder = tmp_path_factory.mktemp("data")
    tiny.make_coco(folder, 12, "train")
    tiny.make_coco(folder, 4, "val")
    return folder


@dataclasses.dataclass
class Traces:
    """What a run left, and what its parts were told."""

    workdir: Path
    saves: list[bool]
    """Of each save, whether the loop waited for it."""
    projects: list[str]
    """Projects of Weights & Biases."""
    profiled: list[Any]
    """Folders of the profiler."""


@pytest.fixture(scope="module")
def changed(data, tmp_path_factory):
    """A run of 6 steps with every interval other than the tiny recipe's."""
    workdir = tmp_path_factory.mktemp("changed") / "run"
    traces = Traces(workdir, [], [], [])
    with pytest.MonkeyPatch.context() as patch:
        save = checkpoint.Checkpointer.save

        def recorded(self, *given, wait, **named):
            traces.saves.append(wait)
            return save(self, *given, wait=wait, **named)

        patch.setattr(checkpoint.Checkpointer, "save", recorded)
        patch.setattr(jax.profiler, "start_trace", traces.profiled.append)
        patch.setattr(jax.profiler, "stop_trace", lambda: traces.profiled.append("stop"))
        wandb: Any = types.ModuleType("wandb")
        wandb.__spec__ = types.SimpleNamespace()
        run = types.SimpleNamespace(
            id="a1", log=lambda *_, **__: None, finish=lambda: None, config=None
        )
        wandb.init = lambda project, **_: (traces.projects.append(project), run)[1]
        wandb.Image = lambda rgb: rgb
        patch.setitem(sys.modules, "wandb", wandb)
        config = tiny.make_config(
            data,
            run__log_every=1,
            run__checkpoint_every=3,
            run__eval_every=4,
            run__keep_last=1,
            run__keep_best=0,
            run__keep_every=3,
            run__async_checkpoints=True,
            run__compilation_cache=str(workdir.parent / "programs"),
            run__profile_steps=(2, 4),
            run__report=True,
            run__wandb="atss",
            eval__num_pictures=3,
        )
        train.train(config, epath.Path(workdir), with_evaluation=True)
    return traces


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_intervals(changed):
    timing = metric_writer.read_rows(epath.Path(changed.workdir / "timing.jsonl"))
    assert [row["step"] for row in timing] == [1, 2, 3, 4, 5, 6]  # log_every
    # steps 3, 4 and 6 by checkpoint_every, eval_every and the end; async_checkpoints has the loop
    # wait only for those that are evaluated
    assert changed.saves == [False, True, True]
    rows = metric_writer.read_rows(epath.Path(changed.workdir / "metrics.jsonl"))
    assert [row["step"] for row in rows if "eval/AP" in row] == [4, 6]  # eval_every


def test_kept_checkpoints(changed, data, tmp_path):
    assert steps(changed.workdir / "checkpoints") == [3, 6]  # keep_last 1, keep_every 3
    state = {"step": np.int32(1)}
    for best, kept in ((0, [3]), (1, [1, 3])):
        folder = epath.Path(tmp_path / str(best))
        kept_by = checkpoint.Checkpointer(folder, keep_last=1, keep_best=best, keep_every=0)
        for step in (1, 2, 3):
            kept_by.save(step, state, None, wait=True)
            kept_by.attach(step, {"AP": 1.0 / step}, {})
        kept_by.close()
        assert steps(Path(folder)) == kept


def test_what_is_recorded(changed):
    assert any((changed.workdir.parent / "programs").iterdir())  # compilation_cache
    assert changed.profiled == [str(changed.workdir / "profile"), "stop"]  # profile_steps
    assert changed.projects == ["atss"]  # wandb
    assert (changed.workdir / "report.html").exists()  # report
    assert len(list((changed.workdir / "pictures").glob("**/*.jpg"))) >= 3  # num_pictures


def test_the_seed_is_of_parameters_and_data(data):
    def start(seed):
        config = tiny.make_config(data, run__seed=seed)
        setup = training_setup.set_up(config)
        leaves = jax.tree.leaves(training_setup.initial_state(config, setup).params)
        order = setup.plan.step(0).record_index.tolist()
        return np.concatenate([np.ravel(leaf) for leaf in leaves]), order

    (one, first), (two, second), (again, third) = start(0), start(1), start(0)
    assert not np.array_equal(one, two) and first != second
    assert np.array_equal(one, again) and first == third


def test_fsdp_spreads_the_state(data):
    def spread(fsdp):
        config = tiny.make_config(data, run__fsdp=fsdp, data__global_batch=8)
        shardings = jax.tree.leaves(training_setup.set_up(config).shardings.params)
        return any(not sharding.is_fully_replicated for sharding in shardings)

    assert spread(True) and not spread(False)


def test_bad_steps_in_a_row(data, tmp_path):
    config = tiny.make_config(
        data, run__max_bad_steps=2, run__report=False, optim__learning_rate=1e30, optim__momentum=0
    )
    with pytest.raises(NonFiniteError, match=r"2 steps in a row .*run\.max_bad_steps=2"):
        train.train(config, epath.Path(tmp_path / "run"), with_evaluation=False)


def test_processes_are_joined_as_told(data, monkeypatch):
    told: dict[str, Any] = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: told.update(given))
    monkeypatch.setattr(parallel, "_check_port", lambda _: None)
    config = tiny.make_config(
        data,
        run__distributed="address",
        run__coordinator="host:1234",
        run__num_processes=5,
        run__process_id=3,
        run__init_timeout=77,
    )
    build.make_mesh(config)
    assert (told["coordinator_address"], told["num_processes"]) == ("host:1234", 5)
    assert (told["process_id"], told["initialization_timeout"]) == (3, 77)


def test_metrics_backend_and_format_only(data, monkeypatch):
    asked: list[str] = []

    def metrics(*_, backend, **__):
        asked.append(backend)
        return {"AP": 1.0}

    monkeypatch.setattr(whole_split, "coco_metrics", metrics)
    monkeypatch.setattr(preflight, "coco_metrics", metrics)
    for only in (False, True):
        config = tiny.make_config(data, eval__backend="hotcoco", eval__format_only=only)
        setup = training_setup.set_up(config)
        state = training_setup.initial_state(config, setup)
        val = train.validation.Validation(
            config, setup.settings.model, setup.mesh, dataset=build.load_dataset(config, "val")
        )
        asked.clear()
        preflight.check_evaluation(config, val, state)
        outcome = val.run({"params": state.params, "batch_stats": state.batch_stats})
        assert outcome is not None
        assert asked == ([] if only else ["hotcoco", "hotcoco"]) and bool(outcome.metrics) != only


def test_weights_to_start_from(data):
    config = tiny.make_config(data, model__init_from=str(data / "no_such.safetensors"))
    with pytest.raises((UserError, FileNotFoundError), match="no_such"):
        training_setup.initial_state(config, training_setup.set_up(config))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    small_detector.write_workdir(folder, small_detector.make_config())
    return folder


def test_prediction(workdir, data, tmp_path):
    listed = []
    for threshold in (0.0, 0.25):
        fields = {"predict.input": (str(data / "val"),), "predict.output": str(tmp_path / "found")}
        config = small_detector.make_config(**fields, **{"predict.score_threshold": threshold})
        counts = predict.predict_workdir(config, epath.Path(workdir))
        assert counts["images"] == 4 and (tmp_path / "found" / "0.jpg").exists()
        with (tmp_path / "found" / "detections.csv").open() as file:
            listed.append([float(row["score"]) for row in csv.DictReader(file)])
    assert min(listed[1], default=1.0) >= 0.25 > min(listed[0])


def test_export(workdir, tmp_path, monkeypatch):
    config = small_detector.make_config(
        **{"export.batch_size": 3, "export.platforms": ("cpu", "cuda")}
    )
    detector = Detector.load(workdir, config=config)
    (file,) = export.write_stablehlo(detector, epath.Path(tmp_path))
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    assert program.platforms == ("cpu", "cuda") and program.in_avals[0].shape[0] == 3
    written: list[str] = []
    names = ["stablehlo", "onnx", "onnx_network"]
    for name in names:
        monkeypatch.setitem(export.WRITERS, name, lambda *_, n=name: written.append(n) or [])
    for name in names:
        changed = small_detector.make_config(**{"export.format": name})
        export.export_workdir(changed, epath.Path(workdir))
    assert written == names
    assert json.loads((tmp_path / "detector.json").read_text())["format"] == "stablehlo"
