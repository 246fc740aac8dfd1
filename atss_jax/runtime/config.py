"""Recipe group "run": the loop, its checkpoints and its processes."""

import dataclasses
from typing import Annotated, Literal

from atss_jax.config import ConfigGroup, Range
from atss_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(ConfigGroup, name="run"):
    """Seed, intervals, checkpoints, processes and what is recorded."""

    seed: Annotated[int, Range(0)] = 0
    """Of initial parameters, order of the images and augmentation."""
    log_every: Annotated[int, Range(1)] = 50
    """Steps between progress lines."""
    checkpoint_every: Annotated[int, Range(1)] = 1000
    """Steps between checkpoints: at most so many are lost to a kill."""
    async_checkpoints: bool = False
    """Train on while a checkpoint is written; a kill then loses these steps as well."""
    eval_every: Annotated[int, Range(0)] = 10_000
    """Steps between evaluations; 0 evaluates at the end only."""
    keep_last: Annotated[int, Range(1)] = 2
    """Newest checkpoints that are kept."""
    keep_best: Annotated[int, Range(0)] = 1
    """Best checkpoints by AP that are kept besides."""
    keep_every: Annotated[int, Range(0)] = 0
    """Checkpoints at multiples of this step are kept besides; 0 for none."""
    max_minutes: Annotated[float, Range(0)] = 0.0
    """Minutes that the run may take over all its starts, reading, compiling and evaluating
    included; 0 for no limit. A new run measures its steps and is shortened to those that fit;
    config.json holds their number, which later starts keep."""
    patience: Annotated[int, Range(0)] = 0
    """The run ends after so many evaluations in a row without a better AP; 0 never does. What
    follows reads the best checkpoint with `--checkpoint=best`."""
    max_bad_steps: Annotated[int, Range(1)] = 10
    """Non-finite steps in a row before the run stops."""
    distributed: Literal["none", "auto", "address"] = "none"
    """How processes find each other: auto (TPU pod, SLURM, Open MPI) or address (the three
    below)."""
    coordinator: str = ""
    """address: host:port of process 0."""
    num_processes: Annotated[int, Range(1)] = 1
    """address: processes of the job."""
    process_id: Annotated[int, Range(0)] = 0
    """address: number of this process."""
    init_timeout: Annotated[int, Range(1)] = 300
    """Seconds to wait for the other processes."""
    fsdp: bool = False
    """Shard parameters and optimizer state over the devices."""
    compilation_cache: str = ""
    """Folder of compiled programs; "" uses the workdir's parent, "off" none."""
    profile_steps: tuple[()] | tuple[int, int] = ()
    """(first, last) step to profile, () for none."""
    report: bool = True
    """Write report.html when the run ends."""
    wandb: str = ""
    """Weights & Biases project, "" for none."""

    def check(self) -> None:
        """A profile ends after it begins; patience has evaluations to count and a best to keep."""
        if self.patience and not (self.eval_every and self.keep_best):
            raise UserError(
                f"config.run.patience={self.patience} with config.run.eval_every="
                f"{self.eval_every}, keep_best={self.keep_best}: it counts evaluations, and the "
                "best checkpoint is what is left. Set both above 0, or patience=0."
            )
        if self.profile_steps and not 0 <= self.profile_steps[0] < self.profile_steps[1]:
            raise UserError(
                f"config.run.profile_steps={self.profile_steps}: give (first, last), 0 <= first < "
                "last, or ()."
            )
