"""Consistency distillation: its loss on Gaussian data, where all is known, and the task as `train` runs it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from configs import distill as distill_config
from jaxsynth import checkpoint, keys
from jaxsynth.data import intensity as intensities
from jaxsynth.data import volumes
from jaxsynth.diffusion import gaussian, samplers
from jaxsynth.diffusion.schedule import make_schedule
from jaxsynth.errors import InputError
from jaxsynth.tasks import ddpm, distill
from jaxsynth.train import train

SCHEDULE = make_schedule("cosine", 1000)
MEAN, SD = 0.1, 0.2
T_MAX = 600


def levels(t, ndim=4):
    tables = np.sqrt(SCHEDULE.alphas_bar), np.sqrt(1 - SCHEDULE.alphas_bar)
    return [gaussian.at(table, t, ndim) for table in tables]


def told(x0, x, t, prediction):
    """The prediction of the given kind that says x0 of x."""
    a, s = levels(t)
    noise = (x - a * x0) / s
    return {"x0": x0, "noise": noise, "v": a * noise - s * x0}[prediction]


def teacher(prediction):
    """The exact denoiser of voxels drawn from N(MEAN, SD^2): the posterior mean."""

    def denoise(x, t, cond):
        a, s = levels(t)
        return told(MEAN + a * SD**2 / (a**2 * SD**2 + s**2) * (x - a * MEAN), x, t, prediction)

    return denoise


def end_of_the_way(prediction, shrink=1.0):
    """The exact consistency function: where the probability flow of those voxels ends; `shrink` spoils it."""

    def denoise(x, t, cond):
        a, s = levels(t)
        end = MEAN + SD / jnp.sqrt(a**2 * SD**2 + s**2) * (x - a * MEAN)
        return told(MEAN + shrink * (end - MEAN), x, t, prediction)

    return denoise


def draws(count=64):
    key = keys.root(3)
    x0 = MEAN + SD * jax.random.normal(keys.stream(key, "x0"), (count, 8, 8, 1))
    noise = jax.random.normal(keys.stream(key, "noise"), x0.shape)
    return x0, jnp.linspace(0, T_MAX - 1, count).astype(jnp.int32), noise


def loss_of(student, target, prediction, num_times=24):
    later = distill.way(SCHEDULE, T_MAX, num_times)
    arrays = (*draws(), SCHEDULE, later)
    return distill.consistency_loss(student, target, teacher(prediction), *arrays, prediction=prediction)


@pytest.mark.parametrize("prediction", gaussian.PREDICTIONS)
def test_the_exact_consistency_function_has_no_loss(prediction):
    exact = end_of_the_way(prediction)
    loss = loss_of(exact, exact, prediction)
    assert loss.shape == (64,)
    assert loss.max() < 0.01 * SD
    # Ten per cent off, the student's own loss tells: the distance is about that of the images.
    spoilt = loss_of(end_of_the_way(prediction, 0.9), exact, prediction)
    a, s = levels(draws()[1], 1)
    amplified = jnp.maximum(1, s / a) if prediction == "noise" else 1
    np.testing.assert_allclose((spoilt * amplified)[1:], 0.1 * SD, rtol=0.35)


def test_the_teacher_itself_is_no_consistency_function():
    """Its one-step estimate is the posterior mean, which at much noise is far from any image."""
    own = teacher("x0")
    assert loss_of(own, own, "x0")[-20:].min() > 10 * loss_of(end_of_the_way("x0"), end_of_the_way("x0"), "x0").max()


def test_gradients_flow_through_the_student_alone():
    def through(student, target):
        return loss_of(end_of_the_way("x0", student), end_of_the_way("x0", target), "x0").sum()

    student, target = jax.grad(through, argnums=(0, 1))(0.9, 0.9)
    assert target == 0 and student != 0


@pytest.mark.parametrize(("t_max", "num_times"), [(1000, 24), (500, 8), (50, 200), (1, 4), (7, 1)])
def test_every_way_ends_at_the_image(t_max, num_times):
    later = distill.way(SCHEDULE, t_max, num_times)
    assert later.shape == (t_max,) and later[0] == -1
    assert (later < np.arange(t_max)).all() and (later >= -1).all() and (np.diff(later) >= 0).all()
    t, count = t_max - 1, 0
    while t >= 0:
        t, count = later[t], count + 1
    assert min(num_times, t_max) / 2 <= count <= num_times + 30
    with pytest.raises(InputError, match="num_times"):
        distill.way(SCHEDULE, t_max, 0)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four uint16 images of soft blobs."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    for i in range(4):
        cy, cx = rng.uniform(8, 24, 2)
        blob = 3000 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 40) + rng.normal(500, 100, y.shape)
        volumes.write(folder / f"{i}.tif", blob.clip(0).astype(np.uint16), spacing_um=(0.5, 0.5))
    return folder


def shortened(config, images, num_steps):
    config.data.path = str(images)
    config.data.batch_size = 2
    config.optim.name = "adamw"
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 0
    config.optim.ema_decay = 0.9
    config.train.num_steps = num_steps
    config.train.val_every = config.train.checkpoint_every = config.train.preview_every = num_steps
    return config


@pytest.fixture(scope="module")
def taught(images, tmp_path_factory):
    """The run of a tiny teacher that predicts v. Untrained it says 0, which is right for voxels from N(0, 1): one
    evaluation then gives a x_t, its whole way x_t."""
    workdir = tmp_path_factory.mktemp("runs") / "teacher"
    config = shortened(common.get_config(), images, 60)
    config.data.patch = (16, 16)
    config.model.features = 4
    config.diffusion.t_max = 500
    config.diffusion.prediction = "v"
    parts = ddpm.build(config)
    state = jax.jit(lambda key: ddpm.init(parts, key, (1, 16, 16, 1)))(keys.root(0))
    intensity = intensities.fit(lambda: map(volumes.read, sorted(images.iterdir())), "asinh")
    metadata = {"config": config.to_dict(), "intensity": intensity.to_dict(), "spacing_um": (0.5, 0.5)}
    manager = checkpoint.open_manager(workdir)
    checkpoint.save(manager, state, metadata, 1.0)
    manager.close()
    return workdir


def student_config(images, teacher_run, num_steps=60):
    config = shortened(distill_config.get_config(), images, num_steps)
    config.distill.teacher = str(teacher_run)
    config.distill.t_max = 400
    config.optim.learning_rate = 1e-2
    return config


def test_distilling_nears_the_teacher_and_leaves_an_ordinary_checkpoint(images, taught, tmp_path):
    config = student_config(images, taught)
    train(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "scalars.jsonl").read_text().splitlines()]
    metadata = checkpoint.read_metadata(tmp_path / "run")
    of_teacher = checkpoint.read_metadata(taught)
    assert metadata["intensity"] == of_teacher["intensity"]
    assert metadata["config"]["task"] == "distill"
    assert metadata["config"]["model"] == of_teacher["config"]["model"]
    assert metadata["config"]["diffusion"] == of_teacher["config"]["diffusion"] | {"t_max": 400}
    assert metadata["config"]["data"]["patch"] == [16, 16]

    # What one evaluation makes of noised images, by the checkpoint as any reader would open it.
    saved = type(config)(metadata["config"])
    parts = ddpm.build(saved)
    built = distill.build(config)
    begin = jax.jit(lambda key: distill.init(built, key, (8, 16, 16, 1)))(keys.root(0))
    jax.tree.map(np.testing.assert_array_equal, begin.params, built.teacher)
    params = checkpoint.load(tmp_path / "run", begin, "latest").ema_params
    plan = samplers.make_plan("consistency", parts.schedule, 400, 1, prediction="v")
    noised = jax.random.normal(keys.root(1), (16, 16, 1))
    denoise = ddpm.single(ddpm.denoiser(parts, params))
    image = jax.jit(lambda x: samplers.sample(denoise, keys.root(2), x, plan))(noised)
    assert image.shape == (16, 16, 1) and bool(jnp.isfinite(image).all())

    # Nearer to the teacher's whole way than the teacher's own single evaluation, from which the student began.
    batch = 0.3 * jax.random.normal(keys.root(4), (8, 16, 16, 1))
    validate = jax.jit(lambda state: distill.validate(built, state, batch, keys.root(0)))
    trained = begin.replace(ema_params=params)
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    before, after = validate(begin)["loss"], validate(trained)["loss"]
    assert after < 0.97 * before


def test_what_contradicts_the_teacher_is_named(images, taught, tmp_path):
    config = student_config(images, "")
    with pytest.raises(InputError, match="no teacher given"):
        train(config, tmp_path / "run")
    with pytest.raises(InputError, match="no checkpoint found"):
        train(student_config(images, tmp_path), tmp_path / "run")
    wide = student_config(images, taught)
    wide.distill.t_max = 501
    with pytest.raises(InputError, match=r"distill\.t_max must lie in 1\.\.500.*501"):
        train(wide, tmp_path / "run")
    flat = student_config(images, taught)
    flat.data.patch = (8, 16, 16)
    with pytest.raises(InputError, match=r"3D.*2D"):
        train(flat, tmp_path / "run")
    other = shortened(common.get_config(), images, 10)
    other.task, other.distill.teacher = "distill", str(taught)
    with pytest.raises(InputError, match=r"model\.features is the teacher's, 4; got 16"):
        train(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()
