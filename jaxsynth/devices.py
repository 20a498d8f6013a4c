"""The device mesh, how batches and states lie on it, and how processes join into one run.

The mesh has two axes. Batches are split over `data`; the devices along `space` share every patch between them, each
with a slab of it along y, for patches too large for one. States are replicated. The compiler does the rest: it splits
convolutions along y into those of the slabs and has neighbours exchange the rows between them.
"""

import math
import re
from collections.abc import Mapping

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxsynth.errors import InputError

DATA, SPACE = "data", "space"
# How long a process may be silent before the others give up, and how long one that ends waits for them.
HEARTBEAT_S = 60
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# What `join` reads beside what jax finds by itself.
ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def make_mesh(devices: list | None = None, space: int = 1) -> Mesh:
    """A mesh over `devices` (default: all of this run's), axes `data` and `space`, the latter of size `space`.

    Raises:
      InputError: the devices are no multiple of `space`.
    """
    devices = jax.devices() if devices is None else devices
    if space < 1 or len(devices) % space:
        raise InputError(f"space: expected a divisor of {len(devices)}, the devices; got {space}")
    # make_mesh would make Explicit axes by default; Auto leaves placement to the compiler.
    kinds = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((len(devices) // space, space), (DATA, SPACE), axis_types=kinds, devices=devices)


def split(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the leading axis over `data`."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def split_space(mesh: Mesh, ndim: int) -> NamedSharding:
    """Sharding of a batch [B, *S, C] with `ndim` space axes: B over `data`, y (the last but one of S) over `space`."""
    return NamedSharding(mesh, PartitionSpec(DATA, *[None] * (ndim - 2), SPACE))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding that puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def mesh_for(batch_size: int, accumulate: int = 1, space: int = 1) -> Mesh:
    """A mesh over as many devices as micro-batches of batch_size / accumulate split over evenly, `space` per patch.

    Raises:
      InputError: batch_size is no positive multiple of accumulate, there are fewer than `space` devices, or devices
        would be left over in a run of several processes.
    """
    if accumulate < 1 or batch_size < 1 or batch_size % accumulate:
        raise InputError(f"data.batch_size={batch_size} must be a positive multiple of optim.accumulate={accumulate}")
    devices = jax.devices()
    if not 1 <= space <= len(devices):
        raise InputError(f"parallel.space must lie in 1..{len(devices)}, the number of devices; got {space}")
    used = space * math.gcd(len(devices) // space, batch_size // accumulate)
    if used < len(devices) and jax.process_count() > 1:  # some process would have no part in the work
        raise InputError(
            f"data.batch_size={batch_size} in optim.accumulate={accumulate} micro-batches with "
            f"parallel.space={space} occupies {used} of {len(devices)} devices; several processes need it to fill all"
        )
    return make_mesh(devices[:used], space)


def join(environment: Mapping[str, str]) -> None:
    """Joins the processes of a run: `jax.devices()` are those of all of them afterwards. Before any other use of jax.

    On SLURM, Open MPI, Kubernetes and TPU pods jax finds the others by itself; elsewhere `environment` says where
    process 0 listens, how many there are and which this is (ADDRESS, COUNT, NUMBER). A process that ends without a word
    ends the others after HEARTBEAT_S, at once where the network notices.

    Raises:
      InputError: nothing tells who the others are, or they cannot be reached.
    """
    given = {name: environment[name] for name in (COUNT, NUMBER) if environment.get(name)}
    for name, value in given.items():
        if not value.isdigit():
            raise InputError(f"{name}: expected a whole number, got {value!r}")
    address = environment.get(ADDRESS)
    if address and not re.search(r":\d+$", address):
        raise InputError(f"{ADDRESS}: expected HOST:PORT, got {address!r}")
    many, number = (int(given[name]) if name in given else None for name in (COUNT, NUMBER))
    try:
        jax.distributed.initialize(
            address or None,
            many,
            number,
            # All three given: one process has all the devices that it sees, as without them.
            cluster_detection_method="deactivate" if address and len(given) == 2 else None,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=HEARTBEAT_S,
        )
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        raise InputError(
            f"--distributed: cannot join the other processes ({str(error).splitlines()[0]}); start it by srun, mpirun "
            f"or on a TPU pod, or set {ADDRESS}=HOST:PORT of process 0, {COUNT} and {NUMBER}"
        ) from error


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process of the run; all of them must ask."""
    return bool(multihost_utils.process_allgather(flag).any()) if jax.process_count() > 1 else flag


def communication(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of the collectives' results per device in one run of a program, by those of COLLECTIVES that occur.

    Summed over the program's text; inside a loop they count once. What passes the wires is about this much, twice of
    an all-reduce.
    """
    total: dict[str, int] = {}
    pattern = rf"= (\(.*?\)|\S+) ({'|'.join(COLLECTIVES)})(-start)?\("
    for shapes, name, started in re.findall(pattern, compiled.as_text()):
        shapes = shapes.replace("u32[]", "") if started else shapes  # counters that a permutation carries
        sizes = [_num_bytes(kind, size) for kind, size in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shapes)]
        if started and name != "all-reduce":  # operands, then results
            sizes = sizes[len(sizes) // 2 :]
        total[name] = total.get(name, 0) + sum(sizes)
    return total


def _num_bytes(kind: str, size: str) -> int:
    """The bytes of an array of XLA's type `kind` (f32, bf16, pred, u8, ...) and shape `size`, "8,16"."""
    bits = int((re.search(r"\d+", kind) or ["8"])[0])
    return math.prod(int(n) for n in size.split(",") if n) * bits // 8
