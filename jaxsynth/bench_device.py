"""How the benchmark times programs, and the two peaks of the device that their speed is held against.

Both peaks are the best of several runs: a square matrix product, and an elementwise x + 1 on an array that no cache
holds, which reads and writes it once.
"""

import contextlib
import functools
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator

from jaxsynth import cli

RATES = ("flops", "flops_per_s", "matmul_peak", "copy_peak", "peak_share", "bytes", "floor_compute_s",
         "floor_memory_s")  # fmt: skip
SECONDS = 5.0  # of measuring, at least three runs
PEAK_SECONDS = 2.0  # likewise, of each peak
MATMUL_SIZE = 2048, 8192  # rows, on a CPU and elsewhere
COPY_BYTES = 2**30, 2**31  # likewise


def device() -> str:
    """The default device, in words; of a CPU the number of cores too."""
    import jax

    kind = jax.devices()[0].device_kind
    return f"{num_cores()} CPU cores ({platform.machine()})" if kind == "cpu" else kind


def num_cores() -> int:
    """CPU cores that this process may use; where the system does not say, as on macOS, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compiled(function: Callable, *arguments, **options) -> tuple[Callable, float]:
    """The program that jit makes of a function, with options of jit, and the seconds that takes."""
    import jax

    began = time.perf_counter()
    program = jax.jit(function, **options).lower(*arguments).compile()
    return program, time.perf_counter() - began


def peak_bytes(program, beside: int = 0) -> int:
    """What the device held at once; where it does not say, what a program needs, and arrays `beside` it."""
    import jax

    reported = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    size = program.memory_analysis()
    needed = size.argument_size_in_bytes + size.output_size_in_bytes + size.temp_size_in_bytes
    return reported or needed - size.alias_size_in_bytes + beside


def times(run: Callable[[], object], seconds: float | None = None) -> Iterator[float]:
    """Seconds of each of at least three runs, for `seconds` in all, by default SECONDS."""
    import jax

    end = time.perf_counter() + (SECONDS if seconds is None else seconds)
    for count in itertools.count():
        if count >= 3 and time.perf_counter() > end:
            return
        began = time.perf_counter()
        jax.block_until_ready(run())
        yield time.perf_counter() - began


def turns(rounds: int, *sides: tuple[Callable, int]) -> list[list[float]]:
    """Seconds of every run of each side: (run, how often a round). In turns, so that other load hits all alike; `run`
    waits for its result."""
    spent = [[] for _ in sides]
    for _ in range(rounds):
        for (run, count), mine in zip(sides, spent, strict=True):
            for _ in range(count):
                began = time.perf_counter()
                run()
                mine.append(time.perf_counter() - began)
    return spent


@contextlib.contextmanager
def traced(folder) -> Iterator[None]:
    """cli.profile, with what it says on stderr: stdout is for rows."""
    with contextlib.redirect_stdout(sys.stderr), cli.profile(folder):
        yield


def matmul() -> dict:
    """The row of a product of two square matrices of random numbers: float32 on a CPU, bfloat16 elsewhere."""
    import jax
    import jax.numpy as jnp

    size, dtype = _by_backend(MATMUL_SIZE), _by_backend((jnp.float32, jnp.bfloat16))
    x, y = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    program, compile_s = compiled(jnp.matmul, x, y)
    program(x, y).block_until_ready()
    spent = list(times(lambda: program(x, y), PEAK_SECONDS))
    row = {"compile_s": compile_s, "median_s": statistics.median(spent), "flops": 2 * size**3}
    name = jnp.dtype(dtype).name
    return row | {"flops_per_s": 2 * size**3 / min(spent), "note": f"{size} x {size}, {name}, rate of the best run"}


def copy() -> dict:
    """The row of x + 1 in place, float32; bytes read and written are counted."""
    import jax.numpy as jnp

    size = _by_backend(COPY_BYTES)
    x = jnp.zeros(size // 4)
    # In place: memory that the system has to find first would be timed with it.
    program, compile_s = compiled(lambda x: x + 1, x, donate_argnums=0)

    def run():
        nonlocal x
        x = program(x)
        return x

    run().block_until_ready()
    spent = list(times(run, PEAK_SECONDS))
    row = {"compile_s": compile_s, "median_s": statistics.median(spent), "bytes": 2 * size}
    note = f"x + 1 on {size / 2**20:g} MiB of float32, rate of the best run"
    return row | {"bytes_per_s": 2 * size / min(spent), "note": note}


@functools.cache
def peaks() -> tuple[float, float]:
    """Operations per second of `matmul` and bytes per second of `copy`, measured once per process."""
    return matmul()["flops_per_s"], copy()["bytes_per_s"]


def rates(flops: float, program, median_s: float) -> dict:
    """RATES of a program that takes median_s for so many operations of direct convolutions, whatever it computes
    instead. `bytes` are those that XLA counts as read and written by the program's operations; caches may save some.
    """
    matmul_peak, copy_peak = peaks()
    moved = (program.cost_analysis() or {}).get("bytes accessed")
    values = flops, flops / median_s, matmul_peak, copy_peak, flops / median_s / matmul_peak, moved
    floors = flops / matmul_peak, moved and moved / copy_peak
    return dict(zip(RATES, (*values, *floors), strict=True))


def on_gpu() -> bool:
    """Whether JAX computes on a GPU."""
    import jax

    return jax.default_backend() == "gpu"


def _by_backend(values: tuple):
    import jax

    return values[0] if jax.default_backend() == "cpu" else values[1]
