"""The zip for COCO's evaluation server."""

import json
import zipfile

from etils import epath

from atss_jax.run.validation import write_submission


def test_one_json_file_in_a_zip(tmp_path):
    results = [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 1], "score": 0.5}]
    (tmp_path / "detections.json").write_text(json.dumps(results))
    path = write_submission(epath.Path(tmp_path), "test-dev2017")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["detections_test-dev2017_atss_results.json"]
        assert json.loads(archive.read(archive.namelist()[0])) == results
