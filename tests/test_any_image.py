"""What a detector takes for an image: PIL of any depth, any binary file, addresses."""

import io
import tempfile

import numpy as np
import pytest
from PIL import Image

from atss_jax.data.any_image import read_image
from atss_jax.errors import UserError

DEEP = np.linspace(0, 60_000, 6 * 8).reshape(6, 8)


def png(shape=(4, 6, 3)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full(shape, 90, np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    "pixels",
    [
        DEEP.astype(np.uint16),
        DEEP.astype(np.uint16).astype(">u2"),
        DEEP.astype(np.int32),
        (DEEP / 65_535).astype(np.float32),
        (DEEP / 65_535 * 255).astype(np.float32),
    ],
    ids=["I;16", "I;16B", "I", "F of 0..1", "F of 0..255"],
)
def test_deep_pil_images_are_scaled_as_files_are(pixels):
    image = Image.fromarray(pixels)
    assert image.mode[0] in "IF"
    image.getexif()[274] = 6
    upright = np.rot90(np.rint(DEEP * 255 / 65_535), -1)
    np.testing.assert_allclose(read_image(image), np.repeat(upright[..., None], 3, -1), atol=1)
    if image.mode == "I;16":
        image.save(file := io.BytesIO(), "png")
        np.testing.assert_array_equal(read_image(Image.open(file)), read_image(file.getvalue()))


def test_deep_pil_images_of_unknown_range_are_refused():
    with pytest.raises(UserError, match="a PIL image of mode 'F': .* Convert the image to 8 bits"):
        read_image(Image.fromarray(np.full((2, 2), -1, np.float32)))


def test_anything_with_bytes_to_read():
    class Upload:
        def read(self):
            return memoryview(png())

    files = [Upload(), io.BytesIO(png())]
    with tempfile.NamedTemporaryFile() as named, tempfile.SpooledTemporaryFile() as spooled:
        for file in (named, spooled):
            file.write(png())
            file.seek(0)
        for file in (*files, named, spooled):
            assert read_image(file).shape == (4, 6, 3)


def test_files_without_bytes():
    class Asynchronous:
        async def read(self):
            return png()

    with pytest.raises(TypeError, match=r"read\(\) gives str, not bytes: open it in binary mode"):
        read_image(io.StringIO("text"))
    with pytest.raises(TypeError, match="asynchronous file: give its bytes"):
        read_image(Asynchronous())


def test_an_address_that_is_none():
    with pytest.raises(UserError, match="a b.jpg: cannot be read .* a space in it is written %20"):
        read_image("http://127.0.0.1:9/a b.jpg")


def test_the_limit_of_pixels_is_the_callers(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    for image in (tmp_path / "a.png", png(), io.BytesIO(png())):
        with pytest.raises(UserError, match="6x4 px .* data.max_pixels=23"):
            read_image(image, max_pixels=23)
    assert read_image(png(), max_pixels=24).shape == (4, 6, 3)
