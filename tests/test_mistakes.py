"""What people type wrong: each mistake is one clear line and exit code 2, without importing JAX.

Those that need the data to be read (other classes in train and val, a damaged image, a workdir of
another recipe) are in `test_layouts.py`, `test_workdir.py` and `test_user_commands.py`.
"""

import json
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest

from atss_jax.errors import UserError
from atss_jax.run import given_paths
from atss_jax.run.recipe_io import recipe_from_mapping
from atss_jax.runtime.screen import as_flags

MAX_SECONDS = 3.0
"""CPU time of a command that fails, its start included."""

MISTAKES = {
    # found by a newcomer
    "no recipe": ("main --workdir=w", "w: no run here, and --config is missing."),
    "wrong recipe path": ("train --config=configs/coco.py", "Did you mean --config=coco_json?"),
    "wrong annotation path": (
        "main --config=coco_json --workdir=w --config.data.train_annotations=no.json",
        "config.data.train_annotations='no.json' does not exist. Check the path.",
    ),
    "wrong image folder": (
        "main --config=coco_json --workdir=w --config.data.train_annotations=a.json "
        "--config.data.train_images=photo",
        "config.data.train_images='photo' does not exist.",
    ),
    "no validation set": (
        "main --config=coco_json --workdir=w --config.data.train_annotations=a.json "
        "--config.data.train_images=photos",
        "config.data.val_annotations is empty. Give the path, or --mode=train",
    ),
    "no automatic size": (
        "train photos --data.image_size=big",
        "config.data.image_size='big': must be auto or a whole number, at least -1.",
    ),
    "a part of no device": (
        "describe --config=coco_json --part=stem",
        "--part=stem without --topology: a part is compiled for a named device",
    ),
    "field with a typo": ("train photos --optim.num_epoch=3", "config.optim.num_epochs?"),
    "word instead of a number": (
        "train photos --optim.num_epochs=many",
        "config.optim.num_epochs='many': must be a number, at least 0.",
    ),
    "bracket missing": (
        "train photos --data.buckets=((480,640)",
        "config.data.buckets='((480,640)': must be tuple of (int, int).",
    ),
    "comma missing": (
        "train photos --data.buckets=((480,640))",
        "config.data.buckets=(480, 640): must be tuple of (int, int).",
    ),
    "two lengths": (
        "train photos --optim.num_steps=5 --optim.num_epochs=3",
        "give one of them, 0 for the other",
    ),
    # ours
    "command with a typo": ("trian photos", "no such command. Did you mean `atss train`?"),
    "folder that is not there": ("train phtos", "data.root='phtos': no such folder"),
    "empty folder": ("train empty", "the folder is empty. Give one with images"),
    "a picture for a folder": ("train photos/1.jpg", "neither a folder, nor a data.yaml"),
    "a file for a workdir": ("train photos --workdir=a.json", "a.json is a file. Give a folder."),
    "no run": ("eval workdirs/phtos", "workdirs/phtos: no such folder. Give the folder of a run"),
    "no report without a run": ("report workdirs/phtos", "no such folder. Give the folder of a"),
    "nothing to predict": ("predict run", "arguments are required: input"),
    "image that is not there": ("predict run new.jpg", "new.jpg: no such file or folder"),
    "flag of another trainer": (
        "train photos --epochs=5",
        "Did you mean --config.optim.num_epochs",
    ),
    "unknown backbone": ("train photos --model.backbone=yolo", "use one of resnet18, resnet34"),
    "weights that are not there": (
        "train photos --model.init_from=best.pt",
        "config.model.init_from='best.pt': no such file or folder.",
    ),
    "a run to start from that is not there": (
        "train photos --model.init_from=workdirs/phtos",
        "config.model.init_from='workdirs/phtos': no such file or folder. Give a weight file, the",
    ),
    "a folder to start from that is no run": (
        "train photos --model.init_from=photos",
        "config.model.init_from='photos': a folder without config.json. Give a weight file, the",
    ),
    "size given twice": (
        "train photos --data.image_size=640 --data.short_side=480",
        "data.image_size and data.short_side are both given",
    ),
    "augmentation with a typo": (
        "train photos --data.augmentations=flop(0.5)",
        "no augmentation 'flop'. Did you mean flip(probability)?",
    ),
    "patience without evaluations": (
        "train photos --run.patience=3 --run.eval_every=0",
        "Set both above 0, or patience=0.",
    ),
    # on the way from a run to its results
    "run with a typo": ("eval rum", "rum: no such folder. Did you mean run?"),
    "the folder of all runs": (
        "export .",
        "no run in this folder (no config.json). Give one of the",
    ),
    "a folder inside a run": (
        "eval run/checkpoints",
        "(no config.json). Give the run itself: run.",
    ),
    "an evaluation for a run": (
        "predict run/eval/val-8-none photos/1.jpg",
        "run/eval/val-8-none: no checkpoint in this folder. Give the run itself: run.",
    ),
    "a run of another program": ("eval other", "other/config.json: no recipe of atss_jax, perhaps"),
    "a report of another program": ("report other", "other/config.json: no recipe of atss_jax"),
    "a run that saved nothing": (
        "export new",
        "new: no checkpoint in this folder. The training has",
    ),
    "a checkpoint that is not kept": (
        "eval run --checkpoint=5",
        "--checkpoint=5: not in run/checkpoints. Use last, best, or one of the steps 4, 8.",
    ),
    "checkpoint with a typo": ("predict run real.png --checkpoint bets", "Use last, best, or one"),
    "no checkpoint is the best": (
        "export run --checkpoint=best",
        "the training evaluated none of the checkpoints in run/checkpoints (4, 8). Use last, or",
    ),
    "two runs": ("eval run new", "unexpected arguments ['new']: only flags may follow"),
    "image and run in the wrong order": (
        "predict photos run",
        "photos: no run. The run comes first: atss predict run ...",
    ),
    "one of the images is not there": (
        "predict run real.png no.jpg",
        "no.jpg: no such file or folder. Give images, videos, folders, or a pattern in quotes",
    ),
    "an address": ("predict run https://x.org/a.jpg", "an address must be downloaded first"),
    "no image in a folder": ("predict run empty", "empty: no image in this folder or below it."),
    "nothing matches": ("predict run new/*.jpg", "new/*.jpg: no image or video matches this"),
    "no image": ("predict run a.json", "a.json: not a readable image"),
    "an image by its name alone": ("predict run photos/1.jpg", "1.jpg: not a readable image"),
    "drawings into a file": (
        "predict run real.png --predict.output=a.json",
        "config.predict.output='a.json': a.json is a file. Give a folder.",
    ),
    "a threshold in per cent": (
        "predict run real.png --predict.score_threshold=30",
        "must be at least 0 and at most 1.",
    ),
    "unknown format": (
        "export run --export.format=tflite",
        "use one of stablehlo, onnx, onnx_network.",
    ),
    "a report without an evaluation": (
        "report new",
        "new: nothing was evaluated. Run `atss eval new`, then give its folder below new/eval.",
    ),
    "a report of a run that was evaluated later": (
        "report run",
        "run: the training was not evaluated. Give one of the evaluations: run/eval/val-8-none.",
    ),
    "a report into a folder": (
        "report run/eval/val-8-none --output=empty",
        "--output=empty: a folder. Give a file, as in empty/report.html.",
    ),
    "a report into no folder": ("report run/eval/val-8-none --output=no/r.html", "no is no folder"),
    "a field for a report": ("report run --eval.nms_iou=0.5", "unrecognized arguments: --eval"),
    "a report of nothing": ("report", "atss report: the following arguments are required: folder"),
    "a split that is not there": (
        "eval run --data.source=coco_json --data.val_annotations=no.json",
        "config.data.val_annotations='no.json' does not exist.",
    ),
    "checkpoint to train": ("train photos --checkpoint=best", "only for eval, predict, export"),
}
"""What is wrong -> the command, and a part of the answer."""

FOLDERS = (
    *("photos", "empty", "new", "other"),
    *("run/checkpoints/4", "run/checkpoints/8", "run/eval/val-8-none"),
)
FILES = (
    *("a.json", "photos/1.jpg", "run/config.json", "new/config.json"),
    *("run/eval/val-8-none/config.json", "run/eval/val-8-none/detections.json"),
)

RUNNER = """
import json, os, resource, sys, tempfile
from atss_jax import cli, main
start = resource.getrusage(resource.RUSAGE_SELF)
results = {}
for name, words in json.loads(sys.argv[1]).items():
    with tempfile.TemporaryFile("w+") as errors:
        child = os.fork()  # flags are defined once per process
        if child == 0:
            os.dup2(errors.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = 0
            try:
                if words[0] == "main":
                    main.run_from_command_line(words[1:])
                else:
                    code = cli.main(words)
            except SystemExit as stop:
                code = stop.code
            sys.stderr.flush()
            os._exit(code + 100 * ("jax" in sys.modules))
        _, status, used = os.wait4(child, 0)
        errors.seek(0)
        seconds = sum((start.ru_utime, start.ru_stime, used.ru_utime, used.ru_stime))
        results[name] = (os.waitstatus_to_exitcode(status), errors.read(), seconds)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, Any]:
    """What is wrong -> (exit code, standard error, seconds of CPU)."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text("{}")
    (folder / "other" / "config.json").write_text('{"architectures": []}')
    cv2.imwrite(str(folder / "real.png"), np.zeros((8, 8, 3), np.uint8))
    before = sorted(folder.rglob("*"))
    commands = {name: command.split() for name, (command, _) in MISTAKES.items()}
    found = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(commands)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(folder.rglob("*")) == before, "a mistake leaves files"
    return json.loads(found.stdout)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_after_a_second(answers, name):
    code, text, seconds = answers[name]
    assert text.startswith("error: ") and text.count("\n") == 1, text
    command, expected = MISTAKES[name]
    assert (expected if command.startswith("main ") else as_flags(expected)) in text
    assert code == 2, "100 more says that JAX was imported"
    assert seconds < MAX_SECONDS


def test_onnx_without_its_packages_is_said_before_anything_is_loaded(monkeypatch, tmp_path):
    (tmp_path / "checkpoints/4").mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe = recipe_from_mapping({"export": {"format": "onnx"}})
    with pytest.raises(UserError, match="needs jax2onnx and onnx, not installed here"):
        given_paths.check(recipe, "export", str(tmp_path))
