"""The recipe as a whole: one frozen group beside each component, together here."""

import dataclasses

from atss_jax.assigners.config import AssignerConfig
from atss_jax.data.config import DataConfig
from atss_jax.evaluation.config import EvalConfig
from atss_jax.geometry.config import AnchorConfig
from atss_jax.models.config import ModelConfig
from atss_jax.run.config import ExportConfig, PredictConfig
from atss_jax.runtime.config import RunConfig
from atss_jax.training.config import LossConfig, OptimConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe; the defaults are ATSS with ResNet-50-FPN, 1x schedule.

    Another recipe is `dataclasses.replace` on this one and on its groups.
    """

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    anchors: AnchorConfig = AnchorConfig()
    assigner: AssignerConfig = AssignerConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()
    predict: PredictConfig = PredictConfig()
    export: ExportConfig = ExportConfig()
