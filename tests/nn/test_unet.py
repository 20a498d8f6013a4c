"""The denoiser: what its output depends on, sizes, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.errors import InputError
from jaxsynth.nn import winograd
from jaxsynth.nn.blocks import time_embedding
from jaxsynth.nn.conv import down_conv, pixel_shuffle, same_conv
from jaxsynth.nn.unet import FACTOR, UNet, deep_margin, margin, operations, receptive_field


def _net_and_params(rank=2, in_channels=2, **options):
    net = UNet(features=4, **options)
    x = jnp.zeros((1, *(8,) * rank, in_channels))
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1, int))
    rng = np.random.default_rng(0)
    return net, jax.tree.map(lambda p: _values(p.shape, rng), shapes)


def _values(shape, rng):
    fan_in = np.prod(shape[:-1])
    centre, spread = (0, np.sqrt(2 / fan_in)) if len(shape) > 1 else (0.3, 0.3)
    return jnp.asarray(centre + spread * rng.standard_normal(shape), jnp.float32)


def _apply(net, params, x, t=500):
    return np.asarray(jax.jit(net.apply)(params, x, jnp.full(len(x), t)))


def test_receptive_field_is_exact():
    """With positive weights, every input voxel that can matter does: the reach of the gradient is the window."""
    net, params = _net_and_params(norm="none")
    params = jax.tree.map(lambda p: jnp.abs(p) + 1e-3, params)
    radius = receptive_field()
    size, first = 2 * (radius + 8), 8 * ((radius + 8) // 8)
    x = jnp.ones((1, 8, size, 2))
    t = jnp.zeros(1, int)
    gradient = jax.jit(jax.grad(lambda x, p: net.apply(params, x, t)[0, 4, p, 0]))
    reached = 0
    for p in range(first, first + 8):
        columns = np.flatnonzero(np.abs(np.asarray(gradient(x, p))).sum((0, 1, 3)))
        reached = max(reached, p - columns.min(), columns.max() - p)
    assert 0 < p - radius and p + radius < size - 1
    assert reached == radius


def test_margins_are_exact():
    """With positive weights, all that a tile's end may spoil changes with what lies beyond it, and nothing else.

    The gradient of every place inside a tile, looked at outside.
    """
    net, params = _net_and_params(norm="none")
    params = jax.tree.map(lambda p: jnp.abs(p) + 1e-3, params)
    t = jnp.zeros(1, int)

    def spoilt(method, channels, size, first, last, *others):
        outside = (jnp.arange(size) < first) | (jnp.arange(size) >= last)
        x = jnp.ones((1, 8, size, channels))
        y, pull = jax.vjp(lambda x: net.apply(params, x, *others, t, method=method).sum((0, 1, 3)), x)
        seen = jax.vmap(lambda place: jnp.abs(pull(place)[0]).sum((0, 1, 3)) @ outside)(jnp.eye(len(y)))
        scale = size // len(y)
        changed = np.asarray(seen)[first // scale : last // scale] > 0
        clean = np.flatnonzero(~changed)
        return max(clean.min(), len(changed) - 1 - clean.max())

    deep = jnp.ones((1, 8 // FACTOR, 160 // FACTOR, 32))
    assert spoilt("grow", 2, 160, 48, 112, deep) == margin() == 16
    assert 0 < FACTOR * spoilt("shrink", 2, 160, 48, 112) <= margin()
    assert spoilt("deepen", 8, 80, 26, 54) == deep_margin() == 10


@pytest.mark.parametrize("size, norm", [((13, 21), "instance"), ((3, 9, 10), "group")])
def test_the_three_parts_are_the_network(size, norm):
    net, params = _net_and_params(len(size), norm=norm)
    x, t = jax.random.normal(jax.random.key(2), (2, *size, 2)), jnp.array([3, 700])

    @jax.jit
    def parts(x):
        small = net.apply(params, x, t, method="shrink")
        deep = net.apply(params, small, t, method="deepen")
        return small, deep, net.apply(params, x, deep, t, method="grow")

    small, deep, out = parts(x)
    coarse = tuple(-(-n // 8) * 8 // FACTOR for n in size)
    assert small.shape == (2, *coarse, 8) and deep.shape == (2, *coarse, 32)
    expected = jax.jit(net.apply)(params, x, t)
    np.testing.assert_allclose(out, expected, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("rank", [2, 3])
def test_operations_are_those_of_the_kernels(rank):
    """Every kernel is applied once per voxel of its level; in 3D the published 272 kFLOP per voxel in all."""
    net = UNet()
    x, t = jnp.zeros((1, *(8,) * rank, 2)), jnp.zeros(1, int)
    params = jax.eval_shape(net.init, jax.random.key(0), x, t)["params"]
    levels = {
        "c1": 0,
        "d1": 1,
        "c2": 1,
        "d2": 2,
        "c3": 2,
        "d3": 3,
        "c4": 3,
        "u1": 3,
        "c5": 2,
        "u2": 2,
        "c6": 1,
        "u3": 1,
    }
    levels |= {"c7": 0, "out": 0}

    def count(stages):
        kernels = [(s, layer["kernel"].size) for s in stages for layer in params[s].values() if "kernel" in layer]
        return sum(size / 2 ** (rank * levels[stage]) for stage, size in kernels)

    expected = [count(stages) for stages in (["c1", "d1", "c2", "d2"], ["c3", "d3", "c4", "u1", "c5"], levels)]
    np.testing.assert_allclose(operations(rank, 16, in_channels=2), expected)
    assert rank == 2 or round(2e-3 * expected[-1]) == 272


@pytest.mark.parametrize("norm, local", [("none", True), ("group", True), ("instance", False)])
def test_far_pixels_matter_to_instance_norm_only(norm, local):
    net, params = _net_and_params(norm=norm)
    radius = receptive_field()
    x = jax.random.normal(jax.random.key(1), (1, 16, 2 * radius + 16, 2))
    changed = x.at[:, :, 7 + radius + 1 :].multiply(3.0)
    near = slice(0, 8)
    difference = np.abs(_apply(net, params, x) - _apply(net, params, changed))[:, :, near].max()
    assert difference < 1e-6 if local else difference > 1e-4


@pytest.mark.parametrize("norm", ["none", "group"])
def test_moves_with_the_image(norm):
    """Moving the window by 8 voxels moves the output by 8, away from the border."""
    net, params = _net_and_params(norm=norm)
    radius = receptive_field()
    x = jax.random.normal(jax.random.key(1), (1, 8, 2 * radius + 40, 2))
    whole, part = _apply(net, params, x), _apply(net, params, x[:, :, 8:])
    inside = slice(radius, -radius)
    assert whole.std() > 1e-3
    np.testing.assert_allclose(part[:, :, inside], whole[:, :, 8:][:, :, inside], atol=1e-5)


@pytest.mark.parametrize("size", [(13, 21), (1, 9), (3, 9, 10)])
def test_any_size_is_the_reflected_image_cropped(size):
    net, params = _net_and_params(len(size))
    x = jax.random.normal(jax.random.key(2), (2, *size, 2))
    padding = [(0, 0), *((0, -n % 8) for n in size), (0, 0)]
    padded = np.pad(np.asarray(x), padding, mode="reflect")
    expected = _apply(net, params, padded)[(slice(None), *(slice(n) for n in size))]
    actual = _apply(net, params, x)
    assert actual.shape == (2, *size, 1)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_bfloat16_is_near_float32(norm):
    net, params = _net_and_params(norm=norm)
    half = UNet(features=4, norm=norm, dtype=jnp.bfloat16)
    x, t = jax.random.normal(jax.random.key(3), (1, 16, 16, 2)), jnp.array([7])
    shapes = jax.eval_shape(half.init, jax.random.key(0), x, t)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    expected, actual = _apply(net, params, x), _apply(half, params, x)
    assert actual.dtype == np.float32
    error = np.abs(actual - expected).mean() / np.abs(expected).mean()
    assert 0 < error < 0.1


def test_remat_changes_nothing():
    net, params = _net_and_params()
    x, t = jax.random.normal(jax.random.key(4), (1, 16, 24, 2)), jnp.array([7])

    def gradient(net):
        return jax.jit(jax.grad(lambda p: (net.apply(p, x, t) ** 2).mean()))(params)

    plain, again = gradient(net), gradient(UNet(features=4, remat=True))
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(a).max(), 1e-3), rtol=1e-4)


def test_images_of_a_batch_are_independent():
    """Also of their steps: the network neither pools over the batch nor mixes up t."""
    net, params = _net_and_params()
    x = jax.random.normal(jax.random.key(5), (3, 32, 32, 2))
    t = jnp.array([0, 10, 999])
    together = jax.jit(net.apply)(params, x, t)
    for i in range(3):
        np.testing.assert_allclose(_apply(net, params, x[i : i + 1], t[i])[0], together[i], atol=1e-4)
    assert np.abs(_apply(net, params, x[:1], 999) - _apply(net, params, x[:1], 0)).max() > 1e-4


def test_time_embedding_closed_form():
    e = np.asarray(time_embedding(jnp.array([0, 1, 250])))
    assert e.shape == (3, 128)
    np.testing.assert_allclose(e[0], np.repeat([0.0, 1.0], 64), atol=1e-7)
    ends = [np.sin(1), np.sin(1e-4), np.cos(1), np.cos(1e-4)]
    np.testing.assert_allclose(e[1, [0, 63, 64, 127]], ends, rtol=1e-5)
    np.testing.assert_allclose(e[2, :64] ** 2 + e[2, 64:] ** 2, 1, atol=1e-5)


def test_pixel_shuffle_places_every_channel():
    x = jnp.arange(2 * 3 * 1 * 16, dtype=jnp.float32).reshape(1, 2, 3, 1, 16)
    y = np.asarray(pixel_shuffle(x))
    assert y.shape == (1, 4, 6, 2, 2)
    for c, dz, dy, dx in np.ndindex(2, 2, 2, 2):
        np.testing.assert_array_equal(y[:, dz::2, dy::2, dx::2, c], x[..., c * 8 + dz * 4 + dy * 2 + dx])


def _lax_conv(x, kernel, stride, padding):
    space = "ZYX"[-(x.ndim - 2) :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    rank = len(space)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * rank, [(padding, padding)] * rank, dimension_numbers=numbers
    )


@pytest.mark.parametrize(
    "convolve, size, stride, padding",
    [(same_conv, 3, 1, 1), (winograd.same_conv, 3, 1, 1), (same_conv, 1, 1, 0), (down_conv, 4, 2, 1)],
)
@pytest.mark.parametrize("space", [(8, 12), (2, 2), (10, 6), (4, 6, 8), (2, 2, 2), (6, 4, 2)])
def test_convolution_equals_lax(convolve, size, stride, padding, space):
    """Whatever form the convolution takes on this backend, value and both gradients are the plain one's."""
    keys = jax.random.split(jax.random.key(6), 3)
    x = jax.random.normal(keys[0], (2, *space, 5))
    kernel = jax.random.normal(keys[1], (*(size,) * len(space), 5, 7)) / size ** len(space)
    cotangent = jax.random.normal(keys[2], (2, *(n // stride for n in space), 7))

    def value_and_gradients(function):
        y, pull = jax.vjp(function, x, kernel)
        return y, *pull(cotangent)

    actual = jax.jit(lambda: value_and_gradients(convolve))()
    expected = jax.jit(lambda: value_and_gradients(lambda x, k: _lax_conv(x, k, stride, padding)))()
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("space", [(1, 5), (3, 4), (5, 9), (9, 3), (1, 3, 4), (3, 5, 4), (5, 3, 3), (9, 4, 5)])
def test_a_convolution_of_size_3_takes_any_space(space):
    """Depths that are no multiple of the blocks it may be cut into, and the published width."""
    keys = jax.random.split(jax.random.key(7), 2)
    x = jax.random.normal(keys[0], (1, *space, 128))
    kernel = jax.random.normal(keys[1], (*(3,) * len(space), 128, 16)) * (128 * 3 ** len(space)) ** -0.5
    expected = _lax_conv(x, kernel, 1, 1)
    np.testing.assert_allclose(winograd.same_conv(x, kernel), expected, atol=1e-5 * np.abs(expected).max())


def test_gradients_of_a_wide_convolution_of_size_3():
    """As wide as the published network's widest, in 2D: rounding stays small where sums are long."""
    keys = jax.random.split(jax.random.key(8), 3)
    x, dy = (jax.random.normal(key, (1, 32, 32, 128)) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (3, 3, 128, 128)) * (128 * 9) ** -0.5

    def pulled(convolve):
        return jax.jit(lambda: jax.vjp(convolve, x, kernel)[1](dy))()

    for actual, expected in zip(pulled(winograd.same_conv), pulled(lambda x, k: _lax_conv(x, k, 1, 1)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_the_network_takes_the_fast_form_where_it_pays():
    """Large convolutions on a CPU become slabs, small and shared ones stay whole, but in 3D small ones become 2D."""

    def kernels(*space, **options):
        x, kernel = jnp.zeros((1, *space, 64)), jnp.zeros((*(3,) * len(space), 64, 64))
        text = jax.jit(lambda x, k: same_conv(x, k, **options)).lower(x, kernel).as_text()
        return text.count("stablehlo.convolution"), text.count("[b, 0, 1, 2, f]x")

    assert kernels(64, 64) == (6, 0) and kernels(8, 8) == kernels(64, 64, direct=True) == (1, 0)
    assert kernels(2, 8, 8) == (1, 0) and kernels(2, 8, 8, direct=True) == (1, 1) and kernels(8, 64, 64) == (6, 0)


def test_a_convolution_keeps_the_type_it_is_given():
    x, kernel = jnp.ones((1, 8, 8, 4), jnp.bfloat16), jnp.ones((3, 3, 4, 4), jnp.bfloat16)
    assert same_conv(x, kernel).dtype == jnp.bfloat16
    np.testing.assert_array_equal(same_conv(x, kernel), _lax_conv(x, kernel, 1, 1))


@pytest.mark.parametrize(
    "options, shape, steps, word",
    [
        ({"norm": "batch"}, (1, 8, 8, 2), 1, "norm"),
        ({"features": 7}, (1, 8, 8, 2), 1, "features"),
        ({}, (8, 8, 2), 1, "x:"),
        ({}, (2, 8, 8, 2), 1, "t:"),
    ],
)
def test_mistakes_are_named(options, shape, steps, word):
    with pytest.raises(InputError, match=word):
        UNet(**options).init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(steps, int))
