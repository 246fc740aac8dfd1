"""The model table of the documentation has the numbers of the networks."""

import re
from pathlib import Path

import jax
import pytest

from atss_jax.models.detector import DetectorNetwork, init_variables
from atss_jax.run import recipe_files, recipe_io

PAGE = (Path(__file__).resolve().parents[1] / "docs/recipes.md").read_text()
ROWS = dict(re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \| ([\d,]+) \|", PAGE, re.MULTILINE))
CLASSES = {"quickstart": 6, "coco_json": 3, "mini:ablations": 1}


def test_the_table_is_there():
    assert len(ROWS) == 12


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in CLASSES else [pytest.mark.slow]) for n in ROWS],
)
def test_parameters(name):
    config = recipe_io.recipe_from_mapping(recipe_files.load_recipe(name).to_dict())
    network = DetectorNetwork(config.model, CLASSES.get(name, 80), config.anchors.num_per_location)
    params = jax.eval_shape(lambda: init_variables(network, (64, 96), 0))["params"]
    assert f"{sum(p.size for p in jax.tree.leaves(params)):,}" == ROWS[name]
