"""ONNX models of a trained detector: from pixels to detections, or the network alone.

jax2onnx converts normalisation and network. It cannot convert selections and NMS, which
`onnx_postprocess.py` writes in ONNX operators. `export.py` writes the files and says what inputs
and outputs are. The packages are imported late: most installations are without them.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp

from atss_jax.errors import UserError
from atss_jax.evaluation.postprocess import make_settings
from atss_jax.geometry.anchors import make_grid
from atss_jax.models import convolutions
from atss_jax.models.detector import normalize_images
from atss_jax.run import predict_steps
from atss_jax.run.detector import Detector
from atss_jax.run.recipe import Recipe
from atss_jax.structures import HeadOutputs

OPSET = 23
"""Version of ONNX's operators that the files use."""


def detector_model(detector: Detector, bucket: tuple[int, int]) -> Any:
    """The `onnx.ModelProto` from pixels to detections.

    Args:
      detector: the network with its weights; its config says batch and post-processing.
      bucket: (H, W) of the padded images, px.

    Raises:
      UserError: the recipe asks for what the model cannot hold.
      ImportError: the packages are not installed.
    """
    config = detector.config
    check_postprocess(config)
    model = network_model(detector, bucket)
    import onnx  # pyright: ignore[reportMissingImports]

    from atss_jax.run import onnx_postprocess

    graph, batch = model.graph, batch_size(config)
    names = [output.name for output in graph.output]
    del graph.output[:]
    graph.input.append(
        onnx.helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, (batch, 2))
    )
    onnx_postprocess.add_postprocess(
        onnx_postprocess.Graph(graph),
        {field: [n for n in names if n.startswith(field)] for field in HeadOutputs._fields},
        "image_size",
        "scale",
        make_grid(config.anchors, bucket),
        make_settings(config.eval, config.model.regression),
        batch=batch,
        num_classes=len(detector.class_names),
    )
    onnx.checker.check_model(model)
    return model


def network_model(detector: Detector, bucket: tuple[int, int]) -> Any:
    """The `onnx.ModelProto` of normalisation and network.

    Its inputs are `images` and `image_size`, its outputs `cls_logits_p3` to `centerness_logits_p7`.

    Args:
      detector: the network with its weights; its config says the batch.
      bucket: (H, W) of the padded images, px.

    Raises:
      UserError: a network in bfloat16, or with operations that jax2onnx does not convert.
      ImportError: the packages are not installed.
    """
    check_network(detector.config)
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)  # its examples miss their packages
    try:
        import jax2onnx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f'config.export.format="{detector.config.export.format}" needs jax2onnx and onnx, see '
            'docs/export.md. Without them use config.export.format="stablehlo".'
        ) from error
    batch = batch_size(detector.config)
    inputs = [
        jax.ShapeDtypeStruct((batch, *bucket, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch, 2), jnp.int32),
    ]
    network = raw_network(detector)
    # Without jit, because jax2onnx 0.17.1 cannot convert a nested one under JAX 0.12.
    with warnings.catch_warnings(), jax.disable_jit(), no_chatter(), convolutions.plain():
        warnings.filterwarnings("ignore", "Explicitly requested dtype float64")
        try:
            model = jax2onnx.to_onnx(
                lambda *given: tuple(jax.tree.leaves(network(*given))),
                inputs=inputs,
                opset=OPSET,
                input_names=["images", "image_size"],
                output_names=output_names(jax.eval_shape(network, *inputs)),
            )
        except Exception as error:  # of many kinds, for operations that it does not know
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"jax2onnx cannot convert this network with jax {jax.__version__} "
                f"({type(error).__name__}: {reason}). docs/export.md lists networks that it "
                "converts; config.export.format=stablehlo takes all."
            ) from error
    make_shifts_unsigned(model.graph)
    del model.graph.value_info[:]  # some of these shapes are wrong; a runtime infers them anyway
    return model


@contextlib.contextmanager
def no_chatter() -> Generator[None, None, None]:
    """Loggers of all packages tell warnings and errors only."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)


def raw_network(detector: Detector) -> Callable[[Any, Any], Any]:
    """(images, image_size) -> `HeadOutputs`, with the weights inside."""
    normalization = predict_steps.normalization(detector.config)
    variables = detector.variables

    def network(images: Any, image_size: Any) -> Any:
        normalized = normalize_images(images, image_size, **normalization._asdict())
        return detector.model.apply(variables, normalized, image_size)

    return network


def output_names(outputs: HeadOutputs) -> list[str]:
    """A name for each array: its field and its level."""
    return [
        f"{field}_p{level}"
        for field, levels in outputs._asdict().items()
        for level, _ in enumerate(levels or (), start=3)
    ]


def make_shifts_unsigned(graph: Any) -> None:
    """Left shifts of int32, which ONNX does not know, become shifts of uint32.

    jax2onnx 0.17.1 writes them so; its right shifts are correct. The network shifts the sides of
    images and maps (`geometry.pyramid.padded_side`), which are never negative.

    Args:
      graph: `onnx.GraphProto`, changed in place.
    """
    import onnx  # pyright: ignore[reportMissingImports]

    kinds = onnx.TensorProto

    def cast(source: str, target: str, kind: int) -> Any:
        return onnx.helper.make_node("Cast", [source], [target], name=target, to=kind)

    signed = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == kinds.INT32}
    nodes = []
    for node in graph.node:
        result = node.output[0]
        if node.op_type != "BitShift" or result not in signed:
            nodes.append(node)
            continue
        for i, source in enumerate(list(node.input)):
            node.input[i] = f"{result}/unsigned_{i}"
            nodes.append(cast(source, node.input[i], kinds.UINT32))
        node.output[0] = f"{result}/unsigned"
        nodes += [node, cast(node.output[0], result, kinds.INT32)]
    del graph.node[:]
    graph.node.extend(nodes)


def batch_size(config: Recipe) -> int:
    """The fixed batch of a file: `export.batch_size`, 1 where that is 0."""
    return config.export.batch_size or 1


def check_network(config: Recipe) -> None:
    """Refuses networks that ONNX Runtime does not run.

    Raises:
      UserError: a network in bfloat16.
    """
    if config.model.dtype != "float32":
        raise UserError(
            f"config.model.dtype={config.model.dtype!r}: an ONNX file holds a float32 network. "
            "Export with model.dtype=float32; the weights are the same."
        )


def check_postprocess(config: Recipe) -> None:
    """Refuses post-processing that the model does not hold.

    Raises:
      UserError: soft NMS or several looks at an image.
    """
    for field, value, allowed in (
        ("nms", config.eval.nms, "hard"),
        ("multiscale", config.eval.multiscale, "none"),
    ):
        if value != allowed:
            raise UserError(
                f"config.eval.{field}={value!r}: an ONNX file has hard NMS and looks at an image "
                f"once. Export with eval.{field}={allowed}, or the network alone with "
                "export.format=onnx_network."
            )
