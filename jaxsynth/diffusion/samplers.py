"""Samplers: from a noised sketch back to an image. They know the network only as denoise(x, t, cond).

One volume at a time, [*S, C]; callers `vmap` or tile inside `denoise`. A sampler is a plan (coefficients per step,
made on the host in float64) and a loop over it, so that a command can run the loop in pieces and report progress.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxsynth import keys
from jaxsynth.diffusion.gaussian import Denoise, noise_to
from jaxsynth.errors import InputError
from jaxsynth.records import Schedule

VARIANCES = ("fixed_large", "fixed_small")


@struct.dataclass
class Plan:
    """Coefficients of K ancestral steps, the noisiest first.

    Attributes:
      t: int32 [K], the index the network is told.
      x0_from_xt, x0_from_noise: float32 [K], x0 = x0_from_xt x_t - x0_from_noise noise.
      mean_from_x0, mean_from_xt: float32 [K], the posterior mean.
      std: float32 [K], standard deviation of the noise added; 0 in the last step.
    """

    t: jax.Array
    x0_from_xt: jax.Array
    x0_from_noise: jax.Array
    mean_from_x0: jax.Array
    mean_from_xt: jax.Array
    std: jax.Array


def check_t_start(t_start: int, num_timesteps: int) -> None:
    """Raises InputError unless 1 <= t_start <= num_timesteps."""
    if not 1 <= t_start <= num_timesteps:
        raise InputError(f"t_start must lie in 1..{num_timesteps} for this model, got {t_start}")


def ddpm_plan(schedule: Schedule, t_start: int, *, num_steps: int | None = None, variance: str = "fixed_large") -> Plan:
    """Plan of the ancestral (DDPM) sampler from `t_start` to the image (paper 001, eq. 6-7).

    With fewer steps than `t_start` the process is respaced: betas are those between the indices visited, since the
    one-step posterior is wrong over a longer stride.

    Args:
      schedule: the forward process, T steps.
      t_start: 1..T; the first index reversed is t_start - 1, the last is 0.
      num_steps: network evaluations, 1..t_start; default all of them.
      variance: fixed_large (sigma^2 = beta, the published choice) or fixed_small (the posterior's own). The first is
        exact for data of unit variance, the second for data without any.

    Raises:
      InputError: t_start, num_steps or variance out of range.
    """
    check_t_start(t_start, len(schedule.betas))
    num_steps = t_start if num_steps is None else num_steps
    if not 1 <= num_steps <= t_start:
        raise InputError(f"num_steps must lie in 1..t_start={t_start}, got {num_steps}")
    if variance not in VARIANCES:
        raise InputError(f"unknown variance {variance!r}: expected one of {', '.join(VARIANCES)}")
    # From the top down, so that a single step starts at t_start - 1; from two steps on, index 0 is visited last.
    t = np.round(np.linspace(t_start - 1, 0, num_steps)).astype(int)
    now = schedule.alphas_bar[t]
    following = np.append(schedule.alphas_bar[t[1:]], 1.0)
    beta = 1 - now / following
    posterior = beta * (1 - following) / (1 - now)
    spread = beta if variance == "fixed_large" else posterior
    spread = np.where(np.arange(num_steps) == num_steps - 1, 0.0, spread)
    tables = {
        "x0_from_xt": np.sqrt(1 / now),
        "x0_from_noise": np.sqrt(1 / now - 1),
        "mean_from_x0": np.sqrt(following) * beta / (1 - now),
        "mean_from_xt": np.sqrt(now / following) * (1 - following) / (1 - now),
        "std": np.sqrt(spread),
    }
    return Plan(t=jnp.asarray(t, jnp.int32), **{k: jnp.asarray(v, jnp.float32) for k, v in tables.items()})


def start(key: jax.Array, sketch: jax.Array, t_start: int, schedule: Schedule) -> jax.Array:
    """The sketch noised to t_start, that is at index t_start - 1.

    Args:
      key: the volume's key.
      sketch: float32 [*S, C] in [-1, 1].

    Raises:
      InputError: t_start outside 1..T.
    """
    check_t_start(t_start, len(schedule.betas))
    noise = jax.random.normal(keys.stream(key, "start"), sketch.shape, jnp.float32)
    return noise_to(sketch, jnp.asarray(t_start - 1), noise, schedule)


def ddpm(
    denoise: Denoise,
    key: jax.Array,
    x: jax.Array,
    plan: Plan,
    cond: jax.Array | None = None,
    *,
    clip: bool = True,
    first: int | jax.Array = 0,
    last: int | jax.Array | None = None,
) -> jax.Array:
    """Runs steps first..last-1 of `plan` on one volume.

    The noise of step k depends on `key` and k alone, so running in pieces, in any tiling, gives the same volume.

    Args:
      denoise: (x, t: int32 [], cond) -> predicted noise, the shape of x.
      key: the volume's key.
      x: float32 [*S, C], the state before step `first`.
      clip: the predicted x0 is clipped to [-1, 1] before the mean is formed from it.
      first, last: the piece to run; may be traced.

    Returns:
      float32 [*S, C], the state after step last - 1; the image where last is the number of steps.
    """

    def step(k, x):
        at = jax.tree.map(lambda table: table[k], plan)
        x0 = at.x0_from_xt * x - at.x0_from_noise * denoise(x, at.t, cond)
        if clip:
            x0 = jnp.clip(x0, -1.0, 1.0)
        noise = jax.random.normal(keys.stream(key, "step", k), x.shape, x.dtype)
        return at.mean_from_x0 * x0 + at.mean_from_xt * x + at.std * noise

    return jax.lax.fori_loop(first, plan.t.shape[0] if last is None else last, step, x)
