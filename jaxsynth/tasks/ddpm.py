"""Denoising diffusion on unlabelled patches: the network learns to predict the noise (paper 001, eq. 4).

A task is five functions: build, init, step, validate, preview.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxsynth import keys
from jaxsynth.diffusion import gaussian, samplers
from jaxsynth.diffusion.schedule import make_schedule
from jaxsynth.errors import InputError
from jaxsynth.nn.unet import UNet
from jaxsynth.optimiser import make_optimiser, update_ema
from jaxsynth.records import Schedule, TrainState

PREVIEW_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Parts:
    """What stays fixed while training."""

    net: UNet
    schedule: Schedule
    optimiser: optax.GradientTransformation
    t_max: int
    noise_channel: bool
    accumulate: int
    ema_decay: float


def build(config: ConfigDict) -> Parts:
    """Network, schedule and optimiser of a configuration.

    Raises:
      InputError: a value that makes no sense.
    """
    schedule = make_schedule(
        config.diffusion.schedule, config.diffusion.num_timesteps, beta_min=config.diffusion.beta_min
    )
    if not 1 <= config.diffusion.t_max <= config.diffusion.num_timesteps:
        raise InputError(
            f"diffusion.t_max must lie in 1..num_timesteps={config.diffusion.num_timesteps}, "
            f"got {config.diffusion.t_max}"
        )
    net = UNet(
        features=config.model.features,
        norm=config.model.norm,
        dtype=jnp.bfloat16 if config.model.bfloat16 else jnp.float32,
        remat=config.model.remat,
    )
    return Parts(
        net=net,
        schedule=schedule,
        optimiser=make_optimiser(
            config.optim.name,
            config.optim.learning_rate,
            num_steps=config.train.num_steps,
            schedule=config.optim.schedule,
            warmup_steps=config.optim.warmup_steps,
            weight_decay=config.optim.weight_decay,
            clip_norm=config.optim.clip_norm,
        ),
        t_max=config.diffusion.t_max,
        noise_channel=config.model.noise_channel,
        accumulate=config.optim.accumulate,
        ema_decay=config.optim.ema_decay,
    )


def init(parts: Parts, key: jax.Array, batch_shape: tuple[int, ...]) -> TrainState:
    """The state before the first step.

    Args:
      batch_shape: (B, *patch, 1).
    """
    x = jnp.zeros((1, *batch_shape[1:-1], batch_shape[-1] + parts.noise_channel))
    params = parts.net.init(keys.stream(key, "params"), x, jnp.zeros((1,), jnp.int32))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, ema_params=params, opt_state=parts.optimiser.init(params)
    )


def denoiser(parts: Parts, params) -> gaussian.Denoise:
    """The network as denoise(x: [B, *S, 1], t: int32 [B], cond: [B, *S, K] or None) -> noise [B, *S, 1]."""

    def denoise(x, t, cond):
        inputs = x if cond is None else jnp.concatenate([x, cond], axis=-1)
        return parts.net.apply({"params": params}, inputs, t)

    return denoise


def condition(parts: Parts, key: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
    """The network's second input for volumes of `shape` [*S, 1]: noise drawn once, or None where it has none."""
    return jax.random.normal(keys.stream(key, "condition"), shape) if parts.noise_channel else None


def step(parts: Parts, state: TrainState, batch: jax.Array, key: jax.Array) -> tuple[TrainState, dict]:
    """One update.

    Args:
      batch: float32 [B, *patch, 1] in [-1, 1].
      key: the run's key; the draws depend on it and on state.step.

    Returns:
      The next state and scalars `loss`, `grad_norm`.
    """
    key = keys.stream(key, "step", state.step)
    t = jax.random.randint(keys.stream(key, "t"), batch.shape[:1], 0, parts.t_max)
    noise = jax.random.normal(keys.stream(key, "noise"), batch.shape)
    cond = condition(parts, key, batch.shape)

    def loss(params, batch, t, noise, cond):
        return gaussian.noise_loss(denoiser(parts, params), batch, t, noise, parts.schedule, cond).mean()

    def split(x):
        # Example i goes to micro-batch i mod n: every device keeps its own share of each.
        return jnp.moveaxis(x.reshape((-1, parts.accumulate, *x.shape[1:])), 1, 0)

    if parts.accumulate == 1:
        value, grads = jax.value_and_grad(loss)(state.params, batch, t, noise, cond)
    else:

        def add(total, micro):
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(state.params, *micro)), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
        # On CPU the gradients of convolutions are eight times slower inside a loop.
        unroll = jax.default_backend() == "cpu"
        total, _ = jax.lax.scan(add, zero, jax.tree.map(split, (batch, t, noise, cond)), unroll=unroll)
        value, grads = jax.tree.map(lambda x: x / parts.accumulate, total)

    updates, opt_state = parts.optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = update_ema(state.ema_params, params, state.step, parts.ema_decay)
    state = TrainState(step=state.step + 1, params=params, ema_params=ema_params, opt_state=opt_state)
    return state, {"loss": value, "grad_norm": optax.tree.norm(grads)}


def validate(parts: Parts, state: TrainState, batch: jax.Array, key: jax.Array) -> dict:
    """The denoising loss of the averaged parameters at fixed t and noise.

    Returns:
      Scalars `loss_t{i}` at a tenth, four tenths and nine tenths of t_max, and `loss`, their mean.
    """
    noise = jax.random.normal(keys.stream(key, "validate"), batch.shape)
    cond = condition(parts, key, batch.shape)
    scalars = {}
    for t in sorted({int(share * (parts.t_max - 1)) for share in (0.1, 0.4, 0.9)}):
        at = jnp.full(batch.shape[:1], t, jnp.int32)
        losses = gaussian.noise_loss(denoiser(parts, state.ema_params), batch, at, noise, parts.schedule, cond)
        scalars[f"loss_t{t}"] = losses.mean()
    return {"loss": sum(scalars.values()) / len(scalars)} | scalars


def preview(parts: Parts, state: TrainState, batch: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """A real patch, its one-step estimate from t_max / 2, and a sample started from its heavily noised self.

    Returns:
      title -> float32 [*patch] in about [-1, 1].
    """
    real = batch[0]
    key = keys.stream(key, "preview")
    cond = condition(parts, key, real.shape)
    denoise = single(denoiser(parts, state.ema_params))
    half = max(parts.t_max // 2, 1)
    noised = samplers.start(key, real, half, parts.schedule)
    at = jnp.asarray(half - 1)
    estimate = gaussian.predict_x0(noised, at, denoise(noised, at, cond), parts.schedule)
    plan = samplers.ddpm_plan(parts.schedule, parts.t_max, num_steps=min(PREVIEW_STEPS, parts.t_max))
    far = samplers.start(key, real, parts.t_max, parts.schedule)
    sample = samplers.ddpm(denoise, key, far, plan, cond)
    volumes = {
        "real": real,
        f"noised to {half}": noised,
        "one-step estimate": estimate,
        f"sample from {parts.t_max} in {plan.t.shape[0]} steps": sample,
    }
    return {title: volume[..., 0] for title, volume in volumes.items()}


def single(denoise: gaussian.Denoise) -> Callable:
    """A batched denoiser as one of a single volume [*S, C] with t: int32 []."""
    return lambda x, t, cond: denoise(x[None], t[None], None if cond is None else cond[None])[0]
