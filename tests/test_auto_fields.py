"""Sizes, slots and batch that follow from the data and the device."""

import dataclasses

import numpy as np
import pytest

from atss_jax.data.auto_sizes import choose_image_size, choose_max_boxes, derive_sizes
from atss_jax.data.images import resized_size
from atss_jax.errors import UserError
from atss_jax.main import numbers_for_auto
from atss_jax.run import auto_batch, auto_fields, build, recipe_changes
from tests import tiny


@pytest.mark.parametrize("image_size", [64, 320, 333, 1344])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_image_fits_a_bucket_of_its_orientation(image_size, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(20, 4000, (50, 2))
    sizes = np.concatenate([sizes, [[4000, 20], [20, 4000], [1, 1], [375, 1242]]])
    found = derive_sizes(sizes, image_size)
    assert found.max_long_side == image_size and 1 <= found.short_side <= image_size
    for bucket in found.buckets:
        assert bucket[0] % 32 == bucket[1] % 32 == 0 and bucket[::-1] in found.buckets
    for size in map(tuple, sizes.tolist()):
        height, width = resized_size(size, found.short_side, image_size)
        assert any(height <= h and width <= w for h, w in found.buckets)
    assert len(found.buckets) <= 4


def test_a_smaller_bucket_is_added_where_many_images_are_smaller():
    wide, square = [[100, 400]] * 50, [[400, 400]] * 50
    found = derive_sizes(np.array(wide + square + [[250, 400]]), 320)
    assert found.short_side == 200
    # the wide ones take 80x320 px, and are half of all
    assert found.buckets == ((96, 320), (224, 320), (320, 96), (320, 224))


def test_small_objects_ask_for_large_images():
    sizes = np.array([[1500, 2000]] * 10)
    assert [choose_image_size(sizes, np.full(9, s)) for s in (0.2, 0.03, 0.012, 0.001)] == [
        320,
        640,
        1344,
        1344,
    ]
    assert choose_image_size(np.array([[300, 400]]), np.full(9, 0.001)) == 416  # not enlarged more
    assert choose_image_size(sizes, np.zeros(0)) == 320
    with pytest.raises(UserError, match="at least 32 px"):
        derive_sizes(sizes, 31)


def test_slots():
    assert [choose_max_boxes([n]) for n in (0, 6, 7, 63, 64)] == [8, 8, 16, 80, 80]
    assert choose_max_boxes([]) == 8


def test_auto_is_a_number_on_the_command_line():
    assert numbers_for_auto(["--config.data.max_boxes=auto"]) == ["--config.data.max_boxes=0"]


def test_the_recipe_in_numbers(tmp_path):
    tiny.make_coco(tmp_path)
    tiny.make_coco(tmp_path, 6, "val")
    config = tiny.make_config(tmp_path, data__image_size=0, data__max_boxes=0)
    train_set, val_set = build.load_dataset(config, "train"), build.load_dataset(config, "val")
    assert auto_fields.is_automatic(config)
    found, lines = auto_fields.resolve(config, train_set, val_set)
    data = found.data
    assert min(data.image_size, data.max_boxes) > 0 and data.max_long_side == data.image_size
    assert str(data.image_size) in lines[0] and str(data.max_boxes) in lines[-1]
    given = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=32))
    assert (
        "a tenth of the objects is smaller than"
        in auto_fields.resolve(given, train_set, None)[1][1]
    )
    larger = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=640))
    assert "smaller than" not in str(auto_fields.resolve(larger, train_set, None)[1])
    assert data.max_boxes >= max(train_set.num_boxes.max(), val_set.num_boxes.max())
    again, _ = auto_fields.resolve(found, train_set, val_set)
    assert again == found  # a resume chooses the same
    assert dataclasses.replace(found, data=config.data) == config


@pytest.mark.parametrize("limit", [999, 2500, 10_000])
def test_the_chosen_batch_fits_and_twice_does_not(tmp_path, limit):
    config = tiny.make_config(tmp_path, optim__accumulate=1)
    calls = []

    def measure(images: int) -> int:
        calls.append(images)
        return 300 + 70 * images + images // 7

    found = auto_batch.choose_batch(config, 3, limit=limit, measure=measure)
    images = found.global_batch // 8  # simulated devices
    assert measure(images) == found.needed <= limit
    if found.next_needed is None:
        assert images == auto_batch.LARGEST
    else:
        assert measure(2 * images) == found.next_needed > limit
    assert len(set(calls)) <= 4  # compilations


@pytest.mark.parametrize(("num_images", "images"), [(205, 2), (16, 1), (100_000, 64)])
def test_a_small_set_has_enough_steps(tmp_path, num_images, images):
    config = tiny.make_config(tmp_path, optim__accumulate=1)
    found = auto_batch.choose_batch(
        config, 3, num_images=num_images, limit=10**9, measure=lambda n: n
    )
    assert found.global_batch == 8 * images  # simulated devices
    assert (f"of {num_images} images" in str(found)) == (images < auto_batch.LARGEST)


def test_memory_of_a_container(tmp_path, monkeypatch):
    files = {"limit": "3000", "used": "2500", "memory.stat": "cache 1000\ninactive_file 900\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = auto_batch._memory_left()
    assert 10**8 < before < 10**14
    groups = ((str(tmp_path), "limit", "used", "inactive_file"),)
    monkeypatch.setattr(auto_batch, "_CONTROL_GROUPS", groups)
    assert auto_batch._memory_left() == 1400
    (tmp_path / "limit").write_text("max")
    assert auto_batch._memory_left() > 10**8


def test_nothing_fits(tmp_path):
    config = tiny.make_config(tmp_path)
    with pytest.raises(UserError, match="a step of 1 image"):
        auto_batch.choose_batch(config, 3, limit=10, measure=lambda images: 11 * images)


@pytest.mark.slow
def test_the_compilers_figures_choose_the_batch(tmp_path):
    tiny.make_coco(tmp_path)
    config = tiny.make_config(tmp_path)
    sizes = {n: auto_batch.step_bytes(config, 3, n) for n in (1, 2, 4, 8)}
    assert sizes[1] < sizes[2] < sizes[4] < sizes[8]
    for fitting in (2, 4):
        found = auto_batch.choose_batch(config, 3, limit=sizes[fitting] + 1)
        assert found.global_batch == 8 * fitting and found.needed == sizes[fitting]
        assert found.next_needed == sizes[2 * fitting]


def test_a_resumed_run_keeps_what_it_chose(tmp_path):
    """Also where the recipe's own sizes are not the defaults, or the device has less memory."""
    config = tiny.make_config(tmp_path, data__image_size=0, data__max_boxes=0, data__global_batch=0)
    sizes = {"short_side": 60, "max_long_side": 96, "buckets": ((64, 96), (96, 64))}
    old = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, image_size=96, max_boxes=16, global_batch=24, **sizes
        ),
    )
    assert recipe_changes.with_chosen(config, old, training=True) == old
    assert recipe_changes.is_left_open(config) and not recipe_changes.is_left_open(old)
    other = dataclasses.replace(old, data=dataclasses.replace(old.data, image_size=128))
    assert recipe_changes.with_chosen(other, old, training=True).data.image_size == 128
