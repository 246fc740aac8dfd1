r"""The paper's main recipe on hardware of today: batch, type, length and loaders of a machine.

Not run by this project, which has no accelerator: docs/devices.md says what was compiled for which.

    python -m atss_jax.main --config=configs/hardware.py:v5e-8 --workdir=workdirs/r50
    atss describe --config=hardware:v5e-8 --topology=v5e:2x4

Images seen are the paper's, 90,000 steps of 16. The learning rate follows from the batch by the
linear rule (`optim.lr_scaling`), so 0.01 becomes 0.04 for 64 images and 1.28 for 2,048. Other
batches than 16 rise to it linearly during about one epoch, from the paper's own 0.01, as Goyal et
al. 2017 and MegDet (arXiv 1711.07240, which went to 256 images) do. Nobody has tried 2,048 here.
"""

from dataclasses import replace
from typing import NamedTuple

from ml_collections import ConfigDict

from atss_jax.configs import atss_r50_fpn_1x, common
from atss_jax.run.recipe import Recipe

COCO_IMAGES = 117_266
"""Training images with objects of COCO 2017: an epoch."""


class Hardware(NamedTuple):
    """A machine, or a slice of several."""

    topology: str
    """For `atss describe --topology=...`."""
    devices: int
    """Devices that JAX sees: chips of a TPU, GPUs."""
    images: int
    """Per device and step. TPUs want 8 at least, see docs/performance.md."""
    workers: int = 8
    """Loader processes of each process of the job. One core reads 240 images/s at 800x1333; where
    peak FLOP/s suggest more than 8 such workers with some margin, more are taken."""
    processes: int = 1
    """Of the job: machines of the slice."""


HARDWARE = {
    "v5e-8": Hardware("v5e:2x4", 8, 8),
    "v5e-256": Hardware("v5e:16x16", 256, 8, processes=64),
    "v6e-8": Hardware("v6e:2x4", 8, 8, workers=20),
    "v5p-8": Hardware("v5p:2x2x1", 4, 8),  # Cloud TPU counts cores: 4 chips of 2
    "h100-1": Hardware("h100:1", 1, 16),
    "h100-8": Hardware("h100:8", 8, 8, workers=20),
    "a100-8": Hardware("a100:8", 8, 8),
}
"""The recipe's argument -> what it stands for; TPUs by the names of Cloud TPU."""


def recipe(arg: str = "") -> Recipe:
    """The recipe for a machine.

    Args:
      arg: a key of `HARDWARE`.

    Raises:
      UserError: another argument, or none.
    """
    hardware: Hardware = common.choose("hardware", arg, HARDWARE)
    base = atss_r50_fpn_1x.recipe()
    reference = base.optim.reference_batch
    batch = hardware.images * hardware.devices
    steps = round(base.optim.num_steps * reference / batch)
    optim = replace(base.optim, num_steps=steps, accumulate=1)
    if batch != reference:
        optim = replace(
            optim,
            warmup="linear",
            warmup_steps=max(1, round(COCO_IMAGES / batch)),
            warmup_factor=reference / batch,
        )
    return replace(
        base,
        data=replace(base.data, global_batch=batch, num_workers=hardware.workers),
        model=replace(base.model, dtype="bfloat16", remat="none"),
        optim=optim,
        eval=replace(base.eval, batch_size=batch),
        run=replace(
            base.run,
            eval_every=round(base.run.eval_every * steps / base.optim.num_steps),
            checkpoint_every=min(base.run.checkpoint_every, steps // 9),
            distributed="auto" if hardware.processes > 1 else "none",
        ),
    )


def get_config(arg: str = "") -> ConfigDict:
    """The recipe for the command line."""
    return common.config_dict(recipe(arg))
