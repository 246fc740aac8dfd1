"""The console command: what it makes of its arguments, what it says, and that it is quick."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from atss_jax import cli
from atss_jax.errors import UserError
from atss_jax.run import field_list, recipe_io
from atss_jax.run.recipe import Recipe
from atss_jax.run.recipe_io import default_workdir
from atss_jax.runtime import screen


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (
            "train photos",
            "--mode=train_and_eval --config.data.root=photos --config.data.image_size=0 "
            "--config.data.max_boxes=0 --config=coco_json --workdir=workdirs/photos",
        ),
        (
            "train photos --data.image_size=64 --data.max_boxes=3 --workdir=w",
            "--mode=train_and_eval --config.data.image_size=64 --config.data.max_boxes=3 "
            "--config.data.root=photos --config=coco_json --workdir=w",
        ),
        (
            "train --config=quickstart --config.run.seed=2 --norun.fsdp",
            "--mode=train_and_eval --config.run.seed=2 --noconfig.run.fsdp --config=quickstart "
            "--workdir=workdirs/quickstart",
        ),
        ("eval w --eval.nms_iou=0.5", "--mode=eval --config.eval.nms_iou=0.5 --workdir=w"),
        ("predict w a.jpg", "--mode=predict --workdir=w --config.predict.input=a.jpg"),
        (
            "predict w a.jpg --predict.score_threshold 0.5 b --checkpoint best c.mp4",
            "--mode=predict --config.predict.score_threshold=0.5 --checkpoint=best --workdir=w "
            "--config.predict.input=a.jpg --config.predict.input=b --config.predict.input=c.mp4",
        ),
        ("export w", "--mode=export --workdir=w"),
        ("describe --config=quickstart", "--mode=describe --config=quickstart"),
        (
            "describe --config=quickstart --topology v5e:2x2 --part=stem",
            "--mode=describe --topology=v5e:2x2 --part=stem --config=quickstart",
        ),
        ("selftest", "--mode=selftest"),
    ],
)
def test_a_command_is_flags_of_main(command, flags):
    name, *arguments = command.split()
    assert cli.main_flags(name, arguments) == flags.split()


def test_the_folder_of_a_run_is_described(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert cli.main_flags("describe", [str(tmp_path)]) == [
        "--mode=describe",
        f"--workdir={tmp_path}",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "give a folder of data, or --config=RECIPE"),
        (["describe"], "give a folder (of data or of a run)"),
        (["config", "nothing_like_this"], "no field matches 'nothing_like_this'"),
        (["config", "rate", "no/run"], "no/run: no such folder"),
        (["config", "--config=coco"], "Did you mean --config=coco_json?"),
        (["config", "resume"], "A run goes on from the newest checkpoint"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(capsys, arguments, message):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_config_finds_fields_by_name_meaning_and_synonym(capsys):
    assert cli.main(["config", "lr"]) == 0
    assert capsys.readouterr().out.startswith("optim.learning_rate = 0.01  (float, above 0)")
    cli.main(["config", "optim.warmup*"])
    printed = capsys.readouterr().out
    assert printed.count("\noptim.") == 2 and "constant | linear" in printed
    cli.main(["config", "soft nms"])
    assert "eval.soft_nms_sigma" in capsys.readouterr().out
    for width in (60, 80, 120):
        assert max(map(len, field_list.describe_fields("", width).split("\n"))) <= width


def test_config_finds_all_of_several_words(capsys):
    assert cli.main(["config", "batch", "size"]) == 0
    assert "data.global_batch = " in capsys.readouterr().out


def test_config_shows_the_values_of_a_recipe_or_run(capsys, tmp_path):
    assert cli.main(["config", "learning_rate", "--config=coco_json"]) == 0
    assert "optim.learning_rate = 0.015 in coco_json; default 0.01" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(recipe_io.recipe_to_json(Recipe()))
    assert cli.main(["config", "num_epochs", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"in {tmp_path}; default {Recipe().optim.num_epochs!r} (float" in printed


def test_unknown_fields_are_refused_with_our_name():
    done = subprocess.run(
        [sys.executable, "-m", "atss_jax.cli", "train", "--config=quickstart", "--lr=0.1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Did you mean --optim.learning_rate?" in done.stderr


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_help_and_version_import_no_jax(flag):
    program = (
        "import sys; from atss_jax import cli\n"
        "try:\n    cli.main(sys.argv[1:])\n"
        "finally:\n    assert not {'jax', 'absl'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, flag], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "atss_jax 0" in done.stdout if flag == "--version" else "atss train photos" in done.stdout
    )


def test_the_help_of_predict_shows_several_inputs(capsys):
    with pytest.raises(SystemExit):
        cli.main(["predict", "--help"])
    printed = capsys.readouterr().out
    assert "atss predict workdirs/mine a.jpg trip clip.mp4" in printed
    assert "input [input ...]" in printed and max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize("command", ["", *cli.MODES, *cli.TOOLS, "config"])
def test_help_fits_a_terminal_of_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"] if command else ["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_an_error_is_wrapped_on_a_terminal_only(capsys, monkeypatch):
    message = "config.optim.lr: no such field. Did you mean config.optim.learning_rate? " * 2
    screen.show_error(message)
    assert capsys.readouterr().err == f"error: {message}\n"
    monkeypatch.setattr("atss_jax.runtime.screen.width_of", lambda stream: 60)
    with screen.of_console():
        screen.show_error(message)
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 60 and lines[0].startswith("error: --optim.lr: no such field.")


def test_the_console_command_names_fields_as_its_flags_in_every_line(capsys):
    record = logging.LogRecord("", logging.WARNING, "", 0, "config.run.seed: ignored", None, None)
    screen.show("other than in w: config.run.seed: 0 -> 1")
    assert "in w: config.run.seed: 0" in capsys.readouterr().out
    assert screen.LineFormatter().format(record) == "WARNING: config.run.seed: ignored"
    with screen.of_console():
        screen.show("other than in w: config.run.seed: 0 -> 1")
        assert screen.LineFormatter().format(record) == "WARNING: --run.seed: ignored"
    assert capsys.readouterr().out == "other than in w: --run.seed: 0 -> 1\n"


def test_check_takes_a_folder(capsys, tmp_path):
    assert cli.main(["check", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_default_names_are_safe():
    assert str(default_workdir("C d*[e]")) == "workdirs/C-d-e"
    assert str(default_workdir("..")) == f"workdirs/{Path('..').resolve().name}"
    with pytest.raises(UserError, match="give a folder"):
        cli.main_flags("train", [])
