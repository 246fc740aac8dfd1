"""Converts weight files of other libraries, and checkpoints of ours, to safetensors.

  # a backbone for model.init_from: torchvision, timm (.safetensors, .pth), MSRA/FAIR (.pkl)
  python scripts/convert_weights.py --input=R-50.pkl --output=data/weights/R-50.safetensors

  # an official ATSS checkpoint (the whole detector)
  python scripts/convert_weights.py --input=ATSS_R_50_FPN_1x.pth --output=atss_r50.safetensors

  # a run of ours: the newest checkpoint with its class names and config inside
  python scripts/convert_weights.py --workdir=runs/bccd --output=bccd.safetensors

The first two forms keep the source's names; `model.init_from` brings them to ours and checks them
against the network of the config. Official checkpoints were trained on a grid half a pixel off
ours: set anchors.offset_px=0.5 with them, and the Caffe channel order and means.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from atss_jax.models import pretrained, saved_detector
from atss_jax.models.weight_names import to_flat
from atss_jax.run import recipe_io


def convert_file(source: str, target: str) -> None:
    """Copies the known arrays of any supported file to safetensors.

    Raises:
      FileNotFoundError, ValueError: no such file; unknown names.
    """
    arrays = pretrained.read_arrays(source)
    flat = to_flat(arrays)  # raises for names that model.init_from would not know
    parts = sorted({name.split("/")[0] for name in flat})
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(contiguous, target, {"source": Path(source).name})
    count = sum(array.size for array in flat.values())
    print(f"{target}: {len(flat)} arrays, {count:,} numbers ({', '.join(parts)})")


def convert_workdir(workdir: str, target: str) -> None:
    """Writes the newest checkpoint of a workdir, with class names and config."""
    from atss_jax.run.detector import Detector

    detector = Detector.load(workdir)
    saved_detector.save_detector(
        target,
        detector.variables,
        detector.class_names,
        recipe_io.recipe_to_json(detector.config),
        category_ids=detector.category_ids,
    )
    print(f"{target}: {', '.join(detector.class_names)}")
    print(f"digest of the weights: {saved_detector.digest(detector.variables)}")


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", help="weights: .safetensors, .npz, .pth or .pkl")
    source.add_argument("--workdir", help="folder of a run, also gs://; its newest checkpoint")
    parser.add_argument("--output", required=True, help="safetensors file to write, on a disk")
    arguments = parser.parse_args()
    if "://" in arguments.output:
        parser.error(f"--output={arguments.output}: give a file on a disk, and copy it from there.")
    output = Path(recipe_io.expand_user(arguments.output))
    if output.is_dir():
        parser.error(
            f"--output={output} is a folder. Give a file, as in {output / 'w.safetensors'}"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if arguments.input:
            convert_file(recipe_io.expand_user(arguments.input), str(output))
        else:
            convert_workdir(recipe_io.expand_user(arguments.workdir), str(output))
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
