"""The optimisers that every task shares, and the moving average of parameters."""

import jax
import jax.numpy as jnp
import optax

from jaxsynth.errors import InputError


def make_optimiser(
    name: str,
    learning_rate: float,
    *,
    num_steps: int,
    schedule: str = "constant",
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
) -> optax.GradientTransformation:
    """An optimiser with its learning-rate schedule and clipping.

    Args:
      name: radam or adamw.
      num_steps: steps of the whole run, at whose end the cosine schedule reaches zero.
      schedule: constant or cosine, after `warmup_steps` steps of linear increase.
      weight_decay: of adamw.
      clip_norm: largest norm of the whole gradient; 0 leaves it alone.
      beta1, beta2: how slowly the moving averages of the gradient and of its square forget, in [0, 1).

    Raises:
      InputError: unknown optimiser or schedule, or betas out of range.
    """
    for which, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise InputError(f"optim.{which} must lie in [0, 1), got {beta}")
    if schedule == "constant":
        rate = optax.constant_schedule(learning_rate)
    elif schedule == "cosine":
        rate = optax.cosine_decay_schedule(learning_rate, max(num_steps - warmup_steps, 1))
    else:
        raise InputError(f"unknown optim.schedule {schedule!r}: expected constant or cosine")
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        rate = optax.join_schedules([warmup, rate], [warmup_steps])
    if name == "radam":
        optimiser = optax.radam(rate, b1=beta1, b2=beta2)
    elif name == "adamw":
        optimiser = optax.adamw(rate, b1=beta1, b2=beta2, weight_decay=weight_decay)
    else:
        raise InputError(f"unknown optim.name {name!r}: expected radam or adamw")
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimiser) if clip_norm > 0 else optimiser


def update_ema(average, params, step: jax.Array, decay: float):
    """The moving average after update number `step` (from 0); the first updates count for more, so that the start
    is forgotten: the decay in force is min(decay, (1 + step) / (10 + step))."""
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, average, params)
