"""Exported programs: the same detections as the live detector, in a process without the package."""

import datetime
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from etils import epath
from jax import export as jax_export

import run_exported
from atss_jax.run import export
from atss_jax.run.detector import Detector
from tests.exported_program import check_equal, detections, run_program
from tests.small_detector import CATEGORY_IDS, CLASS_NAMES, make_config
from tests.small_detector import write_workdir as write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(live detector, folder of its export)."""
    workdir = epath.Path(tmp_path_factory.mktemp("run"))
    config = make_config(**{"export.batch_size": 0, "export.platforms": ("cpu", "cuda", "tpu")})
    write_run(workdir, config)
    return Detector.load(workdir), export.export_workdir(config, workdir)


@pytest.mark.slow
def test_coco_images(exported, shared, tmp_path):
    detector, folder = exported
    paths = sorted((shared / "data/coco_sample/images/val2017").glob("*.jpg"))[:20]
    assert len(paths) == 20
    check_equal(detector, paths, detections(folder, paths, tmp_path))


def test_description_and_any_batch(exported, tmp_path):
    detector, folder = exported
    about = json.loads((folder / "detector.json").read_text())
    assert about["class_names"] == list(CLASS_NAMES)
    assert about["category_ids"] == list(CATEGORY_IDS)
    assert [(f["height"], f["width"]) for f in about["files"]] == [(96, 128)]
    program = jax_export.deserialize(bytearray((folder / about["files"][0]["path"]).read_bytes()))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    images = np.zeros((3, 96, 128, 3), np.uint8)
    images[:, :64, :96] = image
    boxes, scores, labels, is_valid = program.call(
        images, np.array([[64, 96]] * 3, np.int32), np.ones((3, 2), np.float32)
    )
    live = detector(image)
    count = len(live.scores)
    assert count > 10 and np.asarray(is_valid).sum(1).tolist() == [count] * 3
    for row in range(3):
        np.testing.assert_allclose(scores[row, :count], live.scores, atol=1e-5)
        np.testing.assert_allclose(boxes[row, :count], live.boxes, atol=1e-2)
        np.testing.assert_array_equal(labels[row, :count], live.labels)
    cv2.imwrite(str(tmp_path / "image.png"), image[..., ::-1])
    paths = [tmp_path / "image.png"]
    check_equal(detector, paths, detections(folder, paths, tmp_path))


def test_description_says_until_when_and_what(exported):
    _, folder = exported
    about = json.loads((folder / "detector.json").read_text())
    assert about["versions"]["jax"] == jax.__version__ in about["loads_with"]
    assert "6 months" in about["loads_with"]
    exported_on = datetime.date.fromisoformat(about["exported_on"])
    assert abs((datetime.datetime.now(datetime.UTC).date() - exported_on).days) <= 1
    for entry in about["files"]:
        data = (folder / entry["path"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert not list(folder.glob("*.tmp"))


def test_outside_the_window_of_versions(tmp_path, monkeypatch, capsys):
    """One line that says who wrote the file, when, and what to do; no image is tried."""

    def refuse(content):
        raise ValueError("The serialization version 99 is too new.\nMore.")

    file = {"path": "a.stablehlo", "height": 64, "width": 64}
    about = {
        "format": "stablehlo",
        "files": [file],
        "batch_size": 1,
        "resize": {"short_side": 32, "max_long_side": 64},
        "versions": {"jax": "9.8.7"},
        "exported_on": "2030-01-02",
    }
    (tmp_path / "detector.json").write_text(json.dumps(about))
    (tmp_path / "a.stablehlo").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((32, 32, 3), np.uint8))
    monkeypatch.setattr(jax_export, "deserialize", refuse)
    monkeypatch.setattr(sys, "argv", ["program", str(tmp_path), str(tmp_path / "image.png")])
    assert run_exported.main() == 2
    error = capsys.readouterr().err
    for text in ("9.8.7", "2030-01-02", "version 99", "atss export WORKDIR", jax.__version__):
        assert text in error
    assert error.count("\n") == 1


def test_another_format_replaces_the_files(tmp_path, monkeypatch, capsys):
    """What the old detector.json names goes, and nothing else; a line says so."""

    def write_other(detector, folder):
        (folder / "detector_96x128.onnx").write_bytes(b"new")
        export.describe(detector, folder, [folder / "detector_96x128.onnx"], "onnx", {})
        return [folder / "detector_96x128.onnx"]

    monkeypatch.setitem(export.WRITERS, "onnx", write_other)
    workdir = epath.Path(tmp_path)
    write_run(workdir, make_config())
    (workdir / "export").mkdir()
    (workdir / "export/mine.stablehlo").write_bytes(b"of the user")
    (workdir / "precious").write_bytes(b"outside")

    def names():
        return sorted(path.name for path in (workdir / "export").iterdir())

    export.export_workdir(make_config(), workdir)
    assert names() == ["detector.json", "detector_96x128.stablehlo", "mine.stablehlo"]
    export.export_workdir(make_config(), workdir)
    assert "removed" not in capsys.readouterr().out
    export.export_workdir(make_config(**{"export.format": "onnx"}), workdir)
    assert names() == ["detector.json", "detector_96x128.onnx", "mine.stablehlo"]
    assert "detector_96x128.stablehlo: removed, of the export before" in capsys.readouterr().out
    (workdir / "export/detector.json").write_text('{"files": [{"path": "../precious"}]}')
    assert not export.named_files(workdir / "export") and (workdir / "precious").exists()
    (workdir / "export/detector.json").write_text("broken")
    assert not export.named_files(workdir / "export")


def test_package_not_installed(exported, tmp_path):
    """One line with a command that installs it."""
    _, folder = exported
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((32, 32, 3), np.uint8))
    done = run_program(
        [folder, tmp_path / "image.png"], tmp_path, without=("atss_jax", "flatbuffers")
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install jax flatbuffers" in done.stderr


def test_program_answers_everything(exported, tmp_path):
    """Help, no arguments, no image, images of extreme proportions: answers, no tracebacks."""
    _, folder = exported
    for arguments, code, text in (
        (["--help"], 0, "that `atss export` wrote"),
        ([], 2, "the following arguments are required"),
        ([tmp_path, "a.png"], 2, "Give an export folder"),
        ([folder, tmp_path], 2, "is a folder. Give image files"),
    ):
        done = run_program(arguments, tmp_path)
        assert done.returncode == code and text in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths = [tmp_path / "broken.png"]
    for height, width in ((270, 100), (20, 400), (1, 300)):
        paths.append(tmp_path / f"{height}x{width}.png")
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        cv2.imwrite(str(paths[-1]), image)
    done = run_program([folder, *paths], tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr == f"{paths[0]}: no image that OpenCV reads\n"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["file"] for line in lines} >= {str(path) for path in paths[1:3]}
    for line in lines:
        width = int(Path(line["file"]).stem.split("x")[1])
        assert 0 <= line["box"][0] <= line["box"][2] <= width + 1e-2


def test_reader_that_stops_early():
    """As `head` does: no traceback, exit code 0."""
    program = [
        sys.executable,
        "-c",
        "import run_exported as r; r.main = f; raise SystemExit(r.run())",
    ]
    program[2] = "f = lambda: print('x' * 9_999_999) or 1\n" + program[2]
    environment = {**os.environ, "PYTHONPATH": str(Path(run_exported.__file__).parent)}
    with subprocess.Popen(
        program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


def test_bad_settings():
    for field, value, message in (
        (
            "export.format",
            "tflite",
            "export.format='tflite': use one of stablehlo, onnx, onnx_network",
        ),
        ("export.platforms", ("cpu", "npu"), "export.platforms='npu': use one of cpu, cuda"),
    ):
        with pytest.raises(ValueError, match=message):
            make_config(**{field: value})
