"""The commands of a user, one after the other, as the command line gets them."""

import contextlib
import csv
import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from absl import flags

import tiny_run
from atss_jax import main
from atss_jax.run import report
from atss_jax.run.detector import Detector
from atss_jax.runtime.metric_writer import read_rows
from tests import tiny
from tests.conftest import with_devices

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


def command(*arguments) -> int:
    """Exit code of `python -m atss_jax.main` with these arguments, run in this process."""
    for name in list(flags.FLAGS):
        if name == "config" or name.startswith("config."):
            delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    for name in ("workdir", "mode", "checkpoint"):
        flags.FLAGS[name].unparse()
    with pytest.raises(SystemExit) as stop:
        main.run_from_command_line([str(argument) for argument in arguments])
    return stop.value.code or 0  # pyright: ignore[reportReturnType]


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def unchanged(folder: Path, *but: str):
    """No file of a folder changes or appears, except below the named ones."""

    def mine():
        return {n: c for n, c in files_of(folder).items() if n.split("/")[0] not in but}

    before = mine()
    yield
    after = mine()
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A training set and two others."""
    folder = tmp_path_factory.mktemp("data")
    tiny.make_coco(folder)
    for split in ("val", "third"):
        tiny.make_coco(folder, 6, split)
    content = json.loads((folder / "third.json").read_text())
    content["annotations"] = content["annotations"][:3]
    (folder / "third.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The workdir of a run of six steps, evaluated at 4 and 6."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    frozen = ["--config.model.backbone_norm=frozen_bn", "--config.model.frozen_stages=5"]
    every = ["--config.run.eval_every=4", "--config.run.keep_last=3"]
    every.append("--config.eval.score_threshold=0.0")  # six steps give low scores
    assert command(*tiny.flags(data), *frozen, *every, f"--workdir={workdir}") == 0
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, for commands that write."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def test_evaluate_the_folder_alone(run, capsys):
    with unchanged(run, "eval"):
        assert command(f"--workdir={run}", "--mode=eval") == 0
    expected = "step 6 (last), split val, 6 images, 16 objects, test-time augmentation none"
    assert expected in capsys.readouterr().out
    folder = run / "eval" / "val-6-none"
    result = json.loads((folder / "result.json").read_text())
    trained = json.loads((run / "result.json").read_text())
    assert (trained["split"], trained["step"], trained["test_time_augmentation"]) == (
        result["split"], result["step"], result["test_time_augmentation"],
    ) == ("val", 6, "none")  # fmt: skip
    known = {name: v for name, v in result["metrics"].items() if v is not None}
    assert known == {name: v for name, v in trained["metrics"].items() if v != -1}
    assert (folder / "detections.json").read_bytes() == (run / "detections.json").read_bytes()
    for where in (run, folder):
        assert "step 6" in report.make_report(where)


def test_evaluate_a_third_split_with_the_best_checkpoint(run, data, capsys):
    measured = {r["step"]: r["eval/AP"] for r in read_rows(run / "metrics.jsonl") if "eval/AP" in r}
    best = max(measured, key=lambda step: (measured[step], step))
    arguments = (
        f"--config.data.val_annotations={data}/third.json",
        f"--config.data.val_images={data}/third",
        "--config.eval.batch_size=4",
        "--config.eval.multiscale=flip",
    )
    with unchanged(run, "eval"):
        assert command(f"--workdir={run}", "--mode=eval", "--checkpoint=best", *arguments) == 0
    captured = capsys.readouterr()
    assert f"step {best} (best), split third, 6 images, 3 objects, test-time" in captured.out
    assert "config.eval.batch_size: 8 -> 4" in captured.err
    folder = run / "eval" / f"third-{best}-flip"
    result = json.loads((folder / "result.json").read_text())
    assert (result["split"], result["step"], result["checkpoint"]) == ("third", best, "best")
    assert (result["num_images"], result["test_time_augmentation"]) == (6, "flip")
    text = report.make_report(folder)
    assert f"step {best} (best), split third" in text and f"{data}/third.json: 6 images" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.fpn_channels=64"], "config.model.fpn_channels: 32 -> 64"),
        (["--config.optim.ema_decay=0.9"], "config.optim.ema_decay: 0.0 -> 0.9"),
        (["--checkpoint=5"], "one of the steps 2, 4, 6"),
        (["--config.data.val_annotations=missing.json"], "missing.json"),
    ],
)
def test_a_refused_command_changes_nothing(run, arguments, message, capsys):
    with unchanged(run):
        assert command(f"--workdir={run}", "--mode=eval", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_zip_for_the_server_from_a_file_without_annotations(run, data):
    content = json.loads((data / "third.json").read_text())
    del content["annotations"]
    file = data / "image_info_test-dev2017.json"
    file.write_text(json.dumps(content))
    arguments = (
        f"--workdir={run}",
        "--mode=eval",
        f"--config.data.val_annotations={file}",
        f"--config.data.val_images={data}/third",
    )
    with unchanged(run):
        assert command(*arguments) == 2
    with unchanged(run, "eval"):
        assert command(*arguments, "--config.eval.format_only=True") == 0
    folder = run / "eval" / "test-dev2017-6-none"
    with zipfile.ZipFile(folder / "detections_test-dev2017_atss_results.zip") as archive:
        assert archive.namelist() == ["detections_test-dev2017_atss_results.json"]
        results = json.loads(archive.read(archive.namelist()[0]))
    images, categories = ({e["id"] for e in content[k]} for k in ("images", "categories"))
    assert results and {r["image_id"] for r in results} <= images
    assert {r["category_id"] for r in results} <= categories
    assert json.loads((folder / "result.json").read_text())["metrics"] == {}


def test_predict_export_and_load_where_the_data_are_not(run, data, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    shutil.copytree(data / "val", pictures)
    away = data.with_name("away")
    data.rename(away)
    try:
        with unchanged(run, "predictions"):
            source = f"--config.predict.input={pictures}"
            low = "--config.predict.score_threshold=0.0"
            assert command(f"--workdir={run}", "--mode=predict", source, low, "--checkpoint=4") == 0
        assert "step 4 (4)" in capsys.readouterr().out
        about = json.loads((run / "predictions" / "about.json").read_text())
        assert (about["images"], about["step"]) == (6, 4)
        with (run / "predictions" / "detections.csv").open() as file:
            assert list(csv.DictReader(file))
        with unchanged(run, "export"):
            assert command(f"--workdir={run}", "--mode=export", "--checkpoint=best") == 0
        exported = json.loads((run / "export" / "detector.json").read_text())
        assert exported["step"] in (4, 6)
        assert Detector.load(run).step == 6 and Detector.load(run, checkpoint=4).step == 4
        with unchanged(run):
            assert command(f"--workdir={run}", "--mode=describe") == 0
        assert f"classes (of {run})" in capsys.readouterr().out
    finally:
        away.rename(data)


def test_extend_with_moved_data_another_split_of_batches_and_other_checkpoints(
    run, data, tmp_path, capsys
):
    """Three things of a resume that change no parameter, and a longer run, which says so."""
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    (moved / "train.json").rename(moved / "labels.json")
    arguments = (
        f"--workdir={run}",
        f"--config.data.train_annotations={moved}/labels.json",
        f"--config.data.train_images={moved}/train/",
        "--config.optim.accumulate=2",
        "--config.run.checkpoint_every=3",
        "--config.optim.num_steps=9",
    )
    assert command(*arguments) == 0
    printed = capsys.readouterr().err
    assert "config.optim.accumulate: 1 -> 2" in printed
    assert "config.optim.num_steps: 6 -> 9" in printed
    assert re.search(r"9 steps instead of 6.*learning rate", printed)
    assert [r["step"] for r in read_rows(run / "metrics.jsonl") if "loss" in r] == [*range(1, 10)]
    assert json.loads((run / "result.json").read_text())["step"] == 9
    (row,) = read_rows(run / "config_history.jsonl")
    assert set(row["changes"]) == {
        "data.train_annotations",
        "data.train_images",
        "optim.accumulate",
        "optim.num_steps",
        "run.checkpoint_every",
    }
    assert row["step"] == 6
    config = json.loads((run / "config.json").read_text())
    assert config["optim"]["num_steps"] == 9 and config["run"]["checkpoint_every"] == 3


def exported_again(source: Path, target: Path) -> None:
    """The same objects in a label file whose ids are in the opposite order."""
    content = json.loads(source.read_text())
    count = len(content["categories"])
    for entry in content["categories"]:
        entry["id"] = count + 1 - entry["id"]
    for entry in content["annotations"]:
        entry["category_id"] = count + 1 - entry["category_id"]
    target.write_text(json.dumps(content))


def test_a_label_file_exported_again_with_other_ids(run, data, tmp_path, capsys):
    """Training refuses it and changes nothing; an evaluation matches classes by name."""
    for split in ("train", "val"):
        exported_again(data / f"{split}.json", tmp_path / f"{split}.json")
    with unchanged(run):
        train = f"--config.data.train_annotations={tmp_path}/train.json"
        assert command(f"--workdir={run}", train, "--config.optim.num_steps=9") == 2
    assert "was trained on" in capsys.readouterr().err
    val = f"--config.data.val_annotations={tmp_path}/val.json"
    assert command(f"--workdir={run}", "--mode=eval", val) == 0
    found = json.loads((run / "eval" / "val-6-none" / "result.json").read_text())["metrics"]
    expected = json.loads((run / "result.json").read_text())["metrics"]
    assert {n: -1 if v is None else v for n, v in found.items()} == pytest.approx(expected)


def test_fine_tune_from_the_folder_onto_other_classes(run, data, tmp_path, capsys):
    """One class stays, in another place; one is new; one is left out."""
    content = json.loads((data / "train.json").read_text())
    names = [entry["name"] for entry in content["categories"]]
    for entry, name in zip(content["categories"], ["new", *names[2:], names[0]], strict=False):
        entry["name"] = name
    (tmp_path / "other.json").write_text(json.dumps(content))
    workdir = tmp_path / "tuned"
    arguments = [f"--config.data.train_annotations={tmp_path}/other.json"]
    arguments += [f"--config.model.init_from={run}", "--config.optim.num_steps=1"]
    arguments += [f"--workdir={workdir}", "--mode=train"]
    recipe = ["--config.model.backbone_norm=frozen_bn", "--config.model.frozen_stages=5"]
    with unchanged(run):
        assert command(*tiny.flags(data), *recipe, *arguments) == 0
    printed = capsys.readouterr().err
    assert re.search(rf"classes taken by name: .*{names[0]}", printed)
    assert "start values: new" in printed and f"left out: {names[1]}" in printed
    assert f"starting from the weights of {run}, step 6" in printed and "random" not in printed
    again = [*arguments[:-1], "--config.optim.num_steps=2", "--mode=train"]
    assert command(*tiny.flags(data), *recipe, *again) == 0
    resumed = capsys.readouterr().err
    assert resumed.count(str(run)) == 1 and "starting from" not in resumed
    assert f"newest checkpoint in {workdir}; {run} was read when the run began" in resumed
    assert "going on from the checkpoint of step 1" in resumed


def test_two_processes_resume_and_evaluate_and_one_evaluates_their_run(tmp_path, monkeypatch):
    """Nothing may ask for devices before the processes have joined, also where a workdir exists."""
    monkeypatch.setenv("XLA_FLAGS", with_devices(1)["XLA_FLAGS"])
    flags = tiny_run.make_data(tmp_path / "data")
    log, workdir = tmp_path / "log.txt", tmp_path / "run"

    def start(mode, *more, processes=2):
        run = tiny_run.Run(workdir, [*flags, *more], log, mode=mode, processes=processes)
        codes = run.wait(280)
        assert set(codes) == {0}, run.text()[-3000:]

    start("train", "--config.run.max_minutes=30")
    start("train", "--config.run.max_minutes=30", "--config.model.init_from=hf://no/such@1/file")
    assert "as chosen when the run began" in log.read_text()
    assert "is not read" in log.read_text()
    start("eval")
    result = workdir / "eval" / "val-6-none" / "result.json"
    by_two = json.loads(result.read_text())["metrics"]
    result.unlink()
    flags.clear()  # the folder alone: how many processes there were is not of the run
    start("eval", processes=1)
    assert json.loads(result.read_text())["metrics"] == by_two
