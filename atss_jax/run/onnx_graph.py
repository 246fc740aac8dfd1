"""An ONNX graph that grows operator by operator. Needs the package onnx."""

import itertools
from typing import Any

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]

Value = str | np.ndarray | np.generic
"""An operator's input: the name of another one's output, or a constant."""


class Graph:
    """An ONNX graph that grows at its end; values are known by their names.

    Args:
      proto: the graph.
      prefix: of the new names, which no name of the graph may have.
    """

    def __init__(self, proto: onnx.GraphProto, prefix: str = "postprocess/"):
        self._proto, self._prefix = proto, prefix
        self._numbers = itertools.count()

    def op(self, kind: str, *inputs: Value, **attributes: Any) -> str:
        """Appends an operator with one output; returns the output's name."""
        return self.op_outputs(kind, 1, *inputs, **attributes)[0]

    def op_outputs(self, kind: str, count: int, *inputs: Value, **attributes: Any) -> list[str]:
        """Appends an operator; returns the names of its outputs."""
        names = [v if isinstance(v, str) else self._constant(v) for v in inputs]
        outputs = [self._name(kind) for _ in range(count)]
        node = onnx.helper.make_node(kind, names, outputs, name=outputs[0], **attributes)
        self._proto.node.append(node)
        return outputs

    def output(self, name: str, value: str, kind: int, shape: tuple[int, ...]) -> None:
        """Makes a value an output of the graph; `kind` is one of `onnx.TensorProto`."""
        self._proto.node.append(onnx.helper.make_node("Identity", [value], [name], name=name))
        self._proto.output.append(onnx.helper.make_tensor_value_info(name, kind, shape))

    def _constant(self, value: Any) -> str:
        name = self._name("constant")
        self._proto.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def _name(self, kind: str) -> str:
        return f"{self._prefix}{kind}_{next(self._numbers)}"

    def take(self, values: str, index: str) -> str:
        """`values` [B, N] at `index` [B, k] of each image."""
        return self.op("GatherElements", values, index, axis=1)

    def take_rows(self, values: str, index: str) -> str:
        """Rows of `values` [B, N, C] at `index` [B, k] of each image: [B, k, C]."""
        return self.op(
            "GatherND", values, self.op("Unsqueeze", index, np.array([-1])), batch_dims=1
        )

    def columns(self, values: str, columns: tuple[int, ...]) -> str:
        """Some columns of `values` [B, k, C]."""
        return self.op("Gather", values, np.array(columns), axis=2)
