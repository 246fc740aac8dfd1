"""The report of a run: what stands in it for detections whose mistakes are known."""

import json
import sys

import pytest
from etils import epath

import report
from atss_jax.data import synthetic
from atss_jax.run import workdir_files
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


def test_report_shows_the_known_mistakes(workdir, monkeypatch, capsys):
    folder, truth = workdir
    monkeypatch.setattr(sys, "argv", ["report.py", str(folder)])
    report.main()
    text = (folder / "report.html").read_text()
    assert "report.html" in capsys.readouterr().out
    assert "<title>run &lt;1&gt;</title>" in text and "http" not in text.replace("xmlns", "")
    kinds = ["objects", *report.error_analysis.KINDS, "missed"]
    assert "".join(f"<th>{kind}</th>" for kind in kinds) in text
    found = len(truth) - 1
    row = ["all", len(truth), found, *[0] * (len(kinds) - 3), 1]
    row[2 + report.error_analysis.KINDS.index("background")] = 1
    assert "".join(f"<td>{cell}</td>" for cell in row) in text
    assert text.count("<figure>") == 2  # the wrong detection and the missed object
    for name in synthetic.CLASS_NAMES:
        assert f"<td>{name}</td>" in text
    assert text.count("data:image/png;base64,") == 2  # precision, and training
    assert text.count("data:image/jpeg;base64,") == 2


def test_report_of_an_unevaluated_run_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        report.main()
    assert "Run --mode=eval on it first" in capsys.readouterr().err
