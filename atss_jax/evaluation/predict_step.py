"""The predict step: a batch of images -> detections in original coordinates, in one jitted program.

Everybody who looks at images uses it: evaluation, prediction, export and benchmarks.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from atss_jax.evaluation.postprocess import PostprocessSettings, postprocess_batch
from atss_jax.geometry.anchors import make_grid
from atss_jax.geometry.config import AnchorConfig
from atss_jax.models.detector import normalize_images
from atss_jax.models.normalization import Normalization
from atss_jax.runtime import parallel, precision
from atss_jax.structures import Detections, HeadOutputs
from atss_jax.typing import Array, Float, Int, UInt8


@runtime_checkable
class PredictStep(Protocol):
    """The inference of a batch."""

    def __call__(self, variables: Any, images: Any, image_size: Any, scale: Any, /) -> Detections:
        """Detections [B, D] in original px.

        Args:
          variables: {"params": ..., "batch_stats": ...}.
          images: uint8 RGB [B, H, W, 3], the content in the upper left corner.
          image_size: (h, w) of the content, px, [B, 2].
          scale: (y, x) factors, resized = original * scale, [B, 2].
        """
        ...


@runtime_checkable
class Network(Protocol):
    """The network of `models.detector`, or whatever answers like it."""

    def apply(self, variables: Any, images: Any, image_size: Any, /, *, train: bool) -> Any:
        """`HeadOutputs` of normalised images."""
        ...


def make_predict_step(
    network: Network,
    anchors: AnchorConfig,
    normalization: Normalization,
    settings: PostprocessSettings,
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    flip: bool = False,
) -> PredictStep:
    """The jitted inference of a batch; it compiles once per bucket.

    Args:
      network: gives `HeadOutputs` of normalised images.
      anchors: which anchors it has at each location.
      normalization: of its images.
      settings: of the post-processing.
      dtype: compute type of the network, see `runtime.precision`.
      mesh: devices over which the batch is split; None for whatever device holds the arrays.
      flip: look at the mirrored images; the boxes come back unmirrored.
    """

    def predict(variables: Any, images: Array, image_size: Array, scale: Array) -> Detections:
        if flip:
            images = mirror_images(images, image_size)
        normalized = normalize_images(images, image_size, **normalization._asdict())
        with precision.of_network(dtype, parallel.platform_of(mesh)):
            outputs = network.apply(variables, normalized, image_size, train=False)
        grid = make_grid(anchors, (images.shape[1], images.shape[2]))

        def local(outputs: HeadOutputs, image_size: Array, scale: Array) -> Detections:
            found = postprocess_batch(outputs, grid, image_size, scale, **settings._asdict())
            if flip:
                boxes = mirror_boxes(jnp.asarray(found.boxes), image_size, scale)
                found = found._replace(boxes=boxes)
            return found

        if mesh is None:
            return local(outputs, image_size, scale)
        # Selections and NMS stay on the device that holds the image: jit alone would gather.
        rows = PartitionSpec(parallel.AXIS)
        detect_local = jax.shard_map(
            local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
        )
        return detect_local(outputs, image_size, scale)

    return jax.jit(predict)


def mirror_images(
    images: UInt8[Array, "B H W 3"], image_size: Int[Array, "B 2"]
) -> UInt8[Array, "B H W 3"]:
    """Images with their content mirrored left to right and its upper left corner in place."""
    columns = jnp.arange(images.shape[2])[None]  # [1, W]
    width = image_size[:, 1:]
    source = jnp.where(columns < width, width - 1 - columns, columns)  # [B, W]
    return jnp.take_along_axis(images, source[:, None, :, None], axis=2)


def mirror_boxes(
    boxes: Float[Array, "B D 4"], image_size: Int[Array, "B 2"], scale: Float[Array, "B 2"]
) -> Float[Array, "B D 4"]:
    """Boxes in original px mirrored left to right within their images; undoes itself."""
    width = (image_size[:, 1] / scale[:, 1])[:, None]  # [B, 1], original px
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)
