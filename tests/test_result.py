"""What people do with detections: names, drawings, dictionaries; and images from a server."""

import functools
import http.server
import json
import sys
import threading
from types import ModuleType

import cv2
import numpy as np
import pytest

from atss_jax.data import media
from atss_jax.data.any_image import read_image
from atss_jax.errors import UserError
from atss_jax.run.result import Found, Result
from atss_jax.structures import Detections

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


@pytest.fixture
def result():
    found = Detections(
        np.array([[10, 20, 30, 50], [0, 0, 80, 60]], np.float32),
        np.array([0.75, 0.5], np.float32),
        np.array([2, 0], np.int32),
        np.ones(2, bool),
    )
    return Result(
        found, ["ring", "box", "dot"], [2, 5, 9],
        image_size=(60, 80), read=lambda: IMAGE, source="a.png",
    )  # fmt: skip


def test_lists_and_dictionaries(result):
    first, second = result
    assert first == Found("dot", 0.75, (10, 20, 30, 50)) and second.name == "ring"
    assert len(result) == 2 and result.names == {0: "ring", 1: "box", 2: "dot"}
    assert repr(result) == "Result(a.png: 1 ring, 1 dot)"
    read = json.loads(json.dumps(result.to_dict()))
    assert (read["source"], read["width"], read["height"]) == ("a.png", 80, 60)
    assert read["detections"][0] == {
        "name": "dot", "label": 2, "category_id": 9, "score": 0.75, "box": [10, 20, 30, 50],
    }  # fmt: skip


def test_nothing_found():
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros(0, bool))
    result = Result(nothing, ["ring"], [1], image_size=(60, 80), read=lambda: IMAGE)
    assert len(result) == 0 and list(result) == [] and result.to_dict()["detections"] == []
    assert repr(result) == "Result(80 x 60 px: nothing)"
    np.testing.assert_array_equal(result.draw(min_short_side=1), IMAGE)


def test_drawings(result, tmp_path):
    assert result.draw().shape == (480, 640, 3)
    result.save(tmp_path / "drawn.png", min_short_side=60)
    drawn = media.read_image_file(tmp_path / "drawn.png")
    assert drawn.shape == IMAGE.shape and np.any(drawn != IMAGE)
    shown = cv2.imdecode(np.frombuffer(result._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    np.testing.assert_array_equal(shown[..., ::-1], result.draw())
    with pytest.raises(ValueError, match="Use .png or .jpg"):
        result.save(tmp_path / "drawn.txt")


def test_supervision_is_asked_for_by_name(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        result.to_supervision()


@pytest.mark.filterwarnings("ignore")  # of the package, not ours
def test_supervision(result):
    supervision: ModuleType = pytest.importorskip("supervision")
    found = result.to_supervision()
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.xyxy, result.boxes)
    assert found.class_id.tolist() == [2, 0] and found["class_name"].tolist() == ["dot", "ring"]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        """Nothing on the screen."""


@pytest.fixture
def address(tmp_path):
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_image_of_a_server(tmp_path, address):
    cv2.imwrite(str(tmp_path / "a b.png"), IMAGE[..., ::-1])
    (tmp_path / "text.html").write_text("<p>no image</p>")
    np.testing.assert_array_equal(read_image(f"{address}/a%20b.png"), IMAGE)
    with pytest.raises(UserError, match="404"):
        read_image(f"{address}/none.png")
    with pytest.raises(ValueError, match="image of 15 bytes"):
        read_image(f"{address}/text.html")


def test_channel_order():
    np.testing.assert_array_equal(read_image(IMAGE, channel_order="bgr"), IMAGE[..., ::-1])
    with pytest.raises(UserError, match='use "rgb" or "bgr"'):
        read_image(IMAGE, channel_order="gbr")
