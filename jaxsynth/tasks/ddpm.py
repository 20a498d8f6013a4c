"""Denoising diffusion on unlabelled patches: the network learns to predict the noise (paper 001, eq. 4), or the image,
or the mixture v of both.

A task is five functions: build, init, step, validate, preview.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxsynth import keys
from jaxsynth.data import tiles
from jaxsynth.diffusion import gaussian, samplers
from jaxsynth.diffusion.schedule import make_schedule
from jaxsynth.errors import InputError
from jaxsynth.nn.unet import UNet
from jaxsynth.optimiser import make_optimiser, update_ema
from jaxsynth.records import Schedule, TrainState

PREVIEW_EVALUATIONS = 20  # from t_max, farther than samples start
REMAT = ("auto", "always", "never")


@dataclasses.dataclass(frozen=True)
class Parts:
    """What stays fixed while training; `prediction`, `weighting` and `snr_cap` are those of `gaussian.loss`."""

    net: UNet
    schedule: Schedule
    prediction: str
    weighting: str
    snr_cap: float
    optimiser: optax.GradientTransformation
    t_max: int
    noise_channel: bool
    accumulate: int
    ema_decay: float


def build(config: ConfigDict) -> Parts:
    """Network, schedule and optimiser of a configuration, be it of `distill` or of an earlier version.

    With model.remat "auto" the network recomputes nothing: whether it must, the caller finds out.

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
    # Checkpoints of earlier versions have no keys for these three.
    kind = {
        "prediction": config.diffusion.get("prediction", "noise"),
        "weighting": config.diffusion.get("weighting", "none"),
        "snr_cap": config.diffusion.get("snr_cap", 5.0),
    }
    gaussian.loss_weights(schedule, **kind)  # says so where they make no sense
    # Devices that share a patch need convolutions of the plain form, which the compiler splits along y.
    shared = {"direct": True} if config.get("parallel", {}).get("space", 1) > 1 else {}
    net = UNet(
        features=config.model.features,
        norm=config.model.norm,
        dtype=jnp.bfloat16 if config.model.bfloat16 else jnp.float32,
        remat=recomputes(config) == "always",
        **shared,
    )
    return Parts(
        net=net,
        schedule=schedule,
        **kind,
        optimiser=optimiser_of(config),
        t_max=config.diffusion.t_max,
        noise_channel=config.model.noise_channel,
        accumulate=config.optim.accumulate,
        ema_decay=config.optim.ema_decay,
    )


def optimiser_of(config: ConfigDict) -> optax.GradientTransformation:
    """The optimiser of a configuration's section `optim`.

    Raises:
      InputError: a value that makes no sense.
    """
    return make_optimiser(
        config.optim.name,
        config.optim.learning_rate,
        num_steps=config.train.num_steps,
        schedule=config.optim.schedule,
        warmup_steps=config.optim.warmup_steps,
        weight_decay=config.optim.weight_decay,
        clip_norm=config.optim.clip_norm,
        **{name: config.optim[name] for name in ("beta1", "beta2") if name in config.optim},  # not in earlier versions
    )


def network_options(config: ConfigDict) -> dict:
    """What the networks of other tasks take alike: their norm, type of computation and form of convolutions.

    Devices that share a patch need convolutions of the plain form, which the compiler splits along y.
    """
    return {
        "norm": config.model.norm,
        "dtype": jnp.bfloat16 if config.model.bfloat16 else jnp.float32,
        "direct": config.get("parallel", {}).get("space", 1) > 1,
    }


def recomputes(config: ConfigDict) -> str:
    """config.model.remat as auto, always or never; checkpoints of earlier versions have False and True.

    Raises:
      InputError: another value.
    """
    value = {"False": "never", "True": "always"}.get(str(config.model.remat), config.model.remat)
    if value not in REMAT:
        raise InputError(f"unknown model.remat {value!r}: expected one of {', '.join(REMAT)}")
    return value


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
    """The network as denoise(x: [B, *S, 1], t: int32 [B], cond: [B, *S, K] or None) -> [B, *S, 1].

    What comes is the network's own prediction, of the kind parts.prediction.
    """
    return lambda x, t, cond: parts.net.apply({"params": params}, _inputs(x, cond), t)


def stages(parts: Parts, params) -> tiles.Stages:
    """The same network in its three parts, for volumes in tiles."""
    apply = functools.partial(parts.net.apply, {"params": params})
    return tiles.Stages(
        shrink=lambda x, t, cond: apply(_inputs(x, cond), t, method="shrink"),
        deepen=lambda h, t: apply(h, t, method="deepen"),
        grow=lambda x, deep, t, cond: apply(_inputs(x, cond), deep, t, method="grow"),
    )


def _inputs(x: jax.Array, cond: jax.Array | None) -> jax.Array:
    return x if cond is None else jnp.concatenate([x, cond], axis=-1)


def condition(parts: Parts, key: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
    """The network's second input for a volume or batch of `shape`: noise drawn once, or None where it has none.

    By rows of the first axis, as `samplers.rows_of_noise`, so that it can be drawn slab by slab.
    """
    return samplers.rows_of_noise(keys.stream(key, "condition"), 0, shape) if parts.noise_channel else None


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
        kind = {"prediction": parts.prediction, "weighting": parts.weighting, "snr_cap": parts.snr_cap}
        return gaussian.loss(denoiser(parts, params), batch, t, noise, parts.schedule, cond, **kind).mean()

    return descend(parts, state, loss, (batch, t, noise, cond))


def descend(parts: Parts, state: TrainState, loss: Callable, examples: tuple) -> tuple[TrainState, dict]:
    """One update of the parameters, in parts.accumulate micro-batches.

    Args:
      loss: (params, *examples) -> float32 [], a mean over the examples.
      examples: arrays (or None) whose first axis is the batch.

    Returns:
      The next state and scalars `loss`, `grad_norm`.
    """

    def micro(*examples):
        return jax.value_and_grad(loss)(state.params, *examples)

    value, grads = mean_of_micro_batches(micro, parts.accumulate, examples)
    updates, opt_state = parts.optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = update_ema(state.ema_params, params, state.step, parts.ema_decay)
    state = TrainState(step=state.step + 1, params=params, ema_params=ema_params, opt_state=opt_state)
    return state, {"loss": value, "grad_norm": optax.tree.norm(grads)}


def mean_of_micro_batches(function: Callable, count: int, examples: tuple):
    """What function(*examples) returns, a pytree of float arrays, as the mean over `count` micro-batches.

    Args:
      function: its results are means over the examples.
      examples: pytrees of arrays (or None) whose first axis is the batch.
    """
    if count == 1:
        return function(*examples)

    def split(x):
        # Example i goes to micro-batch i mod n: every device keeps its own share of each.
        return jnp.moveaxis(x.reshape((-1, count, *x.shape[1:])), 1, 0)

    def add(total, micro):
        return jax.tree.map(jnp.add, total, function(*micro)), None

    parts = jax.tree.map(split, examples)
    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *jax.tree.map(lambda x: x[0], parts))
    )
    # On CPU the gradients of convolutions are eight times slower inside a loop.
    total, _ = jax.lax.scan(add, zero, parts, unroll=jax.default_backend() == "cpu")
    return jax.tree.map(lambda x: x / count, total)


def validate(parts: Parts, state: TrainState, batch: jax.Array, key: jax.Array) -> dict:
    """The mean squared error of the noise that the averaged parameters tell, at fixed t and noise.

    The same measure whatever the network predicts and however its loss is weighted, so that runs can be compared.

    Returns:
      Scalars `loss_t{i}` at a tenth, four tenths and nine tenths of t_max, and `loss`, their mean.
    """
    noise = jax.random.normal(keys.stream(key, "validate"), batch.shape)
    cond = condition(parts, key, batch.shape)
    scalars = {}
    for t in sorted({int(share * (parts.t_max - 1)) for share in (0.1, 0.4, 0.9)}):
        at = jnp.full(batch.shape[:1], t, jnp.int32)
        xt = gaussian.noise_to(batch, at, noise, parts.schedule)
        predicted = denoiser(parts, state.ema_params)(xt, at, cond)
        told = gaussian.predict_noise(xt, at, predicted, parts.schedule, parts.prediction)
        scalars[f"loss_t{t}"] = jnp.square(told - noise).mean()
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
    estimate = gaussian.predict_x0(noised, at, denoise(noised, at, cond), parts.schedule, parts.prediction)
    count = min(PREVIEW_EVALUATIONS, parts.t_max)
    plan = samplers.make_plan("dpmpp", parts.schedule, parts.t_max, count, prediction=parts.prediction)
    far = samplers.start(key, real, parts.t_max, parts.schedule)
    sample = samplers.sample(denoise, key, far, plan, cond)
    volumes = {
        "real": real,
        f"noised to {half}": noised,
        "one-step estimate": estimate,
        f"sample from {parts.t_max}, {plan.num_evaluations} evaluations": sample,
    }
    return {title: volume[..., 0] for title, volume in volumes.items()}


def single(denoise: gaussian.Denoise) -> Callable:
    """A batched denoiser as one of a single volume [*S, C] with t: int32 []."""
    return lambda x, t, cond: denoise(x[None], t[None], None if cond is None else cond[None])[0]
