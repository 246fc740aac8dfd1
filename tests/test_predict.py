"""Prediction: images of any size, in batches; files, folders, videos; drawings and tables."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from atss_jax.data import media, media_files
from atss_jax.errors import UserError
from atss_jax.models import pretrained
from atss_jax.run import predict
from atss_jax.run.detector import Detector
from tests.small_detector import (
    CATEGORY_IDS,
    CLASS_NAMES,
    make_config,
    make_variables,
    write_workdir,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def picture(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 7, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


PICTURES = [picture(i, *size) for i, size in enumerate([(90, 130), (130, 90), (64, 96), (50, 150)])]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_workdir(folder, make_config())
    return folder


@pytest.fixture(scope="module")
def detector(workdir) -> Detector:
    return Detector.load(workdir, batch_size=2)


def test_batches_equal_single_images(detector):
    single = [detector(image).detections for image in PICTURES]
    batched = list(detector.detect(iter(PICTURES)))
    assert len(batched) == len(PICTURES) and detector.class_names == CLASS_NAMES
    for image, one, other in zip(PICTURES, single, batched, strict=True):
        assert 0 < len(one.scores) <= 20 and bool(one.is_valid.all())
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert (np.diff(one.scores) <= 0).all()
        height, width = image.shape[:2]
        assert (one.boxes >= 0).all() and (one.boxes <= np.array([width, height] * 2) + 1e-3).all()
        assert one.boxes[:, 2].max() > width * 0.9  # original px, not the network's


def test_weights_out_and_in_again(workdir, detector, tmp_path):
    """One safetensors file is the whole detector: same detections, bit for bit."""
    path = tmp_path / "detector.safetensors"
    command = [sys.executable, str(ROOT / "scripts" / "convert_weights.py")]
    subprocess.run([*command, f"--workdir={workdir}", f"--output={path}"], check=True)
    again = Detector.load(path, batch_size=2)
    assert again.class_names == detector.class_names
    assert again.category_ids == detector.category_ids
    zeros = jax.tree.map(np.zeros_like, jax.device_get(detector.variables))
    started = pretrained.load_into(path, zeros)  # what model.init_from does
    for a, b in zip(jax.tree.leaves(started), jax.tree.leaves(detector.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    for image in PICTURES[:2]:
        for a, b in zip(again(image).detections, detector(image).detections, strict=True):
            np.testing.assert_array_equal(a, b)


def test_test_time_augmentation_reaches_prediction():
    config = make_config(**{"eval.multiscale": "flip"})
    detector = Detector(config, make_variables(config), CLASS_NAMES, CATEGORY_IDS)
    image = PICTURES[0]
    found, mirrored = detector(image), detector(np.ascontiguousarray(image[:, ::-1]))
    assert len(found.scores) == config.eval.max_detections  # of both passes, merged
    # The merged answer does not know left from right.
    np.testing.assert_allclose(found.scores[:5], mirrored.scores[:5], atol=1e-4)
    widths = found.boxes[:5, 2] - found.boxes[:5, 0]
    np.testing.assert_allclose(
        mirrored.boxes[:5, 0], image.shape[1] - found.boxes[:5, 0] - widths, atol=0.1
    )


def test_bad_arguments(detector, tmp_path):
    with pytest.raises(ValueError, match="type float32 and shape .*give uint8 RGB"):
        detector(PICTURES[0].astype(np.float32))
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        Detector.load(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="both config=... and class_names=..., or neither"):
        Detector.load(tmp_path / "weights.safetensors", class_names=["a"])
    with pytest.raises(FileNotFoundError, match="no image in this folder"):
        media_files.find([str(tmp_path)])


def run_predict(workdir, source, output, **fields):
    sources = source if isinstance(source, list) else [source]
    values = {"predict.input": tuple(map(str, sources)), "predict.output": str(output), **fields}
    return predict.predict_workdir(make_config(**values), predict.epath.Path(workdir))


def test_full_images_are_said_and_inputs_are_never_overwritten(workdir, tmp_path, capsys):
    picture = tmp_path / "a.jpg"
    cv2.imwrite(str(picture), PICTURES[0])
    before = picture.read_bytes()
    none = {"predict.score_threshold": 0.0, "eval.max_detections": 2}
    counts = run_predict(workdir, picture, tmp_path / "out", **none)
    assert counts["detections"] == 2
    assert "1 image(s) reached the limit of 2 boxes (eval.max_d" in capsys.readouterr().out
    with pytest.raises(UserError, match="is the folder of the images"):
        run_predict(workdir, picture, tmp_path)
    assert picture.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == [
        "a.jpg", "out"
    ]  # fmt: skip


def test_folder(workdir, detector, tmp_path, capsys):
    threshold = float(np.median(detector(PICTURES[0]).scores))
    folder, output = tmp_path / "in", tmp_path / "out"
    (folder / "inner").mkdir(parents=True)
    cv2.imwrite(str(folder / "a.png"), PICTURES[0])
    cv2.imwrite(str(folder / "inner/b.png"), PICTURES[1])
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("no image either")
    counts = run_predict(workdir, folder, output, **{"predict.score_threshold": threshold})
    assert (counts["images"], counts["unreadable"]) == (2, 1)
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err and "2 images" in captured.out
    assert "reached the limit" not in captured.out and "3/3 images" in captured.err
    drawn = media.read_image_file(output / "a.jpg")
    assert drawn.shape[0] / drawn.shape[1] == pytest.approx(90 / 130, abs=0.01)
    assert (output / "inner__b.jpg").exists()
    results = json.loads((output / "detections.json").read_text())
    with (output / "detections.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(results) == len(rows) == counts["detections"] > 0
    assert "a.png" in {r["file_name"] for r in results} <= {"a.png", "inner/b.png"}
    assert min(r["score"] for r in results) >= threshold
    first, row = results[0], rows[0]
    assert first["category_id"] == CATEGORY_IDS[CLASS_NAMES.index(row["class"])]
    np.testing.assert_allclose(first["bbox"][2], float(row["x2"]) - float(row["x1"]))


def test_video(workdir, tmp_path):
    source, output = tmp_path / "in.mp4", tmp_path / "out"
    with media.VideoWriter(source, 5.0) as writer:
        for _ in range(7):
            writer.write(PICTURES[2])
    counts = run_predict(workdir, source, output, **{"predict.score_threshold": 0.0})
    assert counts["images"] == 7
    video = media.Video(output / "in.mp4")
    frames = list(video)
    assert len(frames) == 7 and frames[0].shape == PICTURES[2].shape and video.fps == 5
    assert np.abs(frames[0].astype(int) - PICTURES[2]).mean() > 1  # boxes were drawn


def test_several_inputs_are_told_apart_and_drawn_once(workdir, tmp_path):
    """Two files of one name, a folder that holds one of them, a video, a file named twice."""
    for name in ("a/x.jpg", "b/x.jpg", "b/y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), PICTURES[0])
    for name in ("a/clip.mp4", "b/clip.mp4"):
        with media.VideoWriter(tmp_path / name, 5.0) as writer:
            writer.write(PICTURES[2])
    (tmp_path / "broken.avi").write_bytes(b"no video")
    output = tmp_path / "out"
    names = ["a/x.jpg", "b", "a/../b/x.jpg", "a/clip.mp4", "b/*.mp4", "broken.avi", "a/x.jpg"]
    sources = [tmp_path / name for name in names]
    counts = run_predict(workdir, sources, output, **{"predict.score_threshold": 0.0})
    assert (counts["images"], counts["unreadable"]) == (5, 1)
    drawn = {path.name for path in output.iterdir() if path.suffix in (".jpg", ".mp4")}
    assert drawn == {"a__x.jpg", "b__x.jpg", "b__y.jpg", "a__clip.mp4", "b__clip.mp4"}
    results = json.loads((output / "detections.json").read_text())
    frames = [f"{folder}/clip.mp4/frame_000000" for folder in "ab"]
    names = dict.fromkeys(result["file_name"] for result in results)
    assert list(names) == ["a/x.jpg", "b/x.jpg", "b/y.png", *frames]


def test_drawings_below_the_folder_of_images_are_no_input(workdir, tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), PICTURES[0])
    for _ in range(2):
        assert run_predict(workdir, tmp_path, tmp_path / "found")["images"] == 1
    assert len(media_files.find([str(tmp_path / "found")], tmp_path / "found").images) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jpg", "nothing.jpg"], "nothing.jpg: no such file or folder. Give images, videos"),
        (["a.jpg", "empty"], "empty: no image in this folder or below it"),
        (["a.jpg", "*.png"], r"\*.png: no image or video matches this pattern"),
        (["notes.txt"], "notes.txt: not a readable image .* Give images, videos"),
        (["notes.txt", "broken.mp4"], "none of the 2 files can be read; the first: .*notes.txt"),
        (["https://x.org/a.jpg"], "an address must be downloaded first"),
    ],
)
def test_an_input_that_is_none_is_named_before_anything_is_loaded(tmp_path, names, message):
    cv2.imwrite(str(tmp_path / "a.jpg"), PICTURES[0])
    (tmp_path / "empty").mkdir()
    for name in ("notes.txt", "broken.mp4"):
        (tmp_path / name).write_text("notes")
    sources = [name if "://" in name else tmp_path / name for name in names]
    with pytest.raises(UserError, match=message):
        run_predict(tmp_path / "no_run", sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_awkward_images(detector, shared):
    """Every file of the collection is answered, or named in an error; EXIF turns are undone."""
    folder = shared / "data/awkward_images"
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    expected = {entry["file"]: entry for entry in manifest}
    assert len(expected) == 27
    num_read = 0
    for path in media_files.find([str(folder)]).images:
        if path.name == "decompression_bomb.gif":
            continue
        try:
            image = media.read_image_file(path)
        except ValueError as error:
            assert path.name in str(error)
            continue
        num_read += 1
        entry = expected[path.name]
        turned = (entry.get("exif_orientation") or 1) >= 5
        size = (entry["width"], entry["height"]) if turned else (entry["height"], entry["width"])
        assert image.shape[:2] == size, path.name
    assert num_read >= 20
    upright = detector(folder / "hopper_orientation_6.jpg")
    assert len(upright.scores)


def test_weights_on_device_once(detector):
    """The detector's weights are device arrays: calls do not copy them again."""
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(detector.variables))


def test_what_a_detector_takes(detector, tmp_path):
    """A path, bytes, a binary file, PIL, NumPy and JAX arrays give one answer; lists give lists."""
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), PICTURES[0][..., ::-1])
    expected = detector(PICTURES[0])
    data = path.read_bytes()
    forms = [
        path,
        str(path),
        data,
        io.BytesIO(data),
        Image.open(path),
        jax.numpy.asarray(PICTURES[0]),
    ]
    results = detector(list(forms))
    for form, found in zip(forms, results, strict=True):
        for a, b in zip(found.detections, expected.detections, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, err_msg=str(type(form)))
    assert detector([]) == []
    threshold = float(np.median(expected.scores))
    some = detector(PICTURES[0], threshold=threshold)
    assert 0 < len(some.scores) < len(expected.scores) and some.scores.min() >= threshold
    assert detector.names == results[0].names == dict(enumerate(CLASS_NAMES))
    np.testing.assert_array_equal(
        detector(PICTURES[0][..., ::-1], channel_order="bgr").scores, expected.scores
    )
    kept, again = detector([path, PICTURES[0]], threshold=threshold)
    assert (kept.source, again.source, kept.image_size) == (str(path), "", (90, 130))
    np.testing.assert_array_equal(kept.draw(), again.draw())
    with pytest.raises(UserError, match="score between 0 and 1"):
        detector(PICTURES[0], threshold=30.0)
    with pytest.raises(TypeError, match="an image of type int: give a path, an http"):
        detector(7)
    with pytest.raises(ValueError, match="image of 3 bytes"):
        detector(b"abc")


def test_names_and_cells_that_collide_or_compute(detector, tmp_path):
    """`a/b.png` and `a__b.png` have two drawings; a spreadsheet gets text, not formulas."""
    taken: set[str] = set()
    names = ["a/b.png", "a__b.png", "A__B.png", "a__b.png_2"]
    assert len({predict.drawing_name(name, taken) for name in names}) == len(names)
    found = detector(PICTURES[0]).detections
    predict.write_tables(
        [("=cmd|' /C calc'!A0.jpg", found)], detector, predict.epath.Path(tmp_path)
    )
    with (tmp_path / "detections.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {"'=cmd|' /C calc'!A0.jpg"}
    results = json.loads((tmp_path / "detections.json").read_text())
    assert {result["file_name"] for result in results} == {"=cmd|' /C calc'!A0.jpg"}
    assert not list(tmp_path.glob("*.tmp"))
