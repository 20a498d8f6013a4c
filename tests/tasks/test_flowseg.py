"""The segmentation task: what its loss counts, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth import cli, keys
from jaxsynth.errors import InputError
from jaxsynth.seg import flows
from jaxsynth.tasks import flowseg


def make(target="heat", **overrides):
    values = {"model.features": 4, "model.norm": "none", "seg.capacity": 4, "optim.schedule": "constant"} | overrides
    values["seg.target"] = target
    return cli.read_config("configs/flowseg.py", [f"--config.{name}={value}" for name, value in values.items()])


def example(shape):
    """Two boxes, brighter than the background, in two images of which the second has less to see."""
    labels = np.zeros((2, *shape), np.int32)
    labels[(slice(None), ..., slice(2, 8), slice(2, 7))] = 1
    labels[(0, ..., slice(9, 15), slice(8, 16))] = 2
    image = 0.8 * (labels > 0) + np.random.default_rng(0).normal(0, 0.05, labels.shape)
    return {"image": jnp.asarray(image[..., None], jnp.float32), "labels": jnp.asarray(labels)}


def begin(parts, shape):
    return jax.jit(lambda: flowseg.init(parts, keys.root(0), shape))()


@pytest.fixture(scope="module")
def parts():
    return flowseg.build(make())


def test_it_learns_an_example():
    parts, batch = flowseg.build(make(**{"optim.learning_rate": 5e-3})), example((16, 16))
    state = begin(parts, batch["image"].shape)
    step = jax.jit(lambda s: flowseg.step(parts, s, batch, keys.root(0)))
    losses = []
    for _ in range(30):
        state, scalars = step(state)
        losses.append(float(scalars["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    assert int(state.step) == 30
    wanted = flowseg.targets(parts, batch["labels"])
    expected = flowseg.losses(parts, state.ema_params, batch, wanted).mean()
    assert float(flowseg.validate(parts, state, batch, keys.root(0))["loss"]) == pytest.approx(float(expected))


@pytest.mark.parametrize("shape", [(16, 16), (8, 16, 16)])
def test_2d_and_3d_are_alike(shape):
    parts, batch = flowseg.build(make("centroid")), example(shape)
    state = jax.eval_shape(lambda: flowseg.init(parts, keys.root(0), batch["image"].shape))
    after, scalars = jax.eval_shape(lambda s: flowseg.step(parts, s, batch, keys.root(0)), state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state) and scalars.keys() == {"loss", "grad_norm"}
    shown = jax.eval_shape(lambda s: flowseg.preview(parts, s, batch, keys.root(0)), state)
    assert all(volume.shape == shape for volume in shown.values())


class Told:
    """A network that says what it was told to say, before its tanh."""

    def __init__(self, raw):
        self.raw = raw

    def apply(self, params, images, method):
        return getattr(self, method)


@pytest.mark.parametrize("kind", ["heat", "centroid"])
def test_the_loss_is_what_it_says(kind):
    parts = flowseg.build(make(kind))
    batch = example((16, 16))
    wanted = np.asarray(flowseg.targets(parts, batch["labels"]))
    inside = wanted[..., 0]
    # Sure of the foreground, flows of length 1 or less.
    sure = 40 * (2 * inside - 1) if kind == "heat" else np.where(inside > 0, 40.0, 0.0)
    perfect = np.concatenate([sure[..., None], -np.arctanh(np.clip(wanted[..., 1:], -0.999999, 0.999999))], -1)
    told = dataclasses.replace(parts, net=Told(jnp.asarray(perfect, jnp.float32)))
    np.testing.assert_allclose(flowseg.losses(told, None, batch, wanted), 0, atol=1e-5)
    # The foreground at a half everywhere, and flows the other way round.
    half = np.concatenate([np.full_like(sure, 0.0 if kind == "heat" else np.arctanh(0.5))[..., None],
                           -perfect[..., 1:]], -1)  # fmt: skip
    told = dataclasses.replace(parts, net=Told(jnp.asarray(half, jnp.float32)))
    weight = np.clip(inside, flowseg.LEAST_WEIGHT, None)
    error = 4 * np.square(wanted[..., 1:]).mean(-1)
    expected = (np.log(2) if kind == "heat" else 0.5) + (error * weight).sum((1, 2)) / weight.sum((1, 2))
    np.testing.assert_allclose(flowseg.losses(told, None, batch, wanted), expected, rtol=1e-4)


def test_what_lies_beyond_the_image_does_not_count(parts):
    batch = example((16, 16))
    params = begin(parts, batch["image"].shape).params
    outside = batch["labels"].at[:, :, 12:].set(-1)
    wanted = flowseg.targets(parts, outside)
    loss = flowseg.losses(parts, params, batch | {"labels": outside}, wanted)
    other = wanted.at[:, :, 12:].set(7.0)
    np.testing.assert_array_equal(flowseg.losses(parts, params, batch | {"labels": outside}, other), loss)
    assert (flowseg.losses(parts, params, batch, other) != loss).all()
    nothing = batch | {"labels": jnp.full_like(outside, -1)}
    np.testing.assert_array_equal(flowseg.losses(parts, params, nothing, wanted), 0)


def test_predictions_are_in_axis_order_towards_the_centre(parts):
    image = example((16, 16))["image"]
    params = begin(parts, image.shape).params
    raw = parts.net.apply({"params": params}, image)
    found = flowseg.predict(parts, params, image)
    np.testing.assert_allclose(found[..., 0], (1 + raw[..., 0]) / 2)
    np.testing.assert_array_equal(found[..., 1:], -raw[..., 1:])
    np.testing.assert_array_equal(flows.from_published(flows.to_published(found)), found)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("seg.target", "heart", "expected one of heat, centroid"), ("model.norm", "batch", "norm"),
     ("model.remat", "sometimes", "remat")],
)  # fmt: skip
def test_values_that_make_no_sense(name, value, message):
    config = make()
    section, key = name.split(".")
    config[section][key] = value
    with pytest.raises(InputError, match=message):
        parts = flowseg.build(config)
        flowseg.init(parts, keys.root(0), (1, 16, 16, 1))
