"""Prediction of what is damaged, too large or of odd shape: reported, and the rest is kept."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from etils import epath
from PIL import Image

from atss_jax.data import media, media_files
from atss_jax.drawing import visualize
from atss_jax.errors import UserError
from atss_jax.run import predict
from atss_jax.run.detector import Detector
from tests.small_detector import make_config, write_workdir

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_workdir(folder, make_config())
    return folder


def run_predict(workdir, sources, output, **fields):
    values = {"predict.input": tuple(map(str, sources)), "predict.output": str(output), **fields}
    values.setdefault("predict.score_threshold", 0.0)
    return predict.predict_workdir(make_config(**values), epath.Path(workdir))


def write_picture(path: Path, height=40, width=60) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


def write_video(path: Path, part=1.0) -> Path:
    """A video of 20 frames, of which a part of the bytes is kept."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for seed in range(20):
        writer.write(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


def test_strips_are_drawn(workdir, tmp_path):
    sources = [write_picture(tmp_path / "strip.png", 30, 5000)]
    sources.append(write_picture(tmp_path / "wide.png", 4, 66_000))
    counts = run_predict(workdir, sources, tmp_path / "out")
    assert (counts["images"], counts["not_drawn"], counts["unreadable"]) == (2, 0, 0)
    assert media.read_image_file(tmp_path / "out/strip.jpg").shape == (30, 5000, 3)
    assert media.read_image_file(tmp_path / "out/wide.jpg").shape == (4, 65_500, 3)


def test_a_drawing_that_fails_costs_no_table(workdir, tmp_path, capsys, monkeypatch):
    sources = [write_picture(tmp_path / name) for name in ("a.png", "b.png")]
    sources.append(write_video(tmp_path / "c.avi"))
    save = visualize.save_image

    def refuse(*_):
        raise OSError("no video today")

    def save_but_a(path, image):
        if path.name == "a.jpg":
            raise ValueError("no space")
        save(path, image)

    monkeypatch.setattr(visualize, "save_image", save_but_a)
    monkeypatch.setattr(media.VideoWriter, "write", refuse)
    counts = run_predict(workdir, sources, tmp_path / "out")
    assert (counts["images"], counts["not_drawn"], counts["unreadable"]) == (22, 2, 0)
    shown = capsys.readouterr().err
    assert "not drawn: a.png: no space" in shown
    assert shown.count("no video today") == 1
    results = json.loads((tmp_path / "out/detections.json").read_text())
    assert {"a.png", "b.png", "c.avi/frame_000019"} <= {r["file_name"] for r in results}
    assert (tmp_path / "out/b.jpg").exists()


def test_a_video_that_ends_early(workdir, tmp_path, capsys):
    cut = write_video(tmp_path / "cut.avi", 0.5)
    counts = run_predict(workdir, [cut], tmp_path / "out")
    assert 5 < counts["images"] < 15 and counts["unreadable"] == 1
    shown = capsys.readouterr().err
    assert f"cut.avi: only {counts['images']} of 20 frames could be read" in shown
    assert "skipped" not in shown
    whole = write_video(tmp_path / "whole.avi")
    assert run_predict(workdir, [whole], tmp_path / "out")["unreadable"] == 0


def test_a_video_without_frames(workdir, tmp_path, capsys, monkeypatch):
    picture, video = write_picture(tmp_path / "a.png"), write_video(tmp_path / "b.avi")
    monkeypatch.setattr(media.Video, "__iter__", lambda _: iter(()))
    counts = run_predict(workdir, [picture, video], tmp_path / "out")
    assert (counts["images"], counts["unreadable"]) == (1, 1)
    assert "b.avi: none of its frames could be read" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of the 1 files could be read; the first: .*b.avi"):
        run_predict(workdir, [video], tmp_path / "out")


def test_the_limit_of_pixels_is_the_recipes(workdir, tmp_path, capsys):
    small = write_picture(tmp_path / "small.png")
    large = write_picture(tmp_path / "large.png", 50, 100)
    few = {"data.max_pixels": 3000}
    assert run_predict(workdir, [small, large], tmp_path / "out", **few)["unreadable"] == 1
    assert "large.png: does not decode: 100x50 px" in capsys.readouterr().err
    detector = Detector.load(workdir, config=make_config(**few))
    detector(small).draw()
    with pytest.raises(UserError, match="data.max_pixels=3000"):
        detector(large)


def test_a_picture_beyond_the_usual_limit_may_be_the_only_one(tmp_path):
    """The look at headers before a run knows no recipe, so it leaves the limit to what follows."""
    Image.new("1", (14_000, 13_000)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="a.png: does not decode: 14000x13000 px"):
        media.read_image_file(tmp_path / "a.png")
    media_files.check_readable(media_files.find([str(tmp_path)]))
