"""The scripts around the data, run in this process on a small set."""

import argparse
import dataclasses
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from atss_jax import cli
from atss_jax.data.config import DataConfig
from atss_jax.data.sources import load_split
from atss_jax.data.tfds_builders import load_tfds
from atss_jax.run import auto_fields, build, check_data, recipe_files, recipe_io
from tests.test_loader import make_set

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SMALL = ["--buckets=64x96,96x64", "--max_long_side=96"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script; returns what it printed and its exit status."""

    def run_script(name: str, *arguments: str) -> tuple[str, object]:
        monkeypatch.syspath_prepend(str(SCRIPTS))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        status: object = 0
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        return capsys.readouterr().out, status

    return run_script


@pytest.fixture
def source(tmp_path) -> list[str]:
    make_set(tmp_path, 9)
    return [f"--annotations={tmp_path}/a.json", f"--images={tmp_path}"]


def make_set_folder(folder: Path, count: int) -> None:
    """A folder with a small set, split by `data.val_fraction`."""
    folder.mkdir()
    make_set(folder, count)


@pytest.mark.parametrize("name", ["prepare_coco.py", "bench_input.py"])
def test_help(run, name):
    printed, status = run(name, "--help")
    assert status == 0 and "usage:" in printed


def test_prepare(run, source, tmp_path):
    arguments = [*source, f"--data_dir={tmp_path}", "--name=mine", "--split=train"]
    printed, status = run("prepare_coco.py", *arguments)
    assert status == 0 and "9 images" in printed
    assert load_tfds("mine", "train", str(tmp_path)).num_records == 9
    _, status = run("prepare_coco.py", *source, "--data_dir=x", "--name=A b", "--split=train")
    assert "error: name='A b'" in str(status)


@pytest.fixture
def atss(capsys) -> Callable[..., tuple[str, int]]:
    """Runs `atss` with arguments; (what it printed, exit code)."""

    def run_command(*arguments: str) -> tuple[str, int]:
        status = cli.main(arguments)
        return capsys.readouterr().out, status

    return run_command


def test_check(atss, source, tmp_path):
    printed, status = atss(
        "check", *source, *SMALL, "--short_side=48", "--decode", f"--html={tmp_path}/r.html"
    )
    assert status == 0
    assert "images: 9 good of 9 listed" in printed and "64x96: 66.7 %" in printed
    assert "data:image/jpeg" in (tmp_path / "r.html").read_text()  # an image without boxes is odd
    (tmp_path / "3.png").write_bytes(b"broken")
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][0]["bbox"] = [1, 1, 0, 4]
    (tmp_path / "a.json").write_text(json.dumps(content))
    printed, status = atss("check", *source, *SMALL, "--short_side=48")
    assert status == 1
    assert "image_undecodable: 1" in printed and "box_empty: 1" in printed
    assert "bad: image 30 (" in printed


def test_browse(atss, source, tmp_path):
    out = tmp_path / "sheet.png"
    arguments = ["--short_sides=40-48", "--batch_size=2", "--batches=2", f"--out={out}"]
    more = ["--tile_width=120", "--augmentations", "scale_crop(0.5, 1.5)", "mosaic(0.5)"]
    _, status = atss("browse", *source, *SMALL, *arguments, *more)
    assert status == 0
    sheet = cv2.imread(str(out))
    assert sheet is not None and sheet.shape[1] == 2 * 120 + 3 * 10 and sheet.max() > 100


def test_browse_and_check_see_what_training_sees(atss, tmp_path):
    """Sizes, batch and augmentations of `atss train FOLDER`; the batches of a run's folder."""
    make_set_folder(tmp_path / "data", 40)
    folder = str(tmp_path / "data")
    recipe = recipe_io.recipe_from_mapping(recipe_files.load_recipe("coco_json").to_dict())
    data = dataclasses.replace(recipe.data, root=folder, image_size=0, max_boxes=0)
    recipe = dataclasses.replace(recipe, data=data)
    recipe, lines = auto_fields.resolve(recipe, *build.load_sets(recipe))
    sheets = [tmp_path / name for name in ("folder.png", "run.png", "other.png")]
    options = ["--batches=1", "--tile_width=60"]
    printed, _ = atss("browse", *options, folder, f"--out={sheets[0]}")
    assert printed.startswith(f"as in `atss train`: {lines[0]}\n")
    assert "1 batches of 4 images" in printed
    assert lines[0] in atss("check", folder, "--data.image_size=auto")[0]
    assert "image size 64 px" in atss("check", folder, "--data.image_size=64")[0]
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(recipe_io.recipe_to_json(recipe))
    assert "as in the run" in atss("browse", str(run), *options, f"--out={sheets[1]}")[0]
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    atss("browse", folder, *options, f"--out={sheets[2]}", "--seed=1")
    assert sheets[0].read_bytes() != sheets[2].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["browse", "--data.image_size=64", "--max_long_side=96"], "both given"),
        (["check", "--data.image_size=64", "--short_side=96"], "both given"),
        (["check", "--root=elsewhere"], "not both"),
        (["browse", "--data.image_size=8"], "at least 32 px"),
        (["browse", "--data.val_fraction=1.5"], "1.5: must be above 0 and at most 1"),
        (["check", "--data.val_fraction=half"], "invalid float value: 'half'"),
    ],
)
def test_browse_and_check_refuse(tmp_path, capsys, arguments, message):
    make_set_folder(tmp_path / "data", 9)
    assert cli.main([arguments[0], str(tmp_path / "data"), *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_check_speaks_of_both_parts(atss, tmp_path):
    make_set_folder(tmp_path / "data", 40)
    printed, _ = atss("check", str(tmp_path / "data"))
    train, val = re.findall(r"^part: (\S+)", printed, re.M)
    assert (train, val) == ("data/train", "data/val")
    assert "good of" in printed.partition("part: data/val")[2]
    shown, _ = atss("check", str(tmp_path / "data"), "--split=val")
    assert re.findall(r"^part: (\S+)", shown, re.M) == ["data/val"]
    assert "min / 25 % / median / 75 % / max of boxes per image: " in shown


def test_check_and_browse_split_as_asked(atss, tmp_path, capsys):
    make_set_folder(tmp_path / "data", 40)
    counts = []
    for fraction in ("0.2", "0.5", "0.001"):
        printed, _ = atss("check", str(tmp_path / "data"), f"--data.val_fraction={fraction}")
        counts.append([int(n) for n in re.findall(r"images: (\d+) good", printed)])
    recipe = recipe_io.recipe_from_mapping({"data": {"root": str(tmp_path / "data")}})
    sets = build.load_sets(recipe)
    assert counts[0] == [dataset.num_records for dataset in sets] and counts[2] == [39, 1]
    assert counts[1] != counts[0] and sum(counts[1]) == 40
    options = ["--split=val", "--data.val_fraction=0.001", "--batches=1", "--tile_width=60"]
    printed, status = atss("browse", str(tmp_path / "data"), *options, f"--out={tmp_path}/a.png")
    assert status == 0 and "1 batches of" in printed
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(recipe_io.recipe_to_json(recipe))
    assert cli.main(["browse", str(tmp_path / "run"), "--data.val_fraction=0.5"]) == 2
    assert "--data.val_fraction: the run in" in capsys.readouterr().err


def test_box_sides_are_those_of_resized_images(tmp_path):
    """The long side binds in one of the images."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for id_, (height, width) in ((1, (300, 400)), (2, (200, 2000))):
        cv2.imwrite(str(tmp_path / f"{id_}.png"), np.zeros((height, width, 3), np.uint8))
        size = {"height": height, "width": width}
        content["images"].append({"id": id_, "file_name": f"{id_}.png", **size})
        box = {"bbox": [5, 5, 40, 40], "area": 1600, "category_id": 1}
        content["annotations"].append({"id": id_, "image_id": id_, **box})
    (tmp_path / "a.json").write_text(json.dumps(content))
    config = DataConfig(train_annotations=f"{tmp_path}/a.json", train_images=str(tmp_path))
    sizes = argparse.Namespace(short_side=240, max_long_side=320, buckets=((256, 320),))
    lines = check_data.report(load_split(config, "train"), sizes)
    wanted = "box sides at short side 240, long side 320 px: 6.4 / 12.8 / 19.2 / 25.6 / 32"
    assert [line for line in lines if "at short side 240, long side 320 px" in line] == [wanted]


@pytest.mark.slow
def test_bench(run, source):
    arguments = ["--short_side=48", "--batch_size=2", "--rounds=2", "--seconds=0.2"]
    printed, status = run(
        "bench_input.py", *source, *SMALL, *arguments, "--memory_images=40", "--workers", "0", "1"
    )
    assert status == 0
    summary = json.loads(printed.splitlines()[-1])
    assert summary["images_per_s_core"] > 0 and summary["ratio_to_bare"] > 0
    assert summary["rss_mb"] > 0 and summary["scaling_2_workers"] is None
    assert summary["padding"] > 0 and summary["ready_batch_ms"] > 0


def test_fuzz(run):
    output, status = run("fuzz_data.py", "--images=240", "--files=60")
    summary = json.loads(output.splitlines()[-1])
    assert status == 0 and summary["unhandled"] == summary["programs"] == 0
    assert summary["image read"] + summary["image refused"] == 240
    assert min(summary["image read"], summary["image refused"]) > 40
    assert summary["file read, skip"] + summary["file refused, skip"] == 60
    assert min(summary["file read, strict"], summary["file refused, skip"]) > 3


@pytest.mark.slow
def test_bench_start(tmp_path, shared):
    photos = str(shared / "data/coco_sample/images/val2017")
    sizes = ["--images=600", "--annotations=5000", f"--photos={photos}", "--num_photos=520"]
    script = str(SCRIPTS / "bench_start.py")
    command = [sys.executable, script, f"--folder={tmp_path}", *sizes]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    summary = json.loads(output.splitlines()[-1])
    for part in (summary, summary["photos"]):
        assert 1000 < part["bytes_per_image"] < 65_536 and part["peak_rss_mb"] > 50
        assert part["second_cpu_s"] < part["first_cpu_s"]
    for folder in (tmp_path, tmp_path / "photos"):
        assert len(list((folder / "index").glob("*.npz"))) == 1
