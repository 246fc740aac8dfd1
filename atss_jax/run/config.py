"""Recipe groups "predict" and "export"."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from atss_jax.config import ConfigGroup, Range
from atss_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(ConfigGroup, name="predict"):
    """`--mode=predict`."""

    input: tuple[str, ...] = ()
    """Images, folders, videos and patterns; the flag may be given several times."""
    output: str = ""
    """Folder for drawings and tables; "" is `predictions` in the workdir."""
    score_threshold: Annotated[float, Range(0, 1)] = 0.3
    """Drawn and listed from this score on."""

    @classmethod
    def upgrade(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """One input was a text without a tuple around it."""
        given = values.get("input")
        if isinstance(given, str):
            return {**values, "input": (given,) if given else ()}
        return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(ConfigGroup, name="export"):
    """`--mode=export`."""

    format: Literal["stablehlo", "onnx", "onnx_network"] = "stablehlo"
    """stablehlo and onnx hold everything from pixels to detections, onnx_network the network
    alone."""
    batch_size: Annotated[int, Range(0)] = 1
    """Fixed batch, or 0 for any (onnx: 1)."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu",)
    """stablehlo: platforms that the file runs on."""

    def check(self) -> None:
        """At least one platform."""
        if not self.platforms:
            raise UserError("config.export.platforms=(): give at least one platform.")
