"""What the pictures show, by their pixels."""

import base64

import cv2
import numpy as np
import pytest

from atss_jax.drawing import curves, html_page, palette, visualize

GRAY = np.full((60, 90, 3), 128, np.uint8)


def read(path):
    image = cv2.imread(str(path))
    assert image is not None
    return image


def has_color(image, color):
    return bool(np.any(np.all(image == np.array(color, np.uint8), axis=-1)))


def test_boxes_are_drawn_where_they_are_and_the_image_is_left_alone():
    image = GRAY.copy()
    picture = visualize.draw_boxes(image, np.array([[30.0, 20, 60, 50]]), color=(255, 0, 0))
    assert picture.shape == (480, 720, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(image, GRAY)
    red = np.argwhere(np.all(picture == (255, 0, 0), axis=-1))
    np.testing.assert_allclose(red.min(axis=0), [20 * 8, 30 * 8], atol=3)
    np.testing.assert_allclose(red.max(axis=0), [50 * 8, 60 * 8], atol=3)


def test_large_images_keep_their_size():
    image = np.zeros((500, 700, 3), np.uint8)
    assert visualize.draw_boxes(image, np.zeros((0, 4))).shape == image.shape


@pytest.mark.parametrize(
    ("size", "expected"),
    [((30, 5000), (30, 5000)), ((5, 900), (22, 4000)), ((900, 5), (4000, 22))],
)
def test_strips_are_not_enlarged_without_end(size, expected):
    picture, factor = visualize.enlarge(np.zeros((*size, 3), np.uint8))
    assert picture.shape[:2] == expected and factor >= 1
    again, more = visualize.enlarge(picture)
    assert again.shape == picture.shape and more == 1
    html = html_page.thumbnail(picture, np.array([0, 0, *expected[::-1]], np.float32), "", [])
    assert "base64," in html


def test_what_is_too_long_for_a_file(tmp_path):
    """JPEG is shrunk to its limit; what OpenCV does not write is an error, not an empty file."""
    wide = np.full((3, 70_000, 3), 200, np.uint8)
    visualize.save_image(tmp_path / "wide.jpg", wide)
    assert read(tmp_path / "wide.jpg").shape == (3, 65_500, 3)
    assert "data:image/jpeg" in html_page.picture(wide, "wide")
    for suffix in (".webp", ".nothing"):
        with pytest.raises(ValueError, match=f"wide{suffix}: OpenCV cannot write 70000x3 px as"):
            visualize.save_image(tmp_path / f"wide{suffix}", wide)


def test_names_outside_ascii(monkeypatch):
    """OpenCV 4 draws each byte of a character as "?"."""

    def drawn(name):
        box, label = np.array([[30.0, 20, 60, 50]]), np.array([0])
        picture = visualize.draw_boxes(GRAY, box, label, class_names=[name])
        return visualize.with_title(picture, name)

    monkeypatch.setattr(cv2, "__version__", "5.0.0")
    assert visualize.drawable("Größe 猫") == "Größe 猫"
    monkeypatch.setattr(cv2, "__version__", "4.12.0")
    assert visualize.drawable("Größe 猫") == "Gr??e ?"
    np.testing.assert_array_equal(drawn("Größe 猫"), drawn("Gr??e ?"))


def test_side_by_side_shows_detections_above_the_threshold_only():
    boxes = np.array([[5.0, 5, 40, 40], [50, 10, 80, 50]])
    picture = visualize.draw_side_by_side(
        GRAY,
        gt_boxes=boxes[:1],
        gt_labels=np.array([2]),
        boxes=boxes,
        labels=np.array([3, 4]),
        scores=np.array([0.9, 0.1]),
        class_names=["a", "b", "c", "d", "e"],
    )
    left, right = picture[:, :720], picture[:, 728:]
    assert has_color(left, palette.class_color(2))
    assert has_color(right, palette.class_color(3))
    assert not has_color(right, palette.class_color(4))


def test_positives_are_coloured_by_level():
    centers = [np.zeros((0, 2))] * 5
    centers[3] = np.array([[45.0, 30.0]])
    picture = visualize.draw_positives(GRAY, centers, np.array([[10.0, 10, 80, 50]]))
    image = picture[:640]
    np.testing.assert_array_equal(image[320, 480], palette.LEVEL_COLORS[3])
    assert has_color(image, palette.GROUND_TRUTH_COLOR)
    assert not has_color(image, palette.LEVEL_COLORS[0])
    assert has_color(picture[640:], palette.LEVEL_COLORS[0])  # the legend


def test_contact_sheet_holds_every_picture():
    images = [np.full((20 + i, 30 - i, 3), 10 * i, np.uint8) for i in range(5)]
    sheet = visualize.contact_sheet(images, columns=2, gap=3)
    for i, image in enumerate(images):
        assert np.sum(np.all(sheet == 10 * i, axis=-1)) == image.shape[0] * image.shape[1]
    with pytest.raises(ValueError, match="no images"):
        visualize.contact_sheet([])


def test_images_are_written_as_rgb(tmp_path):
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0] = 200
    visualize.save_image(tmp_path / "red.png", image)
    np.testing.assert_array_equal(read(tmp_path / "red.png")[0, 0], [0, 0, 200])
    for name in ("red.nothing", "missing/red.png"):
        with pytest.raises(ValueError, match="red"):
            visualize.save_image(tmp_path / name, image)


def test_curves_of_a_run_and_of_none(tmp_path):
    rows = [{"step": i, "loss": 2.0 / (i + 1), "loss_cls": None} for i in range(50)]
    rows += [{"step": i, "eval/AP": i / 100, "eval/AP50": i / 60} for i in (10, 49)]
    curves.plot_curves(rows, tmp_path / "run.png", title="run")
    curves.plot_curves([], tmp_path / "none.png")
    run, none = (read(tmp_path / f"{name}.png") for name in ("run", "none"))
    assert run.shape == none.shape and np.any(run != none)


@pytest.mark.parametrize("box", [(0, 0, 60, 40), (340, 260, 400, 300), (150, 100, 200, 180)])
def test_thumbnails_are_squares_also_at_the_edge(box):
    image = np.full((300, 400, 3), 127, np.uint8)
    html = html_page.thumbnail(image, np.array(box, np.float32), "a caption", [])
    data = base64.b64decode(html.split("base64,")[1].split('"')[0])
    crop = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert crop is not None
    height, width = crop.shape[:2]
    assert height == width == 236
