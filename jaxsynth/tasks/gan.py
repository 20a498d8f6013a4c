"""A conditional GAN from masks to images (paper 003): a generator that turns a mask and its position map into an image,
and a critic that tells such images from real ones by patches.

Both are updated in one step, from the same pictures: the generator's gradient is that of the critic before its update.
A task is five functions: build, init, step, validate, preview.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxsynth import keys
from jaxsynth.data import ada, tiles
from jaxsynth.errors import InputError
from jaxsynth.metrics import profiles
from jaxsynth.nn import gan
from jaxsynth.optimiser import update_ema
from jaxsynth.records import TrainState
from jaxsynth.tasks import ddpm, gan_input

SOURCE = "gan_source"  # where batches come from, see `train_source`
LEAST_PATCH = 2**gan.CRITIC_HALVINGS  # voxels, of which the critic makes one
# name -> (loss of the critic's logits for a real image, for a generated one; the generator's for its own)
LOSSES = {
    "logistic": (lambda x: jax.nn.softplus(-x), jax.nn.softplus, lambda x: jax.nn.softplus(-x)),
    "least_squares": (lambda x: jnp.square(x - 1), jnp.square, lambda x: jnp.square(x - 1)),
    "hinge": (lambda x: jax.nn.relu(1 - x), lambda x: jax.nn.relu(1 + x), jnp.negative),
}
# Keys of config.gan that checkpoints of earlier versions lack, and how those were trained.
EARLIER = {"critic_norm": "", "residual": False, "levels": (), "grain": 0.0, "sigma": 0.0}
EARLIER |= {"critic_mask": False, "critic_gain": 1.0, "critic_rate": 1.0, "clouds_vox": 0.0, "critic_shift": 0}
EARLIER |= {"clouds": (), "grain_correlation": (), "smooth_doublings": False}


@dataclasses.dataclass(frozen=True)
class Parts:
    """What stays fixed while training.

    Attributes:
      net: the generator.
      drawn: what its input is made of.
      critic: the patch critic.
      loss: one of LOSSES.
      identity: weight of the identity loss.
      critic_mask: whether the critic sees masks.
      critic_gain: contrast of images as the critic sees them.
      critic_rate: of the critic's learning rate to the generator's.
      critic_shift: voxels by which at most what the critic sees is moved, see `_gradients`.
      r1: weight of the critic's gradient penalty on real images; 0: none.
      r1_every: steps from one penalty to the next, which counts for all of them.
      ada_target, ada_step, ada_every: of `ada.update`, and the steps from one to the next.
      ada_start: the first probability.
      optimiser: of either network, each with a state of its own.
    """

    net: gan.Generator
    drawn: gan_input.Drawn
    critic: gan.Critic
    loss: str
    identity: float
    critic_mask: bool
    critic_gain: float
    critic_rate: float
    critic_shift: int
    r1: float
    r1_every: int
    ada_target: float
    ada_step: float
    ada_every: int
    ada_start: float
    optimiser: optax.GradientTransformation
    accumulate: int
    ema_decay: float


def check_version(own: dict) -> None:
    """Raises InputError for config.gan of an earlier version whose weights mean something else by now."""
    if own.get("smooth"):
        raise InputError("a GAN of an earlier version, with gan.smooth, which is no more: train it again")


def build(config: ConfigDict) -> Parts:
    """Networks and optimiser of a configuration.

    Raises:
      InputError: a value that makes no sense.
    """
    own = EARLIER | config.gan.to_dict()
    if isinstance(own["grain"], float):  # its strength alone: of an earlier version
        if own["residual"]:
            raise InputError("a residual GAN of an earlier version, whose shortcut was another: train it again")
        own["grain"] = ()
    check_version(own)
    if own["clouds"] and isinstance(own["clouds"][0], float | int):  # of an earlier version, alike everywhere
        own["clouds"] = (own["clouds"],) * 3
    if len(own["clouds"]) == 2:  # of an earlier version, on masks as beside them
        own["clouds"] = (*own["clouds"], own["clouds"][1])
    if own["loss"] not in LOSSES:
        raise InputError(f"unknown gan.loss {own['loss']!r}: expected one of {', '.join(LOSSES)}")
    least = {"identity": 0, "critic_gain": 0, "critic_rate": 0, "critic_shift": 0, "r1": 0, "r1_every": 1}
    for name, limit in (least | {"ada_step": 0, "ada_every": 1}).items():
        if not own[name] >= limit:
            raise InputError(f"gan.{name} must be at least {limit}, got {own[name]}")
    target, start = own["ada_target"], own["ada_start"]
    if not (-1 <= target <= 1 and 0 <= start <= 1):
        raise InputError(f"expected gan.ada_target in -1..1 and gan.ada_start in 0..1, got {target} and {start}")
    drawn = gan_input.of_config(own, config.model.noise_channel)
    shared = ddpm.network_options(config)
    critic_norm = own["critic_norm"] or config.model.norm
    patch, shift = tuple(config.data.patch), own["critic_shift"]
    if patch and min(patch) <= shift:
        raise InputError(f"gan.critic_shift: expected less than the edges of data.patch, {patch}, got {shift}")
    if critic_norm == "instance" and patch and max(patch) - shift <= LEAST_PATCH:
        raise InputError(
            f"data.patch: the critic's instance norm needs more than {LEAST_PATCH} voxels along some axis beside "
            f"gan.critic_shift, got {patch} and {shift}"
        )
    of_generator = shared | {"remat": ddpm.recomputes(config) == "always", "residual": own["residual"]}
    of_generator["smooth"] = own["smooth_doublings"]
    return Parts(
        net=gan.Generator(features=config.model.features, **of_generator),
        drawn=drawn,
        critic=gan.Critic(features=own["critic_features"], **(shared | {"norm": critic_norm})),
        **{name: own[name] for name in ("loss", "identity", "critic_mask", "critic_gain", "critic_rate")},
        **{name: own[name] for name in ("critic_shift", "r1", "r1_every")},
        **{name: own[name] for name in ("ada_target", "ada_step", "ada_every", "ada_start")},
        optimiser=ddpm.optimiser_of(config),
        accumulate=config.optim.accumulate,
        ema_decay=config.optim.ema_decay,
    )


def init(parts: Parts, key: jax.Array, batch_shape: tuple[int, ...]) -> TrainState:
    """The state before the first step.

    Args:
      batch_shape: (B, *patch, 1), of the images.

    Returns:
      params {"generator", "critic"}, ema_params those of the generator, opt_state {"generator", "critic", "ada"}.
    """
    x = jnp.zeros((1, *batch_shape[1:-1], 2))
    seen = jnp.zeros((1, *batch_shape[1:-1], 2 + parts.critic_mask))
    drawn = gan_input.generator_input(parts.drawn, key[None], x)
    params = {
        "generator": parts.net.init(keys.stream(key, "params"), drawn)["params"],
        "critic": parts.critic.init(keys.stream(key, "critic"), seen)["params"],
    }
    opt_state = {name: parts.optimiser.init(own) for name, own in params.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=params["generator"],
        opt_state=opt_state | {"ada": ada.start(parts.ada_start)},
    )


def generate(parts: Parts, params, own_keys: jax.Array, maps: jax.Array) -> jax.Array:
    """Masks in {0, 1} or sketches, and their position maps, float32 [B, *S, 2] -> images float32 [B, *S, 1] in [-1, 1].

    Args:
      params: of the generator.
      own_keys: of the images, [B]; only a generator with a channel of noise has a use for them.
    """
    return 2 * parts.net.apply({"params": params}, gan_input.generator_input(parts.drawn, own_keys, maps)) - 1


def margin(parts: Parts) -> int:
    """Voxels at an inner end of a tile that do not count, see `tiles.Stages`."""
    return gan.margin(parts.net.smooth)


def stages(parts: Parts, params) -> tiles.Stages:
    """The generator in three parts, for volumes in tiles: what `gan_input.generator_input` returns -> [B, *S, 1], the
    image in [-1, 1]."""

    def part(method):
        return lambda *arrays: parts.net.apply({"params": params}, *arrays, method=method)

    shrink, deepen, grow = part("shrink"), part("deepen"), part("grow")
    return tiles.Stages(
        shrink=lambda x, t, cond: shrink(x),
        deepen=lambda h, t: deepen(h),
        grow=lambda x, deep, t, cond: 2 * grow(x, deep) - 1,
        margin=margin(parts),
        deep_margin=gan.deep_margin(parts.net.smooth),
    )


def step(parts: Parts, state: TrainState, batch: dict[str, jax.Array], key: jax.Array) -> tuple[TrainState, dict]:
    """One update of both networks.

    Args:
      batch: "image" float32 [B, *patch, 1] in [-1, 1] with "image_position", "mask" [B, *patch, 1] in {0, 1} with
        "position", both in [-1, 1] (paper 003, eq. 1); images and masks need not belong together. With
        parts.critic_mask also "image_mask", the image's own, a sketch where masks are sketches.
      key: the run's key; the draws depend on it and on state.step.

    Returns:
      The next state and scalars: `loss` and `grad_norm` of the generator, `loss_critic` and `grad_norm_critic`,
      `adversarial` and `identity` (the generator's two losses), `logit_real` and `logit_fake`, `ada_r` (paper 003,
      eq. 2) and `ada_probability`.
    """
    key = keys.stream(key, "step", state.step)
    probability = state.opt_state["ada"].probability
    count = batch["image"].shape[0]
    own_keys = jax.vmap(lambda row: keys.stream(key, "example", row))(jnp.arange(count))

    # One corner for all, as a shift of each example's own would be a gather.
    corner = jax.random.randint(keys.stream(key, "corner"), (batch["image"].ndim - 2,), 0, parts.critic_shift + 1)

    def micro(batch, own_keys):
        return _gradients(parts, state, batch, own_keys, probability, corner)

    grads, signs, scalars = ddpm.mean_of_micro_batches(micro, parts.accumulate, (batch, own_keys))
    if parts.r1:
        penalty = ddpm.mean_of_micro_batches(lambda batch: _penalty(parts, state, batch), parts.accumulate, (batch,))
        grads["critic"] = jax.tree.map(jnp.add, grads["critic"], penalty)
    params, opt_state = {}, {}
    for name in ("generator", "critic"):
        updates, opt_state[name] = parts.optimiser.update(grads[name], state.opt_state[name], state.params[name])
        if name == "critic":
            updates = jax.tree.map(lambda x: parts.critic_rate * x, updates)
        params[name] = optax.apply_updates(state.params[name], updates)
    seen = ada.observe(state.opt_state["ada"], signs)
    scalars |= {"grad_norm": optax.tree.norm(grads["generator"]), "grad_norm_critic": optax.tree.norm(grads["critic"])}
    scalars |= {"ada_r": seen.r, "ada_probability": probability}
    due = (state.step + 1) % parts.ada_every == 0
    later = ada.update(seen, target=parts.ada_target, step=parts.ada_step)
    opt_state["ada"] = jax.tree.map(lambda new, old: jnp.where(due, new, old), later, seen)
    ema_params = update_ema(state.ema_params, params["generator"], state.step, parts.ema_decay)
    return TrainState(step=state.step + 1, params=params, ema_params=ema_params, opt_state=opt_state), scalars


def _gradients(parts: Parts, state: TrainState, batch, own_keys, probability, corner):
    """Of one micro-batch: gradients of both networks, the mean sign of the logits of real images, and scalars.

    The critic sees the part of each picture that begins at `corner` and is parts.critic_shift voxels shorter. Were its
    halvings always at the same places of a patch as the generator's doublings, the period of its gradient, which a
    stride of 2 gives it, would add up in what the doublings learn, as stripes.
    """
    real, real_position, real_maps = _as_seen(batch["image"]), batch["image_position"], _maps_of_images(parts, batch)
    mask, position = batch["mask"], batch["position"]
    maps = _critic_maps(parts, position, mask)
    # Real images in the masks' place, which the generator is to leave as they are: they have their grain, so the
    # channels of noise are 0. After the masks and not beside them: on a CPU an eighth less time for a step.
    masks = gan_input.generator_input(parts.drawn, own_keys, jnp.concatenate([mask, position], -1))
    images = jnp.concatenate([real, real_position, jnp.zeros_like(masks[..., 2:])], -1)

    def draw(params, x):
        return parts.net.apply({"params": params}, x)

    def part(pictures):
        space = [size - parts.critic_shift for size in pictures.shape[1:-1]]
        start, sizes = (0, *corner, 0), (pictures.shape[0], *space, pictures.shape[-1])
        return jax.lax.dynamic_slice(pictures, start, sizes) if parts.critic_shift else pictures

    def judge(params, images, maps, name):
        own = jax.vmap(lambda key: keys.stream(key, name))(own_keys)
        changed = jax.vmap(ada.augment, (0, 0, None))(own, images[..., 0], probability)[..., None]
        return _logits(parts, params, part(changed), part(maps))

    of_real, of_fake, of_own = (lambda x, loss=loss: loss(x).mean() for loss in LOSSES[parts.loss])
    generator = state.params["generator"]
    fake, back_from_mask = jax.vjp(lambda params: draw(params, masks), generator)
    # The critic sees every picture once: its gradient and the generator's go back through the same evaluation.
    critic = state.params["critic"]
    logits_fake, back_from_fake = jax.vjp(lambda params, images: judge(params, images, maps, "fake"), critic, fake)
    logits_real, back_from_real = jax.vjp(lambda params: judge(params, real, real_maps, "real"), critic)
    loss_real, cotangent_real = jax.value_and_grad(of_real)(logits_real)
    loss_fake, cotangent_fake = jax.value_and_grad(of_fake)(logits_fake)
    adversarial, cotangent_own = jax.value_and_grad(of_own)(logits_fake)
    identity, from_images = jax.value_and_grad(lambda params: jnp.abs(real - draw(params, images)).mean())(generator)
    both = back_from_real(cotangent_real)[0], back_from_fake(cotangent_fake)[0]
    (from_masks,) = back_from_mask(back_from_fake(cotangent_own)[1])
    grads = {
        "generator": jax.tree.map(lambda a, b: a + parts.identity * b, from_masks, from_images),
        "critic": jax.tree.map(lambda a, b: (a + b) / 2, *both),
    }
    scalars = {
        "loss": adversarial + parts.identity * identity,
        "adversarial": adversarial,
        "identity": identity,
        "loss_critic": (loss_real + loss_fake) / 2,
        "logit_real": logits_real.mean(),
        "logit_fake": logits_fake.mean(),
    }
    return grads, jnp.sign(logits_real).mean(), scalars


def _maps_of_images(parts: Parts, batch) -> jax.Array:
    return _critic_maps(parts, batch["image_position"], batch.get("image_mask"))


def _critic_maps(parts: Parts, position: jax.Array, mask: jax.Array | None) -> jax.Array:
    """What the critic sees beside images: position maps, and where it does masks, sketches at the images' contrast."""
    if not parts.critic_mask:
        return position
    if parts.drawn.contrast is None:
        mask = parts.critic_gain * (mask - parts.drawn.background)
    return jnp.concatenate([position, mask], -1)


def _logits(parts: Parts, params, images: jax.Array, maps: jax.Array) -> jax.Array:
    """What the critic says of images in [0, 1] with these maps. Without a norm it is slow to see what differs by a few
    hundredths of an input (docs/gan_trials.md); parts.critic_gain makes it more, about the background of the images."""
    seen = parts.critic_gain * (images - parts.drawn.background)
    return parts.critic.apply({"params": params}, jnp.concatenate([seen, maps], -1))


def _penalty(parts: Parts, state: TrainState, batch):
    """The gradient of the R1 penalty (Mescheder et al. 2018), every r1_every steps for all of them, else zero: half the
    squared gradient of a logit by the image, which is not augmented.

    Of the mean over a patch's logits it takes what is cheap, the squared gradient of their sum over their number, which
    is the same where no voxel moves two logits, and does not grow with the patch either.
    """
    real, maps = _as_seen(batch["image"]), _maps_of_images(parts, batch)

    def penalty(params):
        def total(images):
            logits = _logits(parts, params, images, maps)
            return logits.sum(), logits.size

        by_image, count = jax.grad(total, has_aux=True)(real)
        return parts.r1 * parts.r1_every / 2 * jnp.square(by_image).sum() / count

    due = state.step % parts.r1_every == 0
    params = state.params["critic"]
    return jax.lax.cond(due, jax.grad(penalty), lambda params: jax.tree.map(jnp.zeros_like, params), params)


def _as_seen(image: jax.Array) -> jax.Array:
    """Images in [-1, 1] as the networks have them, in [0, 1]."""
    return (image + 1) / 2


def validate(parts: Parts, state: TrainState, batch: dict[str, jax.Array], key: jax.Array) -> dict:
    """How far images generated from a batch's masks are, as a set, from its real ones, with averaged parameters.

    A GAN has no loss that falls as its images improve. What can be told of unpaired images is whether their grey
    values and their grain are as often.

    Returns:
      Scalars `intensity`, the mean distance of equal quantiles of the grey values in [0, 1]; `spectrum_db`, the root
      mean square difference of their mean radial power spectra in decibel; `loss`, intensity + spectrum_db / 100; and
      `position`, the first of these distances for the position maps, of which the generator makes none: where it is
      large, images and masks are of other places in the organism, and the critic may tell them apart by that alone.
    """
    maps = jnp.concatenate([batch["mask"], batch["position"]], axis=-1)
    own_keys = jax.vmap(lambda row: keys.stream(key, row))(jnp.arange(maps.shape[0]))
    # One by one: there may be more of them than of a step's.
    fake = jax.lax.map(lambda one: generate(parts, state.ema_params, one[0][None], one[1][None])[0], (own_keys, maps))
    real, fake = _as_seen(batch["image"])[..., 0], _as_seen(fake)[..., 0]
    intensity = _quantile_distance(real, fake)
    position = _quantile_distance(batch["image_position"], batch["position"])
    spectrum = profiles.spectral_distance_db(*(jax.vmap(profiles.radial_spectrum)(x).mean(0) for x in (real, fake)))
    return {
        "loss": intensity + spectrum / 100,
        "intensity": intensity,
        "spectrum_db": spectrum,
        "position": position,
    }


def _quantile_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.abs(jnp.sort(x.ravel()) - jnp.sort(y.ravel())).mean()


def preview(parts: Parts, state: TrainState, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """A real patch, and a mask with its position map and the image that is made of it.

    Returns:
      title -> float32 [*patch] in [-1, 1].
    """
    own = {name: array[:1] for name, array in batch.items()}
    fake = generate(parts, state.ema_params, key[None], jnp.concatenate([own["mask"], own["position"]], axis=-1))
    shown = {"real, elsewhere": own["image"], "mask": 2 * own["mask"] - 1, "position": own["position"]}
    shown |= {"synthetic": fake}
    return {title: volume[0, ..., 0] for title, volume in shown.items()}
