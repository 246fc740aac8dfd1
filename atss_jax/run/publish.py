"""A run as a repository of the Hugging Face Hub: weights, recipe, classes, a card with its AP.

from atss_jax.run.publish import push
push("workdirs/mine", "me/cells")        # HF_TOKEN, or `hf auth login` before
detector = Detector.load("hf://me/cells")
"""

import json
import tempfile
from pathlib import Path

from etils import epath

from atss_jax.errors import UserError
from atss_jax.evaluation.coco_metrics import METRICS
from atss_jax.models import hub, saved_detector
from atss_jax.run import recipe_io
from atss_jax.run.detector import Detector
from atss_jax.runtime import checkpoint_record

CARD = """\
---
library_name: atss_jax
pipeline_tag: object-detection
tags: [object-detection, jax, atss]
---

# {title}

A {backbone} detector of atss_jax with {count} classes: {classes}.

{metrics}

```python
from atss_jax import Detector

detector = Detector.load("hf://{repository}")
found = detector("photo.jpg", threshold=0.3)
```

`config.json` is the recipe, `classes.json` the classes; `model.safetensors` holds both besides the
weights, whose digest (SHA-256) is `{digest}`.
Training started from: {start}. The licence is not chosen yet: that of the data and of the start
weights matters.
"""


def push(workdir: str | Path, repository: str, *, private: bool = True) -> str:
    """Uploads the newest checkpoint of a run; returns the address of the commit.

    Args:
      workdir: folder of the run.
      repository: "owner/name"; made if it does not exist.
      private: of a repository that is made.

    Raises:
      UserError: no run there, no client, no such name, or the hub refuses.
    """
    name = hub.parse_name(repository).repository
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("push needs the client of the hub: pip install 'atss_jax[hub]'.") from error
    with tempfile.TemporaryDirectory() as folder:
        write_repository(Path(workdir), Path(folder), name)
        try:
            api = huggingface_hub.HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(
                folder_path=folder, repo_id=name, commit_message="A detector of atss_jax"
            )
        except OSError as error:
            raise UserError(
                f"{name}: the hub refuses or cannot be reached ({error}). Check the name and "
                "HF_TOKEN."
            ) from error
    return str(commit.commit_url)


def write_repository(workdir: Path, folder: Path, repository: str) -> None:
    """Writes the files of a repository: weights, recipe, classes and the card.

    Args:
      workdir: folder of the run.
      folder: an existing one, to write into.
      repository: "owner/name".

    Raises:
      UserError: no run there.
    """
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir / 'config.json'}: missing. Give the workdir of a run.")
    detector = Detector.load(workdir)
    config_json = recipe_io.recipe_to_json(detector.config)
    saved_detector.save_detector(
        folder / hub.WEIGHTS_FILE,
        detector.variables,
        detector.class_names,
        config_json,
        category_ids=detector.category_ids,
    )
    (folder / "config.json").write_text(config_json)
    classes = {
        "class_names": list(detector.class_names),
        "category_ids": list(detector.category_ids),
    }
    (folder / "classes.json").write_text(json.dumps(classes, indent=2) + "\n")
    model = detector.config.model
    card = CARD.format(
        title=repository.split("/")[1],
        backbone=model.backbone,
        count=len(detector.class_names),
        classes=", ".join(detector.class_names),
        metrics=measured(workdir, detector.step),
        repository=repository,
        digest=saved_detector.digest(detector.variables),
        start=model.init_from or "random weights",
    )
    (folder / "README.md").write_text(card)


def measured(workdir: Path, step: int | None) -> str:
    """A table of what the training measured at a checkpoint on its validation set, if it did."""
    folder = epath.Path(workdir) / "checkpoints"
    record = (checkpoint_record.read_record(folder, step) if step is not None else None) or {}
    metrics = record.get("metrics") or {}
    known = [(name, metrics[name]) for name in METRICS if metrics.get(name, -1) not in (None, -1)]
    if not known:
        return "Not evaluated."
    lines = ["| metric | on its validation set |", "|---|---:|"]
    return "\n".join(lines + [f"| {name} | {value:.3f} |" for name, value in known])
