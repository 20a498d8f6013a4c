"""One training step on eight devices, split over examples and along y: the same numbers, an even share of the work,
and little said between the devices."""

import math
import re
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from jaxsynth import checkpoint, devices, keys, train_programs
from jaxsynth.errors import InputError
from jaxsynth.tasks import ddpm

PATCHES = {2: (256, 64), 3: (16, 128, 16)}
# Rank, and devices along (data, space); the first of each rank is the reference.
ARRANGEMENTS = [(2, 1, 1), (2, 8, 1), (2, 1, 8), (3, 1, 1), (3, 2, 4)]
SPLIT = [a for a in ARRANGEMENTS if a[1:] != (1, 1)]


def parts(remat="never"):
    """Always with convolutions of the form that devices sharing a patch use, so that the work compares."""
    config = common.get_config()
    config.parallel.space = 2
    config.model.remat = remat
    config.model.features = 4
    config.optim.schedule = "constant"
    return ddpm.build(config)


def init(shape):
    return lambda key: ddpm.init(parts(), key, shape)


def compiled(arrangement):
    ndim, data, space = arrangement
    mesh = devices.make_mesh(jax.devices()[: data * space], space)
    shape = (8, *PATCHES[ndim], 1)
    everywhere, split = devices.replicated(mesh), devices.split_space(mesh, ndim)
    state = jax.eval_shape(init(shape), keys.root(0))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state)
    batch = jax.ShapeDtypeStruct(shape, "float32", sharding=split)
    return train_programs.compile_step(ddpm, parts(), keys.root(0), state, batch)


@pytest.fixture(scope="module")
def steps():
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(ARRANGEMENTS, pool.map(compiled, ARRANGEMENTS), strict=True))


@pytest.fixture(scope="module")
def states():
    """The state before the first step, per rank, on the host."""
    return {ndim: jax.device_get(jax.jit(init((8, *patch, 1)))(keys.root(0))) for ndim, patch in PATCHES.items()}


@pytest.fixture(scope="module")
def results(steps, states):
    """State and scalars after one step of each."""
    made = {}
    for arrangement, step in steps.items():
        patch = PATCHES[arrangement[0]]
        batch = np.random.default_rng(0).normal(size=(8, *patch, 1)).astype(np.float32) * 0.3
        (state, rows, _), _ = step.input_shardings
        placed = jax.device_put(states[arrangement[0]], state), jax.device_put(batch, rows)
        made[arrangement] = jax.device_get(step(*placed, keys.root(0)))
    return made


@pytest.mark.parametrize("arrangement", SPLIT)
def test_a_split_step_is_the_whole_one(results, arrangement):
    """Loss, gradients (the optimiser's first momentum) and parameters, to the rounding of sums.

    Rounding moves a few voxels over the kink of a PReLU, and each then counts for a small weight's gradient, a sum of
    random signs, as much as the root of the number of voxels; all gradients together hardly notice.
    """
    (state, scalars), (whole, expected) = results[arrangement], results[(arrangement[0], 1, 1)]
    np.testing.assert_allclose(scalars["loss"], expected["loss"], rtol=1e-6)
    for one, other in ((state.opt_state, whole.opt_state), (state.params, whole.params)):
        one, other = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
        assert np.linalg.norm(one - other) < 3e-4 * np.linalg.norm(other)


@pytest.mark.parametrize("arrangement", SPLIT)
def test_every_device_has_an_eighth_of_the_work(steps, arrangement):
    whole, share = (steps[a].cost_analysis()["flops"] for a in ((arrangement[0], 1, 1), arrangement))
    assert share == pytest.approx(whole / 8, rel=0.05)


@pytest.mark.parametrize("arrangement", SPLIT)
def test_devices_exchange_gradients_and_borders_alone(steps, states, arrangement):
    ndim, data, space = arrangement
    said = devices.communication(steps[arrangement])
    gradients = 4 * sum(leaf.size for leaf in jax.tree.leaves(states[ndim].params))
    assert set(said) == ({"all-reduce", "collective-permute"} if space > 1 else {"all-reduce"})
    # Summed over both axes one after the other where both are there; the loss is one number more. Where only y is
    # split, sums of what all devices have (of the steps' embedding) need no exchange.
    assert 0.7 * gradients < said["all-reduce"] < 1.01 * gradients * (2 if min(data, space) > 1 else 1)
    if space > 1:  # of the 13 layers that look at neighbours up to two rows each, on the way there and back
        batch, patch = 8 // data, PATCHES[ndim]
        row = 4 * batch * math.prod(patch) // patch[-2]
        assert said["collective-permute"] < 13 * 2 * 2 * 48 * row


@pytest.mark.parametrize("arrangement", SPLIT)
def test_every_device_draws_its_own_noise_only(steps, arrangement):
    """Random bits are the step's only large arrays of unsigned integers."""
    whole = 8 * math.prod(PATCHES[arrangement[0]])
    drawn = [math.prod(map(int, s.split(","))) for s in re.findall(r"u32\[([\d,]+)\]", steps[arrangement].as_text())]
    assert max(drawn) == whole // 8


def test_the_state_is_donated_and_a_restored_one_fits(steps, states, tmp_path):
    """The compiled step takes its own result and a restored checkpoint; it would refuse what needs compiling again."""
    step = steps[(2, 8, 1)]
    place, split, _ = step.input_shardings[0]
    batch = jax.device_put(np.zeros((8, *PATCHES[2], 1), np.float32), split)
    state = first = jax.device_put(states[2], place)
    for _ in range(2):
        state, _ = step(state, batch, keys.root(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, state, {"config": {}}, 1.0)
        manager.wait_until_finished()
        restored = checkpoint.restore_latest(manager, state)
    state, _ = step(state, batch, keys.root(0))
    again, _ = step(restored, batch, keys.root(0))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))


def test_the_key_is_an_argument(steps, states):
    """The same program with another seed draws other noise: nothing is compiled for it."""
    step = steps[(2, 1, 1)]
    place, split, _ = step.input_shardings[0]
    batch = jax.device_put(np.full((8, *PATCHES[2], 1), 0.1, np.float32), split)
    losses = [float(step(jax.device_put(states[2], place), batch, keys.root(seed))[1]["loss"]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_collectives_are_counted_by_their_results():
    """A sum of [4, 2] over eight devices, and a gather of [8] from parts of one."""
    mesh = devices.make_mesh()

    def both(x):
        return jax.lax.psum(x, "data"), jax.lax.all_gather(x[0], "data")

    spec = jax.sharding.PartitionSpec("data")
    shared = jax.shard_map(
        both, mesh=mesh, in_specs=spec, out_specs=(jax.sharding.PartitionSpec(), spec), check_vma=False
    )
    program = jax.jit(shared).lower(jax.ShapeDtypeStruct((32, 2), "float32")).compile()
    assert devices.communication(program) == {"all-reduce": 4 * 4 * 2, "all-gather": 4 * 8 * 2}
    alone = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((8,), "float32")).compile()
    assert devices.communication(alone) == {}


def test_a_step_that_does_not_fit_is_refused(steps, states):
    step = steps[(2, 1, 1)]
    place, split, _ = step.input_shardings[0]
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), states[2], place)
    batch = jax.ShapeDtypeStruct((8, *PATCHES[2], 1), "float32", sharding=split)
    needed = train_programs.memory_needed(step)
    # The state with two moments and the average, and what the widest level keeps for the way back.
    least = 4 * sum(leaf.size for leaf in jax.tree.leaves(states[2])) + 4 * 8 * math.prod(PATCHES[2]) * 12
    assert least < needed < 50 * least
    compiled = [
        train_programs.compile_fitting(ddpm, parts(), keys.root(0), state, batch, limit)
        for limit in (needed - 1, needed)
    ]
    assert compiled[0] is None and compiled[1] is not None


@pytest.mark.parametrize("value", [True, False, "always", "never", "auto"])
def test_remat_may_be_a_bool_as_in_earlier_versions(value):
    config = common.get_config().to_dict()
    config["model"]["remat"] = value
    assert ddpm.build(ConfigDict(config)).net.remat == (value in (True, "always"))


def test_an_unknown_remat_is_named():
    config = common.get_config()
    config.model.remat = "sometimes"
    with pytest.raises(InputError, match=r"model\.remat"):
        ddpm.build(config)
