"""Recipes for hardware: what they set, that they are valid, and what the docs say of them."""

import re
from pathlib import Path

import numpy as np
import pytest

from atss_jax.configs import hardware
from atss_jax.errors import UserError
from atss_jax.run import recipe_files, recipe_io
from atss_jax.run.ahead.topology import split_topology
from atss_jax.run.recipe import Recipe
from atss_jax.training.optim import make_schedule

DEVICES = (Path(__file__).resolve().parents[1] / "docs/devices.md").read_text()
TABLE = re.findall(r"^\| `hardware:([\w-]+)` \|(.*)\|$", DEVICES, re.M)


@pytest.mark.parametrize("name", hardware.HARDWARE)
def test_a_recipe_is_valid_and_keeps_what_the_paper_trains_on(name):
    config = recipe_files.load_recipe(f"hardware:{name}")
    recipe = recipe_io.recipe_from_mapping(config.to_dict())
    base, machine = Recipe(), hardware.HARDWARE[name]
    batch = recipe.data.global_batch
    assert batch == machine.images * machine.devices and machine.images >= 8
    assert recipe.eval.batch_size % machine.devices == 0
    assert recipe.optim.num_steps * batch == pytest.approx(90_000 * 16, rel=1e-3)
    assert recipe.model.dtype == "bfloat16"
    assert 1 <= recipe.run.checkpoint_every <= recipe.run.eval_every < recipe.optim.num_steps
    assert recipe.optim.decay_at == base.optim.decay_at
    assert (recipe.data.buckets, recipe.data.short_side) == (base.data.buckets, 800)
    assert split_topology(machine.topology)[1].startswith(name.partition("-")[0])
    sides = [int(side) for side in machine.topology.partition(":")[2].split("x")]
    assert np.prod(sides) == machine.devices


@pytest.mark.parametrize(("name", "rate"), [("h100-1", 0.01), ("v5e-8", 0.04), ("v5e-256", 1.28)])
def test_the_rate_follows_the_linear_rule_from_the_papers(name, rate):
    recipe = hardware.recipe(name)
    schedule = make_schedule(recipe.optim, recipe.data.global_batch, recipe.optim.num_steps)
    assert float(schedule(recipe.optim.num_steps // 2)) == pytest.approx(rate)
    first = 0.01 / 3 if recipe.data.global_batch == 16 else 0.01
    assert float(schedule(0)) == pytest.approx(first, rel=0.05)


@pytest.mark.parametrize("argument", ["", "v5e", "v5e-8,dcn"])
def test_other_arguments_are_answered_with_the_known_ones(argument):
    with pytest.raises(UserError, match="use one of v5e-8, v5e-256, v6e-8"):
        hardware.recipe(argument)


def test_the_docs_have_every_recipe_with_its_values():
    assert [name for name, _ in TABLE] == list(hardware.HARDWARE)
    for name, row in TABLE:
        cells = [cell.strip() for cell in row.split("|")]
        recipe, machine = hardware.recipe(name), hardware.HARDWARE[name]
        optim = recipe.optim
        rate = optim.learning_rate * recipe.data.global_batch / optim.reference_batch
        assert cells[:7] == [
            f"{machine.devices}",
            f"{machine.images} ({recipe.data.global_batch:,})",
            f"{rate:g}, {optim.num_steps:,}",
            recipe.model.dtype,
            recipe.model.remat,
            f"{optim.accumulate}",
            f"{machine.workers}",
        ]
