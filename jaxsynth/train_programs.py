"""The compiled programs of a training run: compiled ahead, in the background, and within the device's memory."""

import math

import jax

from jaxsynth import keys

MEMORY_SHARE = 0.9  # of a device's memory that a step may take before it recomputes activations


def trace_init(task, parts, key: jax.Array, batch_shape: tuple[int, ...], replicated) -> jax.stages.Traced:
    """The program that makes the state before the first step, from a key; not compiled yet."""
    # It runs once, and its many random numbers are what XLA on CPU takes longest to optimise.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    options = options if jax.default_backend() == "cpu" else None
    init = jax.jit(lambda k: task.init(parts, k, batch_shape), out_shardings=replicated, compiler_options=options)
    return init.trace(keys.stream(key, "init"))


def compile_step(task, parts, key: jax.Array, state, batch) -> jax.stages.Compiled:
    """The step: (state, batch, key) -> (state, scalars); the given state's memory becomes the new one's.

    Args:
      key: the run's, an argument of the program so that another seed finds it in the compilation cache.
      state, batch: shapes, dtypes and shardings. Other arguments are refused later, so nothing compiles twice.
    """
    everywhere = jax.tree.leaves(state)[0].sharding
    step = jax.jit(
        lambda s, b, k: task.step(parts, s, b, keys.stream(k, "train")), donate_argnums=0, out_shardings=everywhere
    )
    return step.lower(state, batch, key).compile()


def compile_fitting(task, parts, key: jax.Array, state, batch, limit_bytes: float) -> jax.stages.Compiled | None:
    """As `compile_step`, but None where the step needs more memory per device than `limit_bytes`."""
    try:
        step = compile_step(task, parts, key, state, batch)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    return step if memory_needed(step) <= limit_bytes else None


def memory_needed(compiled: jax.stages.Compiled) -> int:
    """Bytes per device that a program takes: arguments, results that do not replace them, and what lies between."""
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def memory_limit() -> float:
    """Bytes of memory that a device of this process has; infinite where it does not say.

    As on CPU, where recomputing would be no help either: XLA finds the values there already and drops it.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", math.inf)


def compile_view(task, parts, key: jax.Array, state, batch, name: str) -> jax.stages.Compiled:
    """The task's `validate` or `preview`: (state, batch, key) -> its results, on every device. Arguments as above."""
    everywhere = jax.tree.leaves(state)[0].sharding
    look = jax.jit(lambda s, b, k: getattr(task, name)(parts, s, b, keys.stream(k, name)), out_shardings=everywhere)
    return look.lower(state, batch, key).compile()
