"""What XLA is told when it compiles a step for TPUs.

With few images per chip XLA moves rows of the image into the batch ("space to batch"), with copies
and pads around every convolution: at 2 images of 800x1344 per chip they take 42 % of a layer of the
head instead of 10 % (libtpu 0.0.50, by the compiler's own estimates; docs/performance.md).
"""

IMAGES_PER_TPU = 8
"""From so many on XLA leaves the rows alone by itself."""
NO_SPACE_TO_BATCH = {
    "xla_tpu_run_space_to_batch": "false",
    "xla_tpu_run_space_to_batch_on_new_platforms": "false",
    "xla_tpu_run_space_to_batch_after_spmd": "false",
}
"""Only all three together have an effect."""


def compiler_options(platform: str, images: int) -> dict[str, str]:
    """Options for the training step's compilation.

    Args:
      platform: of the devices, "tpu" or another.
      images: of a micro-batch on one device.
    """
    return dict(NO_SPACE_TO_BATCH) if platform == "tpu" and images < IMAGES_PER_TPU else {}
