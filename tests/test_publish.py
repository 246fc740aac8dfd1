"""A run to the hub on loopback and back, by the real client; the card says what was measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atss_jax.errors import UserError
from atss_jax.models import saved_detector
from atss_jax.run import publish
from atss_jax.runtime.checkpoint import Checkpointer
from tests import hub_server
from tests.small_detector import CLASS_NAMES, make_config, write_workdir

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]

THERE_AND_BACK = """
import sys
import numpy as np
from atss_jax.run.detector import Detector
from atss_jax.run.publish import push
print(push(sys.argv[1], "me/cells"))
image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
there, back = (Detector.load(path)(image) for path in (sys.argv[1], "hf://me/cells"))
assert len(there) > 0 and there.names == back.names
for a, b in zip(there.detections, back.detections, strict=True):
    np.testing.assert_array_equal(a, b)
"""


def test_there_and_back(tmp_path):
    pytest.importorskip("huggingface_hub")
    workdir = tmp_path / "run"
    write_workdir(workdir, make_config())
    checkpointer = Checkpointer(str(workdir / "checkpoints"))
    checkpointer.attach(7, {"AP": 0.4321, "APs": -1.0}, {})
    checkpointer.close()
    (workdir / "result.json").write_text('{"step": 5, "metrics": {"AP": 0.1}}')  # of a shorter run
    with hub_server.running() as server:
        done = subprocess.run(
            [sys.executable, "-c", THERE_AND_BACK, str(workdir)], cwd=ROOT, text=True,
            env=server.environment(tmp_path / "cache"), capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert server.commit_of("me/cells") in done.stdout
        files = server.files["me/cells"]
    assert set(files) == {"model.safetensors", "config.json", "classes.json", "README.md"}
    assert json.loads(files["classes.json"])["class_names"] == list(CLASS_NAMES)
    card = files["README.md"].decode()
    (tmp_path / "model.safetensors").write_bytes(files["model.safetensors"])
    saved = saved_detector.load_detector(tmp_path / "model.safetensors")
    assert saved_detector.digest(saved.variables) in card
    assert "| AP | 0.432 |" in card and "APs" not in card and 'load("hf://me/cells")' in card


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="config.json: missing. Give the workdir of a run"):
        publish.write_repository(tmp_path, tmp_path, "me/cells")
    assert publish.measured(tmp_path, 7) == "Not evaluated."
