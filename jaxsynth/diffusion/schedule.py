"""Forward processes: how much noise is in the image after each of T steps (paper 001, eq. 2, 3 and 8)."""

import numpy as np

from jaxsynth.errors import InputError
from jaxsynth.records import Schedule


def _cosine_betas(num_steps: int) -> np.ndarray:
    """Betas of the cosine schedule (paper 001, eq. 8), offset 0.008."""
    f = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return 1 - f[1:] / f[:-1]


def _ramp(num_steps: int) -> tuple[float, float]:
    """First and last beta of the ramps: 1e-4 and 0.02 at 1000 steps, scaled so that T steps end equally noisy."""
    return 1e-4 * 1000 / num_steps, 0.02 * 1000 / num_steps


def _linear_betas(num_steps: int) -> np.ndarray:
    return np.linspace(*_ramp(num_steps), num_steps)


def _quadratic_betas(num_steps: int) -> np.ndarray:
    low, high = _ramp(num_steps)
    return np.linspace(low**0.5, high**0.5, num_steps) ** 2


def _sigmoid_betas(num_steps: int) -> np.ndarray:
    low, high = _ramp(num_steps)
    return low + (high - low) / (1 + np.exp(-np.linspace(-6, 6, num_steps)))


SCHEDULES = {
    "cosine": _cosine_betas,
    "linear": _linear_betas,
    "quadratic": _quadratic_betas,
    "sigmoid": _sigmoid_betas,
}


def make_schedule(name: str, num_steps: int, *, beta_min: float = 0.0, beta_max: float = 0.9999) -> Schedule:
    """The schedule `name` with `num_steps` steps.

    Args:
      name: cosine (the papers'), linear, quadratic or sigmoid.
      num_steps: T.
      beta_min, beta_max: betas are clipped to this range. The published programs clip from below at 1e-4, which
        changes the first 13 of 1000 cosine steps; give beta_min=1e-4 for their checkpoints.

    Returns:
      Schedule of host arrays in float64, so that 1 - alpha_bar keeps its digits near t = 0; whoever puts the
      derived coefficients on a device rounds them once.

    Raises:
      InputError: unknown name, fewer than two steps, or an impossible range of betas.
    """
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}: expected one of {', '.join(SCHEDULES)}")
    if num_steps < 2:
        raise InputError(f"num_steps must be at least 2, got {num_steps}")
    if not 0 <= beta_min < beta_max < 1:
        raise InputError(f"expected 0 <= beta_min < beta_max < 1, got {beta_min} and {beta_max}")
    betas = np.clip(SCHEDULES[name](num_steps), beta_min, beta_max)
    return Schedule(betas=betas, alphas_bar=np.cumprod(1 - betas))
