"""The report of a run: what stands in it for detections whose mistakes are known."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from etils import epath

from atss_jax.data import synthetic
from atss_jax.errors import UserError
from atss_jax.evaluation import error_analysis
from atss_jax.evaluation.coco_metrics import METRICS
from atss_jax.run import recipe_io, report_command, report_header, report_sections, workdir_files
from tests import tiny


@pytest.fixture
def workdir(tmp_path):
    """A run that finds every object exactly but one, and one object where nothing is."""
    tiny.make_coco(tmp_path)
    tiny.make_coco(tmp_path, 6, "val")
    config = tiny.make_config(tmp_path)
    workdir = tmp_path / "run <1>"
    workdir_files.claim_workdir(config, epath.Path(workdir))
    truth = json.loads((tmp_path / "val.json").read_text())["annotations"]
    detections = [
        {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in truth[1:]
    ]
    detections.append({"image_id": 103, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.95})
    (workdir / "detections.json").write_text(json.dumps(detections))
    rows = [{"step": 1, "loss": 2.0, "loss_cls": 1.0}, {"step": 2, "loss": 1.5, "loss_cls": 0.7}]
    rows.append({"step": 2, "eval/AP": 0.5})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workdir, truth


def test_a_detection_on_a_crowd_is_no_mistake(workdir):
    folder, truth = workdir
    path = folder.parent / "val.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    assert report_command.main([str(folder)]) == 0
    text = (folder / "report.html").read_text()
    kinds = error_analysis.KINDS
    row = ["all", len(truth) - 1, len(truth) - 2, *[0] * (len(kinds) - 1), 1]
    row[2 + kinds.index("background")] = 1  # the one that lies on nothing
    assert "".join(f"<td>{cell}</td>" for cell in row) in text
    sizes = re.findall(r"<td>(?:small|medium|large)[^<]*</td><td>(\d+)</td>", text)
    assert sum(map(int, sizes[:3])) == len(truth) - 1


def test_report_shows_the_known_mistakes(workdir, capsys):
    folder, truth = workdir
    assert report_command.main([str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert "report.html" in capsys.readouterr().out
    assert "<title>run &lt;1&gt;</title>" in text and "http" not in text.replace("xmlns", "")
    kinds = ["objects", *error_analysis.KINDS, "missed"]
    assert "".join(f"<th>{kind}</th>" for kind in kinds) in text
    found = len(truth) - 1
    row = ["all", len(truth), found, *[0] * (len(kinds) - 3), 1]
    row[2 + error_analysis.KINDS.index("background")] = 1
    assert "".join(f"<td>{cell}</td>" for cell in row) in text
    assert text.count('<figure class="thumbnail">') == 2  # the wrong detection, the missed object
    assert text.count('<figure class="picture">') == 2 + 4  # images with mistakes, and random ones
    for name in synthetic.CLASS_NAMES:
        assert f"<td>{name}</td>" in text
    assert text.count("data:image/png;base64,") == 6  # curves 2, threshold, confusion, training 2
    assert "<td>training</td><td>not ended</td>" in text
    assert "fields differ from the recipe quickstart" in text and "0.02 -&gt; 0.002" not in text
    assert "model.width</td><td>0.5 -&gt; 0.125" in text
    assert "split val, test-time augmentation none" in text
    assert "COCO minival" not in text


def test_an_evaluation_is_found_from_within_its_folder(workdir, monkeypatch):
    folder, _ = workdir
    inner = folder / "eval" / "val-2-none"
    inner.mkdir(parents=True)
    for name in ("config.json", "detections.json"):
        shutil.copy(folder / name, inner)
    for place, path in ((inner, "."), (inner.parent, inner.name)):
        monkeypatch.chdir(place)
        assert report_command.main([path]) == 0
        assert "<title>run &lt;1&gt;" in (inner / "report.html").read_text()


def test_head_of_an_ended_run(workdir):
    folder, _ = workdir
    result = workdir_files.write_result(
        epath.Path(folder),
        metrics={},
        about={"step": 6, "split": "val", "test_time_augmentation": "flip"},
        steps=6,
        wall_seconds=90.0,
        images_per_s=4.0,
    )
    facts = dict(report_header._result(folder))
    assert facts["ended"] == result["ended"] and facts["ended"].startswith("20")
    assert facts["training"] == "6 steps in 1.5 minutes, 4.0 images per second"
    assert "jax" in facts["versions"] and "1 process" in facts["device"]
    recipe = recipe_io.read_recipe(folder / "config.json")
    about = report_header.read_about(folder, recipe)
    assert about == "step 6, split val, test-time augmentation flip"


def test_an_evaluation_of_other_data_lists_no_path_that_nobody_gave(workdir, tmp_path):
    recipe = recipe_io.read_recipe(workdir[0] / "config.json")
    assert recipe.data.val_annotations
    assert report_header._with_root_of_run(workdir[0], recipe) == recipe
    run = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root="photos"))
    (tmp_path / "config.json").write_text(recipe_io.recipe_to_json(run))
    shown = report_header._with_root_of_run(tmp_path, recipe).data
    assert (shown.root, shown.train_images, shown.val_annotations) == ("photos", "", "")


def test_the_papers_row_stands_beside_coco_alone():
    metrics: dict[str, float] = {name: 0.1 for name in METRICS}
    coco = ["person", *map(str, range(78)), "toothbrush"]
    assert "COCO minival" in report_sections.metrics_table(metrics, coco)
    assert "COCO minival" not in report_sections.metrics_table(metrics, ["person", "toothbrush"])


def test_confusion_of_many_classes_shows_the_most_mistaken():
    names = [f"class {i}" for i in range(30)]
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    score = np.array([0.9])
    scenes = [
        error_analysis.Scene(box, score, np.array([28]), box, np.array([29])),
        error_analysis.Scene(box, score, np.array([1]), box, np.array([1])),
    ]
    verdicts = [error_analysis.judge_image(scene) for scene in scenes]
    text = report_sections.confusion_map(names, scenes, verdicts)
    assert "20 of 30 classes with the most mistakes" in text and "image/png" in text


def test_report_of_an_unevaluated_run_says_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="nothing was evaluated. Run `atss eval"):
        report_command.main([str(tmp_path)])
    with pytest.raises(UserError, match="no such folder"):
        report_command.main([str(tmp_path / "none")])
