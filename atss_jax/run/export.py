"""`--mode=export`: a trained detector as StableHLO or ONNX, free of this package.

A file holds network, weights, post-processing and NMS for one padded image shape: uint8 pixels in,
detections out. `detector.json` beside it says everything that a caller needs;
`scripts/run_exported.py` is a caller with jax or ONNX Runtime alone. An ONNX file of the network
alone gives raw outputs, which need post-processing on the other side.
"""

import datetime
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax import export as jax_export

from atss_jax.data.images import INTERPOLATION
from atss_jax.evaluation.postprocess import make_settings
from atss_jax.files import write_whole
from atss_jax.run import export_onnx, predict_steps, workdir_files
from atss_jax.run.detector import Detector
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import precision

INPUTS = {
    "images": "uint8 [batch, H, W, 3]: RGB, resized content in the upper left corner, then zeros",
    "image_size": "int32 [batch, 2]: (h, w) of the content, px",
    "scale": "float32 [batch, 2]: (h, w) of the content / (h, w) of the original",
}
OUTPUTS = {
    "boxes": "float32 [batch, D, 4]: (x1, y1, x2, y2), px of the original image",
    "scores": "float32 [batch, D], descending",
    "labels": "int32 [batch, D]: index into class_names",
    "is_valid": "bool [batch, D]: False for empty slots",
}
LOADS_WITH = (
    "The files were written by jax {version}. jax.export guarantees that they load with jax "
    "versions released up to 6 months after that one, and up to 3 weeks before it; others may "
    "refuse them. Keep the weights, and export again for a later jax."
)
"""Until when an exported program can be read; the guarantee is that of jax.export."""
RAW_OUTPUTS = {
    "cls_logits_p3 ... p7": "float32 [batch, h, w, anchors, classes]",
    "box_regression_p3 ... p7": "float32 [batch, h, w, anchors, 4]",
    "centerness_logits_p3 ... p7": "float32 [batch, h, w, anchors], where the head has them",
}


Writer = Callable[[Detector, epath.Path], list[epath.Path]]
"""(detector, folder) -> the files written."""
WRITERS: dict[str, Writer] = {}
"""Value of `export.format` -> its function below."""


def writer(function: Writer) -> Writer:
    """Makes `write_x` the writer of the format "x"."""
    WRITERS[function.__name__.removeprefix("write_")] = function
    return function


def export_workdir(config: Recipe, workdir: epath.Path, checkpoint: str = "last") -> epath.Path:
    """Exports a checkpoint into workdir/export.

    Args:
      config: the recipe; group "export" says what.
      workdir: of the run.
      checkpoint: "last", "best" or a step.

    Returns:
      The folder. Files that its former detector.json named and the new one does not are removed.

    Raises:
      UserError: no run there, or no such checkpoint.
      ImportError: the packages of the format are not installed.
    """
    workdir_files.open_workdir(config, workdir)
    detector = Detector.load(workdir, config=config, checkpoint=checkpoint)
    print(f"step {detector.step} ({checkpoint}) of {workdir}")
    folder = workdir / "export"
    folder.mkdir(parents=True, exist_ok=True)
    before = named_files(folder)
    files = WRITERS[config.export.format](detector, folder)
    for file in files:
        print(f"{file}: {file.stat().length / 2**20:.1f} MiB")
    print(f"{folder / 'detector.json'}: how to call it")
    for file in before:
        if file not in files and file.exists():
            file.unlink()
            print(f"{file}: removed, of the export before")
    return folder


def named_files(folder: epath.Path) -> list[epath.Path]:
    """The files in an export folder that its detector.json names; none where it cannot be read."""
    try:
        about = json.loads((folder / "detector.json").read_text())
        names = [str(entry["path"]) for entry in about["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [folder / name for name in names if name == epath.Path(name).name]


@writer
def write_stablehlo(detector: Detector, folder: epath.Path) -> list[epath.Path]:
    """One StableHLO file per bucket, and detector.json; returns the files.

    Args:
      detector: the network with its weights; its config says batch and platforms.
      folder: where to.
    """
    config = detector.config
    predict = predict_steps.predict_step(config, detector.model)
    variables = jax.device_get(detector.variables)

    def detect(images, image_size, scale):
        return tuple(predict(variables, images, image_size, scale))

    files = []
    # one program for all of them: where it runs on TPUs, products have their precision everywhere
    platform = "tpu" if "tpu" in config.export.platforms else ""
    for bucket in config.data.buckets:
        with precision.of_network(config.model.dtype, platform):
            program = jax_export.export(jax.jit(detect), platforms=config.export.platforms)(
                *input_shapes(bucket, config.export.batch_size)
            )
        files.append(folder / f"detector_{bucket[0]}x{bucket[1]}.stablehlo")
        write_whole(files[-1], bytes(program.serialize()))
    describe(detector, folder, files, "stablehlo", OUTPUTS)
    return files


@writer
def write_onnx(detector: Detector, folder: epath.Path) -> list[epath.Path]:
    """One ONNX file per bucket, from pixels to detections, and detector.json; returns the files.

    The batch is fixed: `export.batch_size`, 1 where that is 0.

    Args:
      detector: the network with its weights; its config says batch and post-processing.
      folder: where to.

    Raises:
      UserError: the recipe asks for what ONNX files cannot hold.
      ImportError: jax2onnx or onnx is not installed.
    """
    files = _write_models(detector, folder, "detector", export_onnx.detector_model)
    describe(detector, folder, files, "onnx", OUTPUTS)
    return files


@writer
def write_onnx_network(detector: Detector, folder: epath.Path) -> list[epath.Path]:
    """One ONNX file per bucket with normalisation and network alone, and detector.json.

    Args:
      detector: the network with its weights; its config says the batch.
      folder: where to.

    Raises:
      UserError: a network that ONNX files cannot hold.
      ImportError: jax2onnx or onnx is not installed.
    """
    files = _write_models(detector, folder, "network", export_onnx.network_model)
    describe(detector, folder, files, "onnx_network", RAW_OUTPUTS)
    return files


def _write_models(
    detector: Detector,
    folder: epath.Path,
    name: str,
    make: Callable[[Detector, tuple[int, int]], Any],
) -> list[epath.Path]:
    files = []
    for bucket in detector.config.data.buckets:
        files.append(folder / f"{name}_{bucket[0]}x{bucket[1]}.onnx")
        write_whole(files[-1], make(detector, bucket).SerializeToString())
    return files


def input_shapes(bucket: tuple[int, int], batch_size: int) -> tuple[Any, ...]:
    """Shapes of (images, image_size, scale); a batch of 0 is left open."""
    batch: Any = batch_size or jax_export.symbolic_shape("b")[0]
    return (
        jax.ShapeDtypeStruct((batch, *bucket, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch, 2), jnp.int32),
        jax.ShapeDtypeStruct((batch, 2), jnp.float32),
    )


def describe(
    detector: Detector,
    folder: epath.Path,
    files: list[epath.Path],
    kind: str,
    outputs: dict[str, str],
) -> None:
    """Writes detector.json: what a program needs to know to call the exported files."""
    config = detector.config
    inputs = {k: v for k, v in INPUTS.items() if k != "scale" or kind != "onnx_network"}
    any_batch = "any" if kind == "stablehlo" else 1
    description = {
        "format": kind,
        "files": [
            {
                "path": file.name,
                "height": bucket[0],
                "width": bucket[1],
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            for file, bucket in zip(files, config.data.buckets, strict=True)
        ],
        "batch_size": config.export.batch_size or any_batch,
        "platforms": list(config.export.platforms),
        "inputs": inputs,
        "outputs": outputs,
        "class_names": list(detector.class_names),
        "category_ids": list(detector.category_ids),
        "step": detector.step,
        "resize": {
            "short_side": config.data.short_side,
            "max_long_side": config.data.max_long_side,
            "interpolation": INTERPOLATION,
        },
        "anchors": json.loads(json.dumps(vars(config.anchors))),
        "postprocess": make_settings(config.eval, config.model.regression)._asdict(),
        "exported_on": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": workdir_files.versions(),
    }
    if kind == "stablehlo":
        description["loads_with"] = LOADS_WITH.format(version=jax.__version__)
    else:
        description["opset"] = export_onnx.OPSET
    workdir_files.write_json(folder / "detector.json", description)
