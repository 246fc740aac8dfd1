"""Processes, the device mesh and array placement: data parallelism in the global view.

One mesh axis, "data", over all devices of all hosts. Arrays are global; each host holds its rows.
There are no collectives by name anywhere: the compiler inserts them from the shardings.
"""

import socket
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from atss_jax.errors import UserError

AXIS = "data"
"""The only mesh axis."""

HEARTBEAT_SECONDS = 120
"""JAX aborts all processes so long after the last sign of life of one, which JAX gives at half of
it: as early as half of it after a loss. `peers` must have ended them before, with its own code."""


def initialize(
    *, mode: str, coordinator: str, num_processes: int, process_id: int, timeout: int
) -> None:
    """Joins the job's processes; a no-op for mode "none" or when already joined.

    Args:
      mode: "none" (one process), "auto" (JAX reads the cluster: Cloud TPU, SLURM, Open MPI,
        Kubernetes) or "address" (`coordinator` and the two numbers).
      coordinator: host:port of process 0.
      num_processes: processes of the job.
      process_id: this one, from 0.
      timeout: seconds to wait for all of them.

    Raises:
      ValueError: unknown mode, or an address that is not complete.
      RuntimeError: the processes did not meet; says which address, count and timeout.
    """
    if mode == "none" or jax.distributed.is_initialized():
        return
    if mode == "auto":
        arguments: dict[str, Any] = {}
    elif mode == "address":
        if not coordinator or num_processes < 1 or not 0 <= process_id < num_processes:
            raise UserError(
                f"run.coordinator={coordinator!r}, run.num_processes={num_processes}, "
                f"run.process_id={process_id}: give host:port of process 0, the number of "
                "processes, and this one's number from 0."
            )
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    else:
        raise UserError(f'run.distributed={mode!r}: use "none", "auto" or "address".')
    if mode == "address" and process_id == 0:
        _check_port(coordinator)
    try:
        jax.distributed.initialize(
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            **arguments,
        )
    except Exception as error:
        where = f"{coordinator} as process {process_id} of {num_processes}"
        raise RuntimeError(
            f"could not join the job at {where if mode == 'address' else 'the cluster address'} "
            f"within {timeout} s (run.init_timeout). Check that all processes run, that the port "
            f"is open, and that they agree on the address. JAX says: {error}"
        ) from error


def _check_port(coordinator: str) -> None:
    """Raises UserError if the port is taken: JAX would end with a crash."""
    port = coordinator.rpartition(":")[2]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(
                f"run.coordinator={coordinator!r}: process 0 cannot listen at port {port!r} "
                f"({error}). Use a free port, the same for all processes."
            ) from error


def make_mesh() -> Mesh:
    """A mesh of one axis, "data", over all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def platform_of(mesh: Mesh | None) -> str:
    """Platform of a mesh, attached or not, such as "tpu" or "cpu"; None is the default one."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def check_batch(global_batch: int, mesh: Mesh, *, accumulate: int = 1) -> None:
    """Raises unless the batch divides over devices, processes and micro-batches."""
    parts = mesh.size * accumulate
    if global_batch % parts:
        raise UserError(
            f"a global batch of {global_batch} images does not divide over {mesh.size} devices "
            f"x {accumulate} micro-batches. Use a multiple of {parts}, as in "
            f"config.data.global_batch={parts}; the learning rate follows."
        )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This host's rows (a pytree of NumPy arrays) as global arrays over the mesh.

    Asynchronous: the copy to the devices overlaps with what they compute.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch
    )


def state_shardings(state: Any, mesh: Mesh | AbstractMesh, *, fsdp: bool) -> Any:
    """Shardings of a training state: replicated, or each large array split over the devices.

    With `fsdp` an array is split along its largest axis that the number of devices divides
    (ZeRO by annotations: a step gathers the parameters once, see `gather`, and scatters their
    gradients); small or indivisible arrays stay whole.

    Args:
      state: pytree of arrays or `jax.ShapeDtypeStruct`s.
      mesh: the mesh, or one without devices, where shapes alone are asked for.
      fsdp: whether to split.
    """

    def sharding(leaf):
        axes = [i for i, n in enumerate(leaf.shape) if n % mesh.size == 0]
        if not fsdp or not axes or np.prod(leaf.shape) < 2**12:
            return replicated(mesh)
        largest = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*(None,) * largest, AXIS))

    return jax.tree.map(sharding, state)


def gather(params: Any, shardings: Any, dtype: Any) -> Any:
    """Parameters to compute with: arrays that are split are brought together, once per call.

    Left to itself, a compiler gathers kernels again for the backward pass, and some split
    convolutions by channels: more than twice the bytes (docs/performance.md). A step calls this
    for each micro-batch, so `optim.accumulate` multiplies the bytes.

    Args:
      params: tree of float32 arrays.
      shardings: of each, or None: nothing is split.
      dtype: what the network computes in. Split arrays travel in it; all of them are kernels,
        which the network brings to that type anyway.
    """
    if shardings is None:
        return params

    def whole(x: Any, sharding: NamedSharding) -> Any:
        if sharding.is_fully_replicated:
            return x
        narrow = jax.lax.with_sharding_constraint(x.astype(dtype), sharding)
        narrow = jax.lax.optimization_barrier(narrow)  # else some travel as float32
        return jax.lax.with_sharding_constraint(narrow, replicated(sharding.mesh))

    return jax.tree.map(whole, params, shardings)


def broadcast_text(text: str) -> str:
    """The text that process 0 holds, on every process."""
    if jax.process_count() == 1:
        return text
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        padded[:] = data
    return (
        np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes().decode()
    )


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
