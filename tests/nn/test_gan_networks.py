"""The GAN's networks: what their outputs depend on, sizes, precision. Their values are compared in tests/peers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxsynth.data import tile_grid, tiles
from jaxsynth.errors import InputError
from jaxsynth.nn import gan
from jaxsynth.nn.blocks import LeakyUpStage
from jaxsynth.nn.gan import Critic, Generator
from jaxsynth.nn.unet import FACTOR


def _drawn(net, rank=2, size=32):
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *(size,) * rank, 2)))
    rng = np.random.default_rng(0)

    def values(shape):
        centre, spread = (0, np.sqrt(2 / np.prod(shape[:-1]))) if len(shape) > 1 else (0.3, 0.3)
        return jnp.asarray(centre + spread * rng.standard_normal(shape), jnp.float32)

    return jax.tree.map(lambda leaf: values(leaf.shape), shapes)


def _apply(net, params, x):
    return np.asarray(jax.jit(net.apply)(params, x))


def _seen(net, columns, size):
    """Output columns that see a lit column of the input, for each of `columns`: bool [len(columns), X].

    With equal positive weights, no biases and no norm, all that sees anything above 0 is above what nothing gives. What
    a kernel gives of a single column sums to 1, so that the farthest reach is not lost to rounding.
    """
    params = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, leaf.shape[0] / np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 0.0),
        _drawn(net),
    )
    lit = np.broadcast_to((np.arange(size) == columns[:, None])[:, None, :, None], (len(columns), 16, size, 2)).astype(
        np.float32
    )
    return (_apply(net, params, lit) > _apply(net, params, np.zeros_like(lit[:1]))).any((1, 3))


@pytest.mark.parametrize("smooth", [False, True])
def test_the_generators_receptive_field_is_exact(smooth):
    """The reach of a lit column, for eight neighbours: all places on the grid of the halvings."""
    radius = gan.receptive_field(smooth)
    columns = 8 * (radius // 8 + 1) + np.arange(8)
    seen = _seen(Generator(features=4, norm="none", smooth=smooth), columns, 16 * (radius // 8 + 2))
    assert not seen[:, [0, -1]].any()
    assert max(np.abs(np.flatnonzero(row) - column).max() for row, column in zip(seen, columns, strict=True)) == radius


def test_the_critics_receptive_field_is_exact():
    """Logit 6 of 12 sees 16 * 6 - 47 to 16 * 6 + 47, and no more."""
    columns = np.array([48, 49, 96, 143, 144])
    seen = _seen(Critic(features=2, norm="none"), columns, 12 * 16)
    np.testing.assert_array_equal(seen[:, 6], [False, True, True, True, False])


@pytest.mark.parametrize("rank", [2, 3])
def test_a_smooth_generator_makes_no_stripes(rank):
    """Of an even image it makes an even one, of whatever weights, as far as the image's ends are not seen."""
    net, smooth = (Generator(features=4, norm="none", smooth=smooth) for smooth in (False, True))
    params, far = _drawn(net, rank), gan.receptive_field(smooth=True)
    x = jnp.full((1, 2 * far + 10, *(16,) * (rank - 1), 2), 0.5)
    there, gone = (special.logit(_apply(kind, params, x))[:, far:-far].std(1).mean() for kind in (net, smooth))
    assert there > 0.1 and gone < 1e-5


@pytest.mark.parametrize("smooth", [False, True])
def test_tiles_are_the_whole(smooth):
    net = Generator(features=4, norm="group", residual=True, smooth=smooth)
    params = _drawn(net)
    x = jax.random.normal(jax.random.key(2), (150, 21, 2))
    stages = tiles.Stages(
        shrink=lambda x, t, cond: net.apply(params, x, method="shrink"),
        deepen=lambda h, t: net.apply(params, h, method="deepen"),
        grow=lambda x, deep, t, cond: net.apply(params, x, deep, method="grow"),
        margin=gan.margin(smooth),
        deep_margin=gan.deep_margin(smooth),
    )
    grid = tile_grid.plan_tiles(x.shape[:-1], (104, 24), margin=gan.margin(smooth))
    deep_grid = tile_grid.plan_tiles(grid.coarse(FACTOR).shape, (28, 6), margin=gan.deep_margin(smooth), multiple=2)
    assert grid.num_tiles > 1 and deep_grid.num_tiles > 1
    tiled = jax.jit(tiles.tiled(stages, grid, deep_grid=deep_grid))(x, jnp.int32(0), None)
    whole = _apply(net, params, x[None])[0]
    assert whole.std() > 0.01
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


@pytest.mark.parametrize("rank", [2, 3])
def test_operations_are_those_of_the_kernels(rank):
    """Every kernel is applied once per voxel of its level."""
    image = jnp.zeros((1, *(32,) * rank, 2))
    levels = {"c1": 0, "d1": 1, "c2": 1, "d2": 2, "c3": 2, "d3": 3, "c4": 3, "u1": 3, "c5": 2, "u2": 2, "c6": 1}
    levels |= {"u3": 1, "c7": 0, "out": 0}
    params = jax.eval_shape(Generator().init, jax.random.key(0), image)["params"]

    def count(stages):
        layers = ((stage, arrays["kernel"]) for stage in stages for arrays in params[stage].values())
        return sum(kernel.size / 2 ** (rank * levels[stage]) for stage, kernel in layers)

    expected = [count(stages) for stages in (["c1", "d1", "c2", "d2"], ["c3", "d3", "c4", "u1", "c5"], levels)]
    np.testing.assert_allclose(gan.operations(rank, 16), expected)

    params = jax.eval_shape(Critic().init, jax.random.key(0), image)["params"]
    total = sum(params[f"conv{i}"]["kernel"].size / 2 ** (rank * min(i, 4)) for i in range(1, 7))
    np.testing.assert_allclose(gan.critic_operations(rank, 64), total)


@pytest.mark.parametrize("size", [(17, 40), (16, 33, 31)])
def test_sizes_are_rounded_up(size):
    """The generator's images are as large as their masks, the critic's maps a 16th."""
    x = jnp.zeros((3, *size, 2))
    made = jax.eval_shape(Generator(features=4).init_with_output, jax.random.key(0), x)[0]
    assert made.shape == (3, *size, 1)
    logits = jax.eval_shape(Critic(features=2).init_with_output, jax.random.key(0), x)[0]
    assert logits.shape == (3, *(-(-n // 16) for n in size), 1)


def test_at_first_images_are_grey_and_all_weights_learn():
    net = Generator(features=4, norm="group")
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 2))
    params = jax.jit(net.init)(jax.random.key(1), x)["params"]

    def loss(net, params):
        y = net.apply({"params": params}, x)
        return jnp.square(y - 0.2).mean(), y

    def gradients(net):
        return jax.jit(jax.grad(lambda params: loss(net, params), has_aux=True))(params)

    plain, y = gradients(net)
    assert 1e-4 < y.std() and jnp.abs(y - 0.5).max() < 0.3
    for path, gradient in jax.tree_util.tree_leaves_with_path(plain):
        if path[-1].key == "kernel":
            assert jnp.abs(gradient).max() > 1e-7, path
    # Computing again on the way back, and the plain form of convolutions, change nothing.
    again, _ = gradients(Generator(features=4, norm="group", remat=True, direct=True))
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(a).max(), 1e-3), rtol=1e-4)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_smooth_doublings_at_first_pass_on_what_they_see(norm):
    """In 3D, where all eight voxels of one begin alike: a little change of the input is one of the output nearly
    everywhere, not a jump at a few places."""
    stage = LeakyUpStage(32, norm, smooth=True)
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 4, 32))
    params = jax.jit(stage.init)(jax.random.key(1), x)
    change = 1e-3 * jax.random.normal(jax.random.key(2), x.shape)
    before, after = (_apply(stage, params, own) for own in (x, x + change))
    changed = np.median(np.abs(after - before)) / np.median(np.abs(before)) / 1e-3
    assert 0.1 < changed < 10


def test_the_critic_at_first_has_logits_near_one_and_in_other_forms_the_same():
    """He et al. 2015: so that halvings neither blow up a signal nor let it die."""
    net = Critic(features=8)
    x = jax.random.normal(jax.random.key(0), (4, 40, 56, 2))
    params = jax.jit(net.init)(jax.random.key(1), x)
    expected = _apply(net, params, x)
    assert 0.3 < expected.std() < 3
    np.testing.assert_allclose(_apply(net.clone(direct=True), params, x), expected, atol=1e-4)
    half = _apply(net.clone(dtype=jnp.bfloat16), params, x)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - expected).mean() < 0.1 * expected.std()


@pytest.mark.parametrize(
    "net, shape, word",
    [
        (Generator(norm="batch"), (1, 8, 8, 2), "norm"),
        (Generator(features=7), (1, 8, 8, 2), "features"),
        (Generator(), (8, 8, 2), "x:"),
        (Critic(norm="batch"), (1, 32, 32, 2), "norm"),
        (Critic(features=0), (1, 32, 32, 2), "features"),
        (Critic(), (32, 32, 2), "x:"),
        (Critic(), (1, 16, 16, 16, 2), "more than 16 voxels"),
    ],
)
def test_mistakes_are_named(net, shape, word):
    with pytest.raises(InputError, match=word):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))
