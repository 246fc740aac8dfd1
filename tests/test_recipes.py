"""Every recipe has the values of commit 30a6cc9, and is found without the repository."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atss_jax.data.config import DataConfig
from atss_jax.run import recipe_files, recipe_io
from atss_jax.run.recipe import Recipe

SNAPSHOT = json.loads(Path(__file__).with_name("recipes_at_30a6cc9.json").read_text())
"""Values of the base recipe, and of each `--config=` of recipes and table rows what differs."""


@pytest.mark.parametrize("name", SNAPSHOT["recipes"])
def test_a_recipe_keeps_its_values(name):
    recipe = recipe_io.recipe_from_mapping(recipe_files.load_recipe(name).to_dict())
    values = json.loads(recipe_io.recipe_to_json(recipe))
    before: dict[str, dict] = {}
    for field, value in {**SNAPSHOT["base"], **SNAPSHOT["recipes"][name]}.items():
        before.setdefault(field.split(".")[0], {})[field.split(".")[1]] = value
    before["data"] = dict(DataConfig.upgrade(before["data"]))  # three fields became one list
    expected = json.loads(json.dumps(before))
    found = {g: {f: values[g][f] for f in fields} for g, fields in expected.items()}
    assert found == expected


def test_the_defaults_are_the_base_recipe():
    name = "configs/atss_r50_fpn_1x.py"
    assert recipe_io.recipe_from_mapping(recipe_files.load_recipe(name).to_dict()) == Recipe()


def test_recipes_are_found_by_name_from_anywhere(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "atss_jax.main", "--config=quickstart"]
    done = subprocess.run(
        [*command, "--config.optim.lr=1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: config.optim.lr: no such field. Did you mean config.optim.learning_rate?\n"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=quikstart"], "Did you mean --config=quickstart?"),
        (["--config=configs/nothere.py"], "no such file"),
        (["--config=quickstart:k=3"], "takes none"),
        (["--config=ablations:kk=3"], "Did you mean 'k'?"),
        (["--config=quickstart", "--config.data.buckets=((480,640))"], "config.data.buckets"),
        (["--config=quickstart", "--config.data.exif=aply"], "Did you mean 'apply'?"),
        (["--config=quickstart", "--config.data.mean=(1,2)"], "config.data.mean=(1, 2)"),
        (["--config=quickstart", "--config.run.log_every=0"], "must be at least 1"),
        (["--config=quickstart", "--config.eval.backend=hotcoc"], "Did you mean 'hotcoco'?"),
        (["--config=quickstart", "--config.data.imgsz=3"], "config.data.short_side"),
    ],
)
def test_a_mistake_is_one_line_and_code_2_before_jax(tmp_path, flags, message):
    program = (
        "import sys\nfrom atss_jax import main\n"
        "try:\n    main.run_from_command_line()\n"
        "finally:\n    assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *flags, "--workdir=x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_file_of_your_own_may_change_a_packaged_recipe(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from atss_jax.configs import common, coco_json\n"
        "def get_config(arg=''):\n"
        "    base = coco_json.recipe()\n"
        "    return common.config_dict(replace(base, data=replace(base.data, max_boxes=7)))\n"
    )
    assert recipe_files.load_recipe(str(file)).to_dict()["data"]["max_boxes"] == 7
