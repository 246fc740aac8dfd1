"""What an evaluation hands out: the zip for COCO's evaluation server, the printed summary."""

import json
import zipfile

from etils import epath

from atss_jax.evaluation.coco_metrics import METRICS
from atss_jax.run.evaluation_folder import write_submission
from atss_jax.run.validation import summary
from atss_jax.runtime.screen import JOINT


def test_one_json_file_in_a_zip(tmp_path):
    results = [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 1], "score": 0.5}]
    (tmp_path / "detections.json").write_text(json.dumps(results))
    path = write_submission(epath.Path(tmp_path), "test-dev2017")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["detections_test-dev2017_atss_results.json"]
        assert json.loads(archive.read(archive.namelist()[0])) == results


def test_summary_shows_what_could_not_be_measured():
    """A class or size without objects is a dash, not a score of -1."""
    metrics = {name: 0.5 for name in METRICS} | {"APs": -1.0, "AP/cat": -1.0, "AP/dog": 0.25}
    text = summary(metrics).replace(JOINT, " ")
    assert "AP 0.5000" in text and "APs -  " in text
    assert text.endswith("AP by class: cat -, dog 0.250") and "-1" not in text
