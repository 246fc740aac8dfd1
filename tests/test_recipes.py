"""Recipes but that for own data have the values of commit 30a6cc9; all are found from anywhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from atss_jax.data.config import DataConfig
from atss_jax.errors import UserError
from atss_jax.run import recipe_files, recipe_io, workdir_files
from atss_jax.run.config import PredictConfig
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
    before["predict"] = dict(PredictConfig.upgrade(before["predict"]))  # one text, now several
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
        (["--config=quickstart", "--config.data.imgsz=3"], "config.data.image_size"),
        (["--config=quickstart", "--config.optim.batch_size=3"], "config.data.global_batch?"),
        (["--config=quickstart", "--config.data=shapes"], "config.data: a group. Give one of its"),
        (["--config=quickstart", "--config.run.resume=1"], "of its --workdir by itself"),
        (["--config=quickstart", "--config.patience=3"], "Did you mean config.run.patience?"),
        (["--config=quickstart", "--lr=1"], "--config.optim.learning_rate?"),
        (["--config=quickstart", "--batch-size=1"], "--config.data.global_batch?"),
        (["--config=quickstart", "--device=cuda"], "JAX_PLATFORMS"),
        (["--config=quickstart", "--config.optim.num_steps=1.5"], "='1.5': must be a whole number"),
        (["--config=quickstart", "--config.run.fsdp=maybe"], "='maybe': must be bool"),
        (["--config=quickstart", "--mode=trian"], "value should be one of <train|eval|"),
        (["--config=quickstart", "more"], "unexpected arguments ['more']"),
        (["--config"], "--config is empty. Give a path, or one of"),
        ([], "--config is missing"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name", "cannot be imported: No module named"),
        ("x = undefined", "cannot be imported: name 'undefined'"),
        ("def get_config(arg=''", "cannot be imported: "),
        ("x = 1", "has no function get_config"),
        ("def get_config(): return {}", "get_config returns dict, not a ConfigDict"),
        ("def get_config(arg): return open('/not/there')", "get_config failed: "),
    ],
)
def test_a_recipe_file_that_does_not_work_is_named(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=f"--config={file}: {message}"):
        recipe_files.load_recipe(str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"null", "a recipe has named groups (data, model, anchors"),
        (b"[1, 2]", "named groups"),
        (b'{"data": {"exif": "app', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\x89PNG\xff", "codec can't decode"),
        (b'{"data": 3}', "config.data=3: must be a group of named fields"),
        (b'{"data": {"exif": null}}', "config.data.exif=None: use one of"),
        (b'{"data": {}, "weather": {}}', "config.weather: no such field"),
        (b'{"weather": {}}', "no recipe of atss_jax, perhaps another program's"),
    ],
)
def test_a_config_json_that_is_none_is_named_in_one_line(tmp_path, content, message):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        recipe_io.read_recipe(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ") and message in text and "\n" not in text
    with pytest.raises(UserError, match="config.json"):  # the train mode's way to it
        workdir_files.check_workdir(Recipe(), epath.Path(tmp_path), training=True)


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
