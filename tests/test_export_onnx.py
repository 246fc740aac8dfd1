"""ONNX files: the live detector's detections by ONNX Runtime alone, and what is refused."""

import json
import logging
import sys
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from atss_jax.errors import UserError
from atss_jax.run import export, export_onnx
from atss_jax.run.detector import Detector
from tests.exported_program import check_equal, detections, run_program
from tests.small_detector import CLASS_NAMES, make_config, write_workdir

pytestmark = pytest.mark.slow

MANY = {"eval.max_detections": 100, "eval.pre_nms_top_k": 1000, "export.format": "onnx"}
"""Post-processing with room for a hundred detections an image."""


@pytest.fixture(scope="module")
def packages():
    """ONNX Runtime, where everything that writes and reads the files is installed."""
    pytest.importorskip("jax2onnx", reason="needs the extra onnx and jax2onnx")
    return pytest.importorskip("onnxruntime", reason="needs the extra onnx")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp("run"))
    write_workdir(folder, make_config(**MANY))
    return folder


@pytest.fixture(scope="module")
def exported(workdir, packages):
    """(live detector, folder of its export)."""
    return Detector.load(workdir), export.export_workdir(make_config(**MANY), workdir)


def test_coco_images(exported, shared, tmp_path):
    """Without the package and without jax; hundreds of detections on images of all shapes."""
    detector, folder = exported
    paths = sorted((shared / "data/coco_sample/images/val2017").glob("*.jpg"))[:20]
    assert len(paths) == 20
    lines = detections(folder, paths, tmp_path, without=("atss_jax", "jax"))
    assert check_equal(detector, paths, lines) > 500


def test_description(exported):
    _, folder = exported
    about = json.loads((folder / "detector.json").read_text())
    assert (about["format"], about["opset"], about["batch_size"]) == ("onnx", 23, 1)
    assert set(about["inputs"]) == {"images", "image_size", "scale"}
    assert set(about["outputs"]) == {"boxes", "scores", "labels", "is_valid"}
    assert [file["path"] for file in about["files"]] == ["detector_96x128.onnx"]
    assert "loads_with" not in about and about["class_names"] == list(CLASS_NAMES)


@pytest.mark.parametrize(
    "fields",
    [
        {"export.batch_size": 3},
        {"model.regression": "point", "eval.score": "product"},
        {"model.centerness": "none", "eval.score": "cls", "anchors.scales_per_octave": 3},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_batches_and_heads(packages, tmp_path, fields):
    """Names, types and values of inputs and outputs, for a whole batch of different sizes."""
    config = make_config(**{**MANY, **fields})
    write_workdir(tmp_path / "run", config)
    detector = Detector.load(tmp_path / "run")
    (file,) = export.write_onnx(detector, epath.Path(tmp_path))
    session = packages.InferenceSession(str(file))
    batch = config.export.batch_size
    sizes = np.array([[64, 96], [96, 128], [33, 70]], np.int32)[:batch]
    images = np.zeros((batch, 96, 128, 3), np.uint8)
    for row, (h, w) in enumerate(sizes):
        images[row, :h, :w] = np.random.default_rng(row).integers(0, 256, (h, w, 3), np.uint8)
    scales = np.array([[0.5, 0.4], [1, 1], [2, 3]], np.float32)[:batch]
    given = dict(zip(export.INPUTS, (images, sizes, scales), strict=True))
    found = dict(zip(export.OUTPUTS, session.run(list(export.OUTPUTS), given), strict=True))
    live = detector._looks[0].predict_step(detector.variables, images, sizes, scales)
    for name, value in live._asdict().items():
        assert found[name].shape == value.shape and found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, atol=1e-2 if name == "boxes" else 1e-5)
    assert found["is_valid"].any(axis=1).all()


def test_network_alone(packages, workdir, tmp_path):
    config = make_config(**{**MANY, "export.format": "onnx_network"})
    detector = Detector.load(workdir, config=config)
    (file,) = export.write_onnx_network(detector, epath.Path(tmp_path))
    about = json.loads((tmp_path / "detector.json").read_text())
    assert about["format"] == "onnx_network" and set(about["inputs"]) == {"images", "image_size"}
    session = packages.InferenceSession(str(file))
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), np.uint8)
    size = np.array([[64, 96]], np.int32)
    outputs = session.run(None, {"images": image, "image_size": size})
    live = export_onnx.raw_network(detector)(jnp.asarray(image), jnp.asarray(size))
    assert [o.name for o in session.get_outputs()] == export_onnx.output_names(live)
    for found, expected in zip(outputs, jax.tree.leaves(live), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    done = run_program([tmp_path, "image.png"], tmp_path)
    assert done.returncode == 2 and "onnx_network: this program runs" in done.stderr


def test_raw_network(workdir):
    """What the network's file holds: all levels' outputs of the live network."""
    outputs = export_onnx.raw_network(Detector.load(workdir))(
        jnp.zeros((1, 96, 128, 3), jnp.uint8), jnp.array([[64, 96]], jnp.int32)
    )
    assert outputs.cls_logits[0].shape == (1, 12, 16, 1, 3)
    names = export_onnx.output_names(outputs)
    assert len(names) == 15 and names[::14] == ["cls_logits_p3", "centerness_logits_p7"]


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("eval.nms", "soft_linear", "Export with eval.nms=hard"),
        ("eval.multiscale", "flip", "Export with eval.multiscale=none"),
        ("model.dtype", "bfloat16", "Export with model.dtype=float32"),
    ],
)
def test_refused(workdir, tmp_path, field, value, remedy):
    """One line: which field, what to do; nothing is written."""
    detector = Detector.load(workdir, config=make_config(**{**MANY, field: value}))
    with pytest.raises(UserError, match=rf"config\.{field}='{value}': .*{remedy}"):
        export.write_onnx(detector, epath.Path(tmp_path))
    assert not list(tmp_path.iterdir())


def test_network_that_is_not_converted(workdir, tmp_path, monkeypatch):
    """Whatever the converter raises becomes one line that names the way out."""

    def fail(*_, **__):
        raise AttributeError("no such primitive\nmore")

    monkeypatch.setitem(sys.modules, "jax2onnx", types.SimpleNamespace(to_onnx=fail))
    with pytest.raises(UserError, match=r"AttributeError: no such primitive\).*=stablehlo"):
        export.write_onnx_network(Detector.load(workdir), epath.Path(tmp_path))
    assert not list(tmp_path.iterdir())


def test_converter_sees_no_choice_by_platform(workdir, tmp_path, monkeypatch):
    """jax2onnx has no `platform_index`, which the stem asks for elsewhere."""
    seen = []

    def convert(function, inputs, **_):
        seen.append(str(jax.make_jaxpr(function)(*inputs)))
        raise AttributeError("done")

    detector = Detector.load(workdir)
    monkeypatch.setitem(sys.modules, "jax2onnx", types.SimpleNamespace(to_onnx=convert))
    with pytest.raises(UserError, match="AttributeError: done"):
        export.write_onnx_network(detector, epath.Path(tmp_path))
    assert "conv_general_dilated" in seen[0] and "platform_index" not in seen[0]
    given = jnp.zeros((1, 96, 128, 3), jnp.uint8), jnp.array([[96, 128]], jnp.int32)
    assert "platform_index" in str(jax.make_jaxpr(export_onnx.raw_network(detector))(*given))


def test_converter_is_quiet(workdir, tmp_path, monkeypatch, caplog):
    """Its notes are not shown, its warnings are, and logging is as before afterwards."""

    def convert(*_, **__):
        logging.getLogger().info("Converting JAX function")
        logging.getLogger("onnx_ir").warning("worth knowing")
        raise AttributeError("done")

    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "jax2onnx", types.SimpleNamespace(to_onnx=convert))
    with pytest.raises(UserError, match="AttributeError: done"):
        export.write_onnx_network(Detector.load(workdir), epath.Path(tmp_path))
    assert "worth knowing" in caplog.text and "Converting" not in caplog.text
    logging.getLogger().info("later")
    assert "later" in caplog.text


def test_converter_not_installed(workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r'"onnx" needs jax2onnx and onnx, see docs/export\.md'):
        export.write_onnx(Detector.load(workdir), epath.Path(tmp_path))


def test_runtime_not_installed(tmp_path):
    about = {
        "format": "onnx",
        "files": [{"path": "a.onnx", "height": 64, "width": 64}],
        "batch_size": 1,
        "resize": {"short_side": 32, "max_long_side": 64},
    }
    (tmp_path / "detector.json").write_text(json.dumps(about))
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((32, 32, 3), np.uint8))
    done = run_program(
        [tmp_path, tmp_path / "image.png"], tmp_path, without=("atss_jax", "jax", "onnxruntime")
    )
    assert done.returncode == 2 and "pip install onnxruntime" in done.stderr
    assert "Traceback" not in done.stderr
