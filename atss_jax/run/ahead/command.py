"""`--mode=describe --topology=v5e:2x2`: what a compiler says of a recipe on those devices."""

import math

from etils import epath

from atss_jax.errors import UserError
from atss_jax.run import describe
from atss_jax.run.ahead import figures, programs, report, topology
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import parallel, screen
from atss_jax.runtime.metric_writer import configure_logging


def print_report(config: Recipe, workdir: epath.Path | None, name: str, part: str) -> None:
    """Compiles a recipe's program for its largest bucket and prints the report.

    Args:
      config: the recipe; its global batch is spread over all devices of the topology.
      workdir: of a run, or None.
      name: of the topology; `topology.prepare_environment` has been called with it.
      part: a key of `programs.PROGRAMS`.

    Raises:
      UserError: the topology or the part is wrong, or the batch does not divide over the devices.
    """
    configure_logging()
    programs.find(part)
    if config.data.global_batch == 0:
        raise UserError(
            f"--topology={name} with config.data.global_batch=auto: the memory that it would be "
            "chosen by is not here. Give a number, such as 8 for each device."
        )
    mesh = topology.make_mesh(name)
    parallel.check_batch(config.data.global_batch, mesh, accumulate=config.optim.accumulate)
    config, chosen = describe.in_numbers(config, workdir)
    num_classes, source = describe.count_classes(config, workdir)
    bucket = max(config.data.buckets, key=math.prod)
    case = programs.Case(config, mesh, bucket, config.data.global_batch // mesh.size, num_classes)
    if part in ("train", "predict"):
        screen.say(f"compiling the {part} step for {name}: this takes minutes")
    found = figures.measure(case, name, part)
    screen.show("\n".join([*chosen, f"{num_classes} classes ({source})", report.render(found)]))
