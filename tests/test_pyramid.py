"""Sizes of the pyramid, for ints and arrays."""

import jax.numpy as jnp
import numpy as np

from atss_jax.geometry import pyramid


def test_every_side_up_to_2000_px():
    """By the networks' own arithmetic: halving with rounding up from the padded side."""
    for side in range(1, 2001):
        padded = -(-side // 32) * 32
        expected = [padded // 8, padded // 16, padded // 32]
        expected += [(expected[-1] + 1) // 2]
        expected += [(expected[-1] + 1) // 2]
        assert list(pyramid.level_sides(side)) == expected


def test_arrays_give_what_ints_give():
    sides = np.arange(1, 200)
    from_arrays = np.stack(pyramid.level_sides(jnp.array(sides)), axis=1)
    np.testing.assert_array_equal(from_arrays, [pyramid.level_sides(int(s)) for s in sides])


def test_inside_mask_counts_rows_and_columns():
    mask = pyramid.inside_mask((3, 4), jnp.array([2, 0]), jnp.array([3, 4]))
    assert mask.shape == (2, 3, 4)
    np.testing.assert_array_equal(mask[0], np.outer([1, 1, 0], [1, 1, 1, 0]).astype(bool))
    assert not mask[1].any()
