"""Small networks and runs that several tests use."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxsynth import checkpoint, keys, train_source
from jaxsynth.data import intensity as intensities
from jaxsynth.data import tiles, volumes
from jaxsynth.nn import unet
from jaxsynth.tasks import ddpm


def weights(shapes):
    """Values for parameters of these shapes, with which every layer matters: kernels keep the variance of what they
    get, also the last; the rest is a little off its usual value."""
    rng = np.random.default_rng(1)

    def draw(leaf):
        scale = math.prod(leaf.shape[:-1]) ** -0.5 if len(leaf.shape) > 1 else 0.3
        return (rng.normal(size=leaf.shape) * scale + (len(leaf.shape) == 1)).astype(np.float32)

    return jax.tree.map(draw, shapes)


def network(ndim, norm, channels=1):
    """(net, params) of a UNet of four features."""
    net = unet.UNet(features=4, norm=norm)
    example = jnp.zeros((1, *(8,) * ndim, channels)), jnp.zeros(1, jnp.int32)
    return net, weights(jax.eval_shape(net.init, jax.random.key(0), *example)["params"])


def stages(net, params, **margins):
    """The network in its three parts; `margins` as in `tiles.Stages`."""

    def part(method, *inputs):
        return net.apply({"params": params}, *inputs, method=method)

    def join(x, cond):
        return x if cond is None else jnp.concatenate([x, cond], -1)

    return tiles.Stages(
        lambda x, t, cond: part("shrink", join(x, cond), t),
        functools.partial(part, "deepen"),
        lambda x, deep, t, cond: part("grow", join(x, cond), deep, t),
        **margins,
    )


def untrained_run(folder, config):
    """Saves a network that no training made, with `weights`, for the images of config.data.path as a run, voxels of
    0.5 um."""
    shape = (1, *config.data.patch, 1)
    state = jax.jit(lambda key: ddpm.init(ddpm.build(config), key, shape))(keys.root(0))
    params = jax.tree.map(jnp.asarray, weights(jax.eval_shape(lambda: state.params)))
    state = state.replace(params=params, ema_params=params)
    opened = volumes.open_set(config.data.path, spacing=(0.5,) * len(config.data.patch))
    scale = intensities.fit(lambda: volumes.each(opened), "asinh")
    metadata = {"config": config.to_dict(), **train_source.metadata(opened, scale, None)}
    with checkpoint.open_manager(folder) as manager:
        checkpoint.save(manager, state, metadata, 1.0)
        manager.wait_until_finished()
