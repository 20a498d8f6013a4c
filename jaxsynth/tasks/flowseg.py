"""Segmentation by flows: the network tells for every voxel whether it lies in a cell, and the way to the cell's centre.

Two kinds, by config.seg.target. "heat": Stringer et al., "Cellpose" (2021), the foreground as a probability.
"centroid": the papers' (001, 003), whose published networks tell the foreground as 0 or 1.
A task is five functions: build, init, step, validate, preview.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxsynth import keys
from jaxsynth.data import pairs, tiles
from jaxsynth.errors import InputError
from jaxsynth.nn import flownet
from jaxsynth.records import TrainState
from jaxsynth.seg import flows
from jaxsynth.tasks import ddpm

SOURCE = "segment_source"  # where batches come from, see `train_source`
TARGETS = ("heat", "centroid")
LEAST_WEIGHT = 0.01  # of the flows in the background


@dataclasses.dataclass(frozen=True)
class Parts:
    """What stays fixed while training; `target` and `capacity` are those of `seg.flows.targets`."""

    net: flownet.FlowNet
    target: str
    capacity: int
    optimiser: optax.GradientTransformation
    accumulate: int
    ema_decay: float


def build(config: ConfigDict) -> Parts:
    """Network and optimiser of a configuration.

    Raises:
      InputError: a value that makes no sense.
    """
    if config.seg.target not in TARGETS:
        raise InputError(f"unknown seg.target {config.seg.target!r}: expected one of {', '.join(TARGETS)}")
    remat = ddpm.recomputes(config) == "always"
    net = flownet.FlowNet(features=config.model.features, remat=remat, **ddpm.network_options(config))
    return Parts(
        net=net,
        target=config.seg.target,
        capacity=config.seg.capacity,
        optimiser=ddpm.optimiser_of(config),
        accumulate=config.optim.accumulate,
        ema_decay=config.optim.ema_decay,
    )


def augmentation(config: ConfigDict) -> pairs.Augmentation:
    """How training patches are changed.

    Raises:
      InputError: a negative number.
    """
    names = ("zoom", "anisotropy", "contrast", "gamma", "offset", "blur_vox", "noise")
    for name in names:
        if not config.seg[name] >= 0:
            raise InputError(f"seg.{name} must be 0 or more, got {config.seg[name]}")
    return pairs.Augmentation(rotation=config.seg.rotation, **{name: config.seg[name] for name in names})


def init(parts: Parts, key: jax.Array, batch_shape: tuple[int, ...]) -> TrainState:
    """The state before the first step.

    Args:
      batch_shape: (B, *patch, 1), of the images.
    """
    params = parts.net.init(keys.stream(key, "params"), jnp.zeros((1, *batch_shape[1:])))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, ema_params=params, opt_state=parts.optimiser.init(params)
    )


def predict(parts: Parts, params, images: jax.Array) -> jax.Array:
    """Images float32 [B, *S, 1] -> float32 [B, *S, 1 + D], see `read`."""
    return read(parts, parts.net.apply({"params": params}, images))


def read(parts: Parts, output: jax.Array) -> jax.Array:
    """What the network's output float32 [..., 1 + D] tells: the foreground, 0 to 1, and the flow along every axis
    towards the cell's centre."""
    found = flows.from_published(output)
    return found if parts.target == "centroid" else found.at[..., 0].set((1 + found[..., 0]) / 2)


def stages(parts: Parts, params) -> tiles.Stages:
    """The same network in three parts, for images in tiles; `read` is left to do."""

    def part(method):
        return lambda *arrays: parts.net.apply({"params": params}, *arrays, method=method)

    shrink, deepen, grow = part("shrink"), part("deepen"), part("grow")
    return tiles.Stages(
        shrink=lambda x, t, cond: shrink(x),
        deepen=lambda h, t: deepen(h),
        grow=lambda x, deep, t, cond: grow(x, deep),
        margin=flownet.margin(),
        deep_margin=flownet.deep_margin(),
    )


def losses(parts: Parts, params, batch: dict[str, jax.Array], wanted: jax.Array) -> jax.Array:
    """Loss of every image, float32 [B]: that of the foreground plus the squared error of the flows, weighted by the
    foreground; without what lies beyond the image.

    The foreground's is the cross-entropy, with centroids the absolute error, as published; that one learns sparse and
    dim cells late.

    Args:
      batch: "image" float32 [B, *S, 1], "labels" int32 [B, *S], -1 beyond the image.
      wanted: float32 [B, *S, 1 + D], from `targets`.
    """
    raw = parts.net.apply({"params": params}, batch["image"], method="raw")
    known = (batch["labels"] >= 0).astype(jnp.float32)
    axes = tuple(range(1, known.ndim))
    if parts.target == "centroid":
        error = jnp.abs(jnp.tanh(raw[..., 0]) - wanted[..., 0])
    else:
        error = optax.sigmoid_binary_cross_entropy(2 * raw[..., 0], wanted[..., 0])  # (1 + tanh(x)) / 2 = sigmoid(2 x)
    foreground = (error * known).sum(axes) / jnp.maximum(known.sum(axes), 1)
    weight = jnp.clip(wanted[..., 0], LEAST_WEIGHT) * known
    error = jnp.square(read(parts, jnp.tanh(raw))[..., 1:] - wanted[..., 1:]).mean(-1)
    return foreground + (error * weight).sum(axes) / jnp.maximum(weight.sum(axes), 1)


def targets(parts: Parts, labels: jax.Array) -> jax.Array:
    """What the network is to learn of labels int32 [B, *S], see `seg.flows.targets`: float32 [B, *S, 1 + D]."""
    return jax.vmap(lambda own: flows.targets(own, parts.target, parts.capacity))(jnp.maximum(labels, 0))


def step(parts: Parts, state: TrainState, batch: dict[str, jax.Array], key: jax.Array) -> tuple[TrainState, dict]:
    """One update.

    Args:
      batch: as in `losses`.
      key: not used; batches come augmented.

    Returns:
      The next state and scalars `loss`, `grad_norm`.
    """
    wanted = targets(parts, batch["labels"])

    def loss(params, image, labels, wanted):
        return losses(parts, params, {"image": image, "labels": labels}, wanted).mean()

    return ddpm.descend(parts, state, loss, (batch["image"], batch["labels"], wanted))


def validate(parts: Parts, state: TrainState, batch: dict[str, jax.Array], key: jax.Array) -> dict:
    """The loss of the averaged parameters, as scalar `loss`."""
    return {"loss": losses(parts, state.ema_params, batch, targets(parts, batch["labels"])).mean()}


def preview(parts: Parts, state: TrainState, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """A patch, its foreground and its flow along y, told and true.

    Returns:
      title -> float32 [*patch] in [-1, 1].
    """
    found = predict(parts, state.ema_params, batch["image"][:1])[0]
    wanted = targets(parts, batch["labels"][:1])[0]
    shown = {
        "foreground": 2 * found[..., 0] - 1,
        "foreground, true": 2 * wanted[..., 0] - 1,
        "flow along y": found[..., -2],
        "flow along y, true": wanted[..., -2],
    }
    return {"real": 2 * batch["image"][0, ..., 0] - 1} | shown
