"""Samplers: from a noised sketch back to an image. They know the network only as denoise(x, t, cond).

Every sampler here is one linear recursion over network evaluations k = 0, 1, ...:

    x0_k = clip(x0_from_xt[k] x + x0_from_prediction[k] denoise(x, t[k], cond))
    x   <- from_x[k] x + from_x0[k] x0_k + from_previous[k] x0_(k-1) + std[k] noise_k

and differs by its plan, the tables of coefficients, made on the host in float64. `sample` runs any plan; as a step is
elementwise but for the network, a plan can also be run in pieces, slab by slab, or in tiles.

One volume at a time, [*S, C]; callers tile inside `denoise`. With a = sqrt(alpha_bar), s = sqrt(1 - alpha_bar) at the
index now, an and sn at the next (1 and 0 after the last), h = log(an / sn) - log(a / s).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxsynth import keys
from jaxsynth.diffusion.gaussian import Denoise, noise_to, x0_tables
from jaxsynth.errors import InputError
from jaxsynth.records import Schedule

VARIANCES = ("fixed_large", "fixed_small")
SPACINGS = ("uniform", "trailing", "log_snr", "karras")
# Sampler -> the spacing that best keeps the spread of Gaussian data over 5 to 50 evaluations; consistency: equal jumps.
SAMPLERS = {
    "ddpm": "trailing",
    "ddim": "karras",
    "dpmpp": "log_snr",
    "dpmpp_sde": "log_snr",
    "heun": "karras",
    "consistency": "trailing",
}
# The cheapest that was within the noise of 400 steps of ddpm on three real sets (README, "Measured").
DEFAULT_SAMPLER = "dpmpp_sde"
DEFAULT_EVALUATIONS = 5
KARRAS_RHO = 7.0


@struct.dataclass
class Plan:
    """A sampler's coefficients for K network evaluations, the noisiest first; see the module.

    Attributes:
      t: int32 [K], the index the network is told.
      x0_from_xt, x0_from_prediction, from_x, from_x0, from_previous, std: float32 [K].
    """

    t: jax.Array
    x0_from_xt: jax.Array
    x0_from_prediction: jax.Array
    from_x: jax.Array
    from_x0: jax.Array
    from_previous: jax.Array
    std: jax.Array

    @property
    def num_evaluations(self) -> int:
        """K."""
        return self.t.shape[0]


def make_plan(
    sampler: str,
    schedule: Schedule,
    t_start: int,
    num_evaluations: int | None = None,
    *,
    prediction: str = "noise",
    spacing: str | None = None,
    variance: str = "fixed_large",
    eta: float = 0.0,
) -> Plan:
    """The plan of a sampler from `t_start` to the image.

    - `ddpm`: ancestral sampling (paper 001, eq. 6-7). With fewer evaluations than t_start the process is respaced:
      betas are those between the indices visited, as the one-step posterior is wrong over a longer stride (a trap of
      the published programs). `variance`: fixed_large (sigma^2 = beta, the published choice, exact for data of unit
      variance) or fixed_small (the posterior's own, exact for data without any). Recommended from 50 evaluations on.
    - `ddim` (Song et al. 2021a): eta = 0 is the first-order solver of the probability flow, eta = 1 is ddpm with
      fixed_small. Few evaluations lose spread, 12 % of it at ten: recommended from 50 on.
    - `dpmpp`: DPM-Solver++ 2M (Lu et al. 2022), deterministic, second order; recommended from 5 evaluations on.
    - `dpmpp_sde`: its stochastic form; recommended from 5 on, where up to 11 % of the spread is lost, from 10 on 3 %.
    - `heun` (Karras et al. 2022): second order, two evaluations per step but the last (and the first, where the number
      is even); recommended from 20 on.
    - `consistency` (Song et al. 2023): jumps to the image and noises it again; for distilled models, 1 to 4.

    Args:
      schedule: the forward process, T steps.
      t_start: 1..T; the first index visited is t_start - 1.
      num_evaluations: of the network, 1..t_start; default t_start for ddpm, 2 for consistency, DEFAULT_EVALUATIONS
        for others.
      prediction: what the network predicts, see `gaussian`.
      spacing: of the indices visited: uniform in t, in log_snr, or karras (the 7th root of the noise-to-signal ratio),
        index 0 being the last; or trailing: uniform, with as long a step from the last to the image as the others.
        Default: the sampler's in SAMPLERS.

    Raises:
      InputError: an argument out of range.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"unknown sampler {sampler!r}: expected one of {', '.join(SAMPLERS)}")
    spacing = SAMPLERS[sampler] if spacing is None else spacing
    if spacing not in SPACINGS:
        raise InputError(f"unknown spacing {spacing!r}: expected one of {', '.join(SPACINGS)}")
    if variance not in VARIANCES:
        raise InputError(f"unknown variance {variance!r}: expected one of {', '.join(VARIANCES)}")
    if not 0 <= eta <= 1:
        raise InputError(f"eta must lie in 0..1, got {eta}")
    check_t_start(t_start, len(schedule.betas))
    if num_evaluations is None:
        usual = {"ddpm": t_start, "consistency": 2}.get(sampler, DEFAULT_EVALUATIONS)
        num_evaluations = min(usual, t_start)
    if not 1 <= num_evaluations <= t_start:
        raise InputError(f"num_evaluations must lie in 1..t_start={t_start}, got {num_evaluations}")
    # Heun visits every index but the first and last twice.
    visits = num_evaluations // 2 + 1 if sampler == "heun" else num_evaluations
    t = _times(schedule, t_start, visits, spacing)
    if sampler == "ddpm":
        rows = _ddpm(schedule, t, variance)
    elif sampler == "ddim":
        rows = _ddim(schedule, t, eta)
    elif sampler == "heun":
        rows = _heun(schedule, t, num_evaluations)
    elif sampler == "consistency":
        rows = _consistency(schedule, t)
    else:
        rows = _dpmpp(schedule, t, stochastic=sampler == "dpmpp_sde")
    t, from_x, from_x0, from_previous, std = (np.array(column) for column in zip(*rows, strict=True))
    from_xt, from_prediction = (table[t] for table in x0_tables(schedule, prediction))
    tables = (from_xt, from_prediction, from_x, from_x0, from_previous, std)
    return Plan(jnp.asarray(t, jnp.int32), *(jnp.asarray(table, jnp.float32) for table in tables))


def check_t_start(t_start: int, num_timesteps: int) -> None:
    """Raises InputError unless 1 <= t_start <= num_timesteps."""
    if not 1 <= t_start <= num_timesteps:
        raise InputError(f"t_start must lie in 1..{num_timesteps} for this model, got {t_start}")


def _times(schedule: Schedule, t_start: int, count: int, spacing: str) -> np.ndarray:
    """Indices to visit, falling from t_start - 1. int [count]."""
    if spacing == "trailing":
        return np.round(np.linspace(t_start, 0, count + 1)[:-1]).astype(int) - 1
    if spacing == "uniform" or count == 1:
        return np.round(np.linspace(t_start - 1, 0, count)).astype(int)
    ratio = np.sqrt(1 / schedule.alphas_bar[:t_start] - 1)  # noise over signal, rising with t
    warp = np.log if spacing == "log_snr" else lambda x: x ** (1 / KARRAS_RHO)
    wanted = np.linspace(warp(ratio[-1]), warp(ratio[0]), count)
    t = np.round(np.interp(wanted, warp(ratio), np.arange(t_start))).astype(int)
    # Rounding must not visit an index twice: there are count - 1 - i to come after number i, and i went before.
    t = np.maximum(t, np.arange(count)[::-1])
    return np.minimum.accumulate(t + np.arange(count)) - np.arange(count)


def _levels(schedule: Schedule, t: np.ndarray) -> list[tuple[float, float, float, float]]:
    """(a, s, an, sn) of every index visited."""
    bar = schedule.alphas_bar[t]
    signal, noise = np.append(np.sqrt(bar), 1.0), np.append(np.sqrt(1 - bar), 0.0)
    return list(zip(signal[:-1], noise[:-1], signal[1:], noise[1:], strict=True))


def _ddpm(schedule, t, variance):
    rows = []
    for index, (a, s, an, sn) in zip(t, _levels(schedule, t), strict=True):
        beta = 1 - (a / an) ** 2
        spread = beta if variance == "fixed_large" else beta * (sn / s) ** 2
        rows.append((index, a / an * (sn / s) ** 2, an * beta / s**2, 0.0, np.sqrt(spread) if sn else 0.0))
    return rows


def _ddim(schedule, t, eta):
    rows = []
    for index, (a, s, an, sn) in zip(t, _levels(schedule, t), strict=True):
        std = eta * sn / s * np.sqrt(1 - (a / an) ** 2)
        from_x = np.sqrt(sn**2 - std**2) / s
        rows.append((index, from_x, an - from_x * a, 0.0, std))
    return rows


def _dpmpp(schedule, t, *, stochastic):
    """x <- sn/s x + an (1 - e^-h) D, with D = x0_k + h / (2 h_before) (x0_k - x0_(k-1)); the stochastic form takes
    e^-2h for e^-h and replaces what noise that loses (Lu et al. 2022, algorithm 2 and appendix)."""
    rows, before = [], None
    for index, (a, s, an, sn) in zip(t, _levels(schedule, t), strict=True):
        if not sn:  # h is infinite: all that is left is the image
            rows.append((index, 0.0, 1.0, 0.0, 0.0))
            continue
        h = np.log(an / sn) - np.log(a / s)
        kept = np.exp(-2 * h) if stochastic else np.exp(-h)
        ahead = h / (2 * before) if before else 0.0
        gain = an * (1 - kept)
        from_x = sn / s * np.exp(-h) if stochastic else sn / s
        rows.append((index, from_x, gain * (1 + ahead), -gain * ahead, sn * np.sqrt(1 - kept) if stochastic else 0.0))
        before = h
    return rows


def _heun(schedule, t, num_evaluations):
    """Euler's step is ddim's. With r the noise-to-signal ratio, the correction at the next index adds half the
    difference of the slopes (x / a - x0) / r: an (r_now / r_next - 1) / 2 (x0_next - x0_now)."""
    rows = []
    for step, (a, s, an, sn) in enumerate(_levels(schedule, t)):
        rows.append((t[step], sn / s, an - a * sn / s, 0.0, 0.0))
        if sn and (step or num_evaluations % 2):
            change = an * ((s / a) / (sn / an) - 1) / 2
            rows.append((t[step + 1], 1.0, change, -change, 0.0))
    return rows


def _consistency(schedule, t):
    return [(index, 0.0, an, 0.0, sn) for index, (_, _, an, sn) in zip(t, _levels(schedule, t), strict=True)]


def rows_of_noise(key: jax.Array, first: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal noise for rows first, first + 1, ... of a volume's first axis: float32 [*shape].

    Every row has a key of its own, so any slab gets the noise that the whole volume would.
    """
    rows = first + jnp.arange(shape[0])
    return jax.vmap(lambda row: jax.random.normal(keys.stream(key, row), shape[1:], jnp.float32))(rows)


def step_noise(key: jax.Array, k: int | jax.Array, first: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The noise that `sample` adds after evaluation k, as rows of the volume with this key."""
    return rows_of_noise(keys.stream(key, "step", k), first, shape)


def start_noise(key: jax.Array, first: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The noise that `start` adds, likewise."""
    return rows_of_noise(keys.stream(key, "start"), first, shape)


def start(key: jax.Array, x0: jax.Array, t_start: int, schedule: Schedule) -> jax.Array:
    """The sketch noised to t_start, that is at index t_start - 1.

    Args:
      key: the volume's key.
      x0: float32 [*S, C] in [-1, 1].

    Raises:
      InputError: t_start outside 1..T.
    """
    check_t_start(t_start, len(schedule.betas))
    return noise_to(x0, jnp.asarray(t_start - 1), start_noise(key, 0, x0.shape), schedule)


def estimate(plan: Plan, k: int | jax.Array, x: jax.Array, predicted: jax.Array, clip: bool = True) -> jax.Array:
    """x0_k, from the state and the network's prediction."""
    x0 = plan.x0_from_xt[k] * x + plan.x0_from_prediction[k] * predicted
    return jnp.clip(x0, -1.0, 1.0) if clip else x0


def update(plan: Plan, k: int | jax.Array, x, x0, previous, noise) -> jax.Array:
    """The state after evaluation k, from that before and x0_k, x0_(k-1) and noise, all of one shape."""
    return plan.from_x[k] * x + plan.from_x0[k] * x0 + plan.from_previous[k] * previous + plan.std[k] * noise


def run(
    denoise: Denoise,
    key: jax.Array,
    state: tuple[jax.Array, jax.Array],
    plan: Plan,
    cond: jax.Array | None = None,
    *,
    clip: bool = True,
    first: int | jax.Array = 0,
    last: int | jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs evaluations first..last-1 of `plan` on one volume.

    The noise of evaluation k depends on `key` and k alone, so pieces, in any tiling, give the same volume.

    Args:
      denoise: (x, t: int32 [], cond) -> prediction, the shape of x.
      key: the volume's key.
      state: (x, x0_(first-1)), float32 [*S, C] each; the second is not used before the second evaluation.
      clip: whether x0_k is clipped to [-1, 1] before anything is formed from it.
      first, last: the piece to run; may be traced.

    Returns:
      The state after evaluation last - 1; its first is the image where last is K.
    """

    def step(k, state):
        x, previous = state
        x0 = estimate(plan, k, x, denoise(x, plan.t[k], cond), clip)
        # Deterministic plans spare themselves the draws.
        noise = jax.lax.cond(
            plan.std[k] > 0, lambda: step_noise(key, k, 0, x.shape), lambda: jnp.zeros(x.shape, jnp.float32)
        )
        return update(plan, k, x, x0, previous, noise), x0

    return jax.lax.fori_loop(first, plan.num_evaluations if last is None else last, step, state)


def sample(
    denoise: Denoise, key: jax.Array, x: jax.Array, plan: Plan, cond: jax.Array | None = None, *, clip: bool = True
) -> jax.Array:
    """The image that `plan` makes of the noised sketch x, float32 [*S, C]; arguments as in `run`."""
    return run(denoise, key, (x, jnp.zeros_like(x)), plan, cond, clip=clip)[0]
