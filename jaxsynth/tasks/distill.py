"""Consistency distillation: a trained diffusion model becomes one that needs one to four evaluations.

Song et al., "Consistency models" (2023), algorithm 2, on the discrete times of the teacher. The teacher's noise-free
way from x_t ends at one image; the student, a copy of the teacher's network to begin with, learns to name that image at
once, wherever on the way it is asked: its estimate of x0 at t must be its own estimate one step of the teacher's
further down, and the last step, to the image, is the teacher's own. The student predicts what the teacher predicted
(noise, x0 or v), so that its checkpoints are used as the teacher's are, with the sampler `consistency`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxsynth import checkpoint, keys
from jaxsynth.diffusion import gaussian, samplers
from jaxsynth.errors import InputError
from jaxsynth.records import Schedule, TrainState
from jaxsynth.tasks import ddpm

HUBER = 0.00054  # of the pseudo-Huber loss, against a root mean square (Song and Dhariwal 2023, section 3.3)
PREVIEW_EVALUATIONS = (1, 4)
TEACHER_EVALUATIONS = 20  # of the noise-free way that the student is to shorten


@dataclasses.dataclass(frozen=True)
class Parts:
    """What stays fixed while distilling.

    Attributes:
      base: network, schedule and optimiser, shared with the teacher; base.t_max is where the student begins.
      teacher: the teacher's averaged parameters, host arrays.
      later: int32 [t_max], see `way`.
    """

    base: ddpm.Parts
    teacher: dict
    later: np.ndarray


def inherit(config: ConfigDict) -> dict:
    """Fills in, in place, what the student has from its teacher: network, process, normalisation, and the patch where
    it is left open. distill.teacher becomes the checkpoint found, so that the run tells which it was.

    Returns:
      The teacher's metadata, see `checkpoint.read_metadata`.

    Raises:
      InputError: no teacher, one that cannot be distilled, or a configuration that contradicts it.
    """
    if not config.distill.teacher:
        raise InputError("no teacher given: set --config.distill.teacher=RUN, a folder that jaxsynth.train wrote")
    found = checkpoint.find(config.distill.teacher)
    metadata = checkpoint.read_metadata(found)
    teacher = ConfigDict(metadata["config"])
    if teacher.task != "ddpm":
        raise InputError(f"distill.teacher {found} is of task {teacher.task!r}, expected ddpm")
    for section in ("model", "diffusion"):
        for name, value in config[section].items():
            if name != "remat" and value != teacher[section].get(name, value):
                raise InputError(f"{section}.{name} is the teacher's, {teacher[section][name]!r}; got {value!r}")
    t_max = config.distill.t_max or teacher.diffusion.t_max
    if not 1 <= t_max <= teacher.diffusion.t_max:
        raise InputError(
            f"distill.t_max must lie in 1..{teacher.diffusion.t_max}, what the teacher was trained on; got {t_max}"
        )
    patch = tuple(config.data.patch) or tuple(teacher.data.patch)
    if len(patch) != len(teacher.data.patch):
        raise InputError(f"data.patch {patch} is {len(patch)}D, distill.teacher {len(teacher.data.patch)}D")
    with config.unlocked():
        config.model = ConfigDict(teacher.model.to_dict() | {"remat": config.model.remat})
        config.diffusion = teacher.diffusion
        config.diffusion.t_max = t_max
        config.data.patch = patch
        config.data.normalization = teacher.data.normalization
        config.distill.teacher = str(found.resolve())
    return metadata


def build(config: ConfigDict) -> Parts:
    """Teacher and student of a configuration that `inherit` has filled in.

    Raises:
      InputError: a value that makes no sense, or a teacher that does not fit the configuration.
    """
    base = ddpm.build(config)
    saved = checkpoint.find(config.distill.teacher)
    trained = ddpm.build(ConfigDict(checkpoint.read_metadata(saved)["config"]))
    shape = (1, *config.data.patch, 1)
    state = jax.eval_shape(lambda key: ddpm.init(trained, key, shape), keys.root(0))
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), state)
    teacher = jax.device_get(checkpoint.load(saved, like).ema_params)
    return Parts(base=base, teacher=teacher, later=way(base.schedule, base.t_max, config.distill.num_times))


def way(schedule: Schedule, t_max: int, num_times: int) -> np.ndarray:
    """The index one step further down from every index: int32 [t_max], -1 (the image) from index 0.

    Steps are equal in the 7th root of the noise-to-signal ratio (Karras et al. 2022), num_times of them from t_max - 1
    to 0, but at least one index long. Few are better than many: an error of the student is handed up from step to step,
    and that of Heun's method is small: for blobs in noise, from t = 400, a root mean square of 0.012 at 6 steps and
    0.002 at 24. Every index is the beginning of a way, so that sampling may start at any.

    Raises:
      InputError: num_times below 1.
    """
    if num_times < 1:
        raise InputError(f"distill.num_times must be at least 1, got {num_times}")
    warped = (1 / schedule.alphas_bar[:t_max] - 1) ** (0.5 / samplers.KARRAS_RHO)
    wanted = warped - (warped[-1] - warped[0]) / num_times
    t = np.arange(t_max)
    return np.minimum(np.round(np.interp(wanted, warped, t)), t - 1).astype(np.int32)


def consistency_loss(
    student: gaussian.Denoise,
    target: gaussian.Denoise,
    teacher: gaussian.Denoise,
    x0: jax.Array,
    t: jax.Array,
    noise: jax.Array,
    schedule: Schedule,
    later: np.ndarray,
    cond: jax.Array | None = None,
    *,
    prediction: str = "noise",
) -> jax.Array:
    """How far the student's x0 at t is from the target's one step of the teacher's (Heun's) further down.

    Args:
      student, target, teacher: denoisers of one kind, `prediction`; gradients flow through the first alone.
      x0, noise: float32 [B, *S, C].
      t: int32 [B], 0..len(later) - 1.
      later: see `way`.

    Returns:
      float32 [B], the pseudo-Huber distance of the images, sqrt(mean square + HUBER^2) - HUBER. It counts less where
      the prediction is amplified on its way to x0, as a noise prediction is where there is more noise than signal.
    """

    def estimate(denoise, x, t):
        return gaussian.predict_x0(x, t, denoise(x, t, cond), schedule, prediction)

    # Entry -1 is the image itself: no noise.
    signal = np.append(np.sqrt(schedule.alphas_bar), 1.0)
    spread = np.append(np.sqrt(1 - schedule.alphas_bar), 0.0)
    after = jnp.asarray(later)[t]
    last = (after < 0).reshape(after.shape + (1,) * (x0.ndim - 1))
    asked = jnp.maximum(after, 0)

    # The samplers clip what the teacher says of x0, and so does its way here; of two slopes Heun takes the mean.
    xt = gaussian.noise_to(x0, t, noise, schedule)
    first = jnp.clip(estimate(teacher, xt, t), -1.0, 1.0)
    a, s = (gaussian.at(table, t, x0.ndim) for table in (signal, spread))
    an, sn = (gaussian.at(table, after, x0.ndim) for table in (signal, spread))
    euler = sn / s * (xt - a * first) + an * first
    second = jnp.clip(estimate(teacher, euler, asked), -1.0, 1.0)
    heun = euler + 0.5 * (an * s / a - sn) / jnp.where(last, 1.0, sn) * (second - first)
    wanted = jnp.where(last, first, jnp.clip(estimate(target, heun, asked), -1.0, 1.0))

    error = estimate(student, xt, t) - jax.lax.stop_gradient(wanted)
    distance = jnp.sqrt(jnp.mean(jnp.square(error), axis=tuple(range(1, x0.ndim))) + HUBER**2) - HUBER
    amplified = np.abs(gaussian.x0_tables(schedule, prediction)[1])
    return distance / gaussian.at(np.maximum(amplified, 1.0), t, 1)


def init(parts: Parts, key: jax.Array, batch_shape: tuple[int, ...]) -> TrainState:
    """The state before the first step: the student is the teacher. Arguments as of `ddpm.init`."""
    fresh = ddpm.init(parts.base, key, batch_shape)
    params = jax.tree.map(jnp.asarray, parts.teacher)
    return fresh.replace(params=params, ema_params=params)


def step(parts: Parts, state: TrainState, batch: jax.Array, key: jax.Array) -> tuple[TrainState, dict]:
    """One update: two evaluations of the teacher, one of the target, one of the student with its gradient.

    The target is the student itself, not an average of it, which Song and Dhariwal (2023, section 3.2) found better.
    Arguments and return as of `ddpm.step`.
    """
    base = parts.base
    key = keys.stream(key, "step", state.step)
    t = jax.random.randint(keys.stream(key, "t"), batch.shape[:1], 0, base.t_max)
    noise = jax.random.normal(keys.stream(key, "noise"), batch.shape)
    cond = ddpm.condition(base, key, batch.shape)
    teacher = ddpm.denoiser(base, parts.teacher)

    def loss(params, batch, t, noise, cond):
        student = ddpm.denoiser(base, params)
        settings = (base.schedule, parts.later, cond)
        return consistency_loss(
            student, student, teacher, batch, t, noise, *settings, prediction=base.prediction
        ).mean()

    return ddpm.descend(base, state, loss, (batch, t, noise, cond))


def validate(parts: Parts, state: TrainState, batch: jax.Array, key: jax.Array) -> dict:
    """One evaluation of the averaged student against the teacher's whole way, from the same images noised to t_max.

    Returns:
      Scalar `loss`, the root mean square of their difference.
    """
    made = _compare(parts, state, batch, keys.stream(key, "validate"), (1,))
    return {"loss": jnp.sqrt(jnp.mean(jnp.square(made["student, 1 evaluation"] - made["teacher"])))}


def preview(parts: Parts, state: TrainState, batch: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """A real patch noised to t_max, what the teacher makes of it, and the student in 1 and 4 evaluations.

    Returns:
      title -> float32 [*patch] in about [-1, 1].
    """
    counts = sorted({min(count, parts.base.t_max) for count in PREVIEW_EVALUATIONS})
    made = _compare(parts, state, batch[:1], keys.stream(key, "preview"), counts)
    return {title: volumes[0, ..., 0] for title, volumes in ({"real": batch} | made).items()}


def _compare(parts, state, batch, key, counts) -> dict[str, jax.Array]:
    """A batch noised to t_max, and the images that teacher and student make of it, [B, *S, 1] each."""
    base, t_start = parts.base, parts.base.t_max
    cond = ddpm.condition(base, key, batch.shape)
    noised = samplers.start(key, batch, t_start, base.schedule)

    def make(params, sampler, count):
        plan = samplers.make_plan(sampler, base.schedule, t_start, count, prediction=base.prediction)
        denoise = ddpm.denoiser(base, params)

        def together(x, t, cond):  # a sampler works through one volume; here it is a batch of them, at the same t
            return denoise(x, jnp.broadcast_to(t, x.shape[:1]), cond)

        return samplers.sample(together, key, noised, plan, cond)

    made = {"noised": noised, "teacher": make(parts.teacher, "dpmpp", min(TEACHER_EVALUATIONS, t_start))}
    for count in counts:
        title = f"student, {count} evaluation{'s' * (count > 1)}"
        made[title] = make(state.ema_params, "consistency", count)
    return made
