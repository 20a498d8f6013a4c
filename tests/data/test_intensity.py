"""Normalisation: closed forms, exact inverses, NumPy = jit, and what it makes of real sets."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from jaxsynth.data import intensity as intensities
from jaxsynth.data import volumes
from jaxsynth.data.intensity import METHODS, SCORES, Intensity, denormalise, fit, grain, normalise
from jaxsynth.errors import InputError
from jaxsynth.sim import microscope


@pytest.fixture(scope="module")
def cells():
    """Three uint16 images: background 1000 with noise of standard deviation 20, dim cells at 1300, bright at 9000."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(3):
        clean = np.full((128, 128), 1000.0)
        clean[20:40, 20:40] = 1300
        clean[70:90, 60:80] = 9000
        images.append(np.rint(clean + rng.normal(0, 20, clean.shape)).astype(np.uint16))
    return images


def test_minmax_is_the_line_through_the_extremes_of_the_set(cells):
    intensity = fit(cells, "minmax_shifted")
    low, high = min(c.min() for c in cells), max(c.max() for c in cells)
    assert (intensity.low, intensity.high) == (low, high)
    x = cells[1].astype(np.float64)
    np.testing.assert_allclose(normalise(cells[1], intensity), 2 * (x - low) / (high - low) - 1, atol=1e-6)


def test_percentile_is_that_of_numpy(cells):
    intensity = fit(cells, "percentile", percentiles=(1, 99))
    low, high = np.percentile(np.stack(cells), [1, 99], method="inverted_cdf")
    assert (intensity.low, intensity.high) == (low, high)
    y = normalise(np.array([0, low, (low + high) / 2, high, 60000]), intensity)
    np.testing.assert_allclose(y, [-1, -1, 0, 1, 1], atol=1e-6)


def test_asinh_finds_background_and_noise_and_follows_its_formula(cells):
    intensity = fit(cells, "asinh")
    assert abs(intensity.background - 1000) < 6
    # The darkest four fifths of a normal distribution are cut at the side: its spread comes out somewhat small.
    assert 10 < intensity.scale < 22
    x = np.linspace(intensity.low, intensity.high, 50)
    y = np.arcsinh((x - intensity.background) / intensity.scale)
    np.testing.assert_allclose(normalise(x, intensity), 2 * (y - y[0]) / (y[-1] - y[0]) - 1, atol=1e-5)


def test_asinh_lifts_dim_cells_out_of_the_background(cells):
    gain = {}
    for method in METHODS:
        intensity = fit(cells, method)
        background, dim = normalise(np.array([1000.0, 1300.0]), intensity)
        gain[method] = dim - background
    assert gain["asinh"] > 5 * gain["minmax_shifted"]


def test_hot_pixels_do_not_take_up_the_range_of_asinh(cells):
    hot = [c.copy() for c in cells]
    hot[0][0, 0] = 65535
    with_hot, without = fit(hot, "asinh"), fit(cells, "asinh")
    assert with_hot.high < 25000
    assert abs(normalise(np.float32(9000), with_hot) - normalise(np.float32(9000), without)) < 0.25
    assert denormalise(np.float32(1), with_hot) == round(with_hot.high)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_integers_in_range_come_back_exactly(method, dtype):
    """Every value of the dtype, on a set that spans it."""
    info = np.iinfo(dtype)
    rng = np.random.default_rng(1)
    skewed = info.min + (info.max - info.min) * rng.uniform(0, 1, 40000) ** 6
    skewed[:2] = info.min, info.max
    intensity = fit([skewed.astype(dtype).reshape(200, 200)], method)
    every = np.arange(info.min, info.max + 1).astype(dtype)
    inside = every[(every >= intensity.low) & (every <= intensity.high)]
    assert inside.size > 0.4 * every.size
    for array in (inside, jnp.asarray(inside)):
        back = denormalise(normalise(array, intensity), intensity)
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, inside)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_wraps_and_nothing_leaves_the_range(cells, method):
    intensity = fit(cells, method)
    back = denormalise(np.array([-50.0, -1.0, 1.0, 50.0]), intensity)
    assert back[0] == back[1] >= np.floor(intensity.low)
    assert back[3] == back[2] <= np.ceil(intensity.high)
    y = normalise(np.array([-1e9, 0, 65535, 1e9]), intensity)
    np.testing.assert_allclose([y.min(), y.max()], [-1, 1], atol=1e-6)
    assert abs(y).max() <= 1
    with pytest.raises(ValueError, match="NaN"):
        denormalise(np.array([0.0, np.nan]), intensity)


@pytest.mark.parametrize("method", METHODS)
def test_jit_equals_numpy(cells, method):
    intensity = fit(cells, method)
    ours = normalise(cells[0], intensity)
    jitted = jax.jit(lambda x: normalise(x, intensity))(cells[0])
    assert isinstance(ours, np.ndarray) and isinstance(jitted, jax.Array)
    assert ours.dtype == jitted.dtype == np.float32
    np.testing.assert_allclose(ours, jitted, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_floating_point_sets(cells, method):
    images = [(c / 1e4).astype(np.float32) for c in cells]
    intensity = fit(images, method)
    whole = fit(cells, method)
    assert intensity.dtype == "float32"
    np.testing.assert_allclose(
        [intensity.background, intensity.low, intensity.high],
        np.array([whole.background, whole.low, whole.high]) / 1e4,
        rtol=0.02,
    )
    inside = np.clip(images[0], intensity.low, intensity.high).astype(np.float32)
    np.testing.assert_allclose(denormalise(normalise(inside, intensity), intensity), inside, rtol=1e-5)


def test_large_floating_point_volumes_are_sampled_with_exact_extremes(monkeypatch):
    from jaxsynth.data import intensity as module

    monkeypatch.setattr(module, "SAMPLE", 4096)
    image = np.random.default_rng(2).gamma(2.0, size=(256, 256)).astype(np.float32)
    sampled = fit([image], "percentile", percentiles=(10, 90))
    np.testing.assert_allclose([sampled.low, sampled.high], np.percentile(image, [10, 90]), rtol=0.1)
    extremes = fit([image], "minmax_shifted")
    assert (extremes.low, extremes.high) == (image.min(), image.max())
    assert fit([image], "asinh") == fit([image], "asinh")


@pytest.mark.parametrize("method", METHODS)
def test_levels_are_those_of_background_and_cells(cells, method):
    intensity = fit(cells, method)
    assert -1 <= intensity.levels[0] < intensity.levels[1] < intensity.levels[2] <= 1
    background, dim, bright = (float(v) for v in denormalise(np.array(intensity.levels), intensity))
    assert abs(background - 1000) < 0.02 * intensity.scale + 30
    assert 1150 < dim < 1350
    # Percentiles of 0.1 and 99.9 leave out the brightest noise of the bright cells only.
    assert 8500 < bright < 9300


def test_levels_survive_an_image_without_cells_and_one_with_a_brighter_background(cells):
    rng = np.random.default_rng(3)
    empty = np.rint(rng.normal(1000, 20, (128, 128))).astype(np.uint16)
    lifted = cells[0] + np.uint16(250)
    intensity = fit([*cells, empty, lifted], "asinh")
    _, dim, bright = denormalise(np.array(intensity.levels), intensity)
    assert 1150 < dim < 1600 and 8500 < bright < 9700


def test_statistics_do_not_depend_on_how_the_set_is_cut(cells):
    parts = [half for c in cells for half in (c[:64], c[64:])]
    for method in METHODS:
        one, other = fit(cells, method), fit(lambda: iter(parts), method)
        assert (one.low, one.high, one.background, one.scale) == (other.low, other.high, other.background, other.scale)


def test_grain_is_the_white_noise_whatever_is_smooth():
    rng = np.random.default_rng(0)
    for shape in ((128, 128), (24, 48, 48), (1, 96, 96)):
        noise = rng.normal(0, 3, shape)
        ramps = sum(np.linspace(0, 500, n).reshape([-1 if a == k else 1 for a in range(len(shape))])
                    for k, n in enumerate(shape))  # fmt: skip
        smooth = 200 * np.sin(ramps / 60)
        smooth[..., 20:30, 20:30] += 1000
        spread = [np.polyfit(SCORES, grain(x, np.zeros(1))[0][0], 1)[0] for x in (smooth + noise, smooth)]
        assert spread[0] == pytest.approx(3, rel=0.2) and abs(spread[1]) < 0.15


def test_grain_is_told_apart_by_grey_value():
    rng = np.random.default_rng(0)
    for shape in ((128, 128), (24, 48, 48)):
        image = np.where(np.arange(shape[-1]) < shape[-1] // 2, 100.0, 200.0) * np.ones(shape)
        image += rng.normal(0, 1, shape) * np.where(image < 150, 8, 2)
        found, correlation = grain(image, np.array([0.0, 100.0, 200.0, 300.0]))
        inner = slice(2, -2)  # the ends of the distribution are told by few
        for row, sd in ((1, 8), (2, 2)):
            np.testing.assert_allclose(found[row, inner], sd * SCORES[inner], atol=0.25 * sd)
        assert np.isnan(found[[0, 3]]).all() and (correlation < 0.03).all()


def test_grain_is_as_skewed_as_the_noise():
    noise = np.random.default_rng(0).exponential(5, (400, 400)) - 5
    found = grain(100 + noise, np.array([100.0]))[0][0]
    wanted = -5 * np.log(1 - ndtr(SCORES)) - 5
    np.testing.assert_allclose(found[2:], wanted[2:], rtol=0.3, atol=1)
    assert found[0] > -8 and found[-1] > 15 and (np.diff(found) >= 0).all()


@pytest.mark.parametrize(
    ("shape", "given"),
    [((256, 256), (0.0, 0.6)), ((256, 256), (0.7, 0.0)), ((32, 64, 64), (0.5, 0.0, 0.2)), ((1, 2, 9999), (0, 0, 0))],
)
def test_correlated_grain_is_told_by_strength_and_correlation(shape, given):
    """As the generator makes it, on what is smooth and beside an edge."""
    noise = np.random.default_rng(0).normal(size=shape)
    for axis, correlation in enumerate(given):
        own, beside = intensities.smoothing(correlation)
        noise = own * noise + beside * (np.roll(noise, 1, axis) + np.roll(noise, -1, axis))
    image = 100 + 40 * np.sin(np.arange(shape[-1]) / 20) + 200 * (np.arange(shape[-1]) > 30)
    found, correlation = grain(image + 3 * noise, np.array([200.0]))
    np.testing.assert_allclose(correlation, given, atol=0.06)
    assert np.polyfit(SCORES[2:-2], found[0, 2:-2], 1)[0] == pytest.approx(3 * noise.std(), rel=0.15)
    assert noise.std() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("spacing", [(0.3, 0.3), (0.6, 0.3, 0.3)])
def test_texture_behind_a_microscope_is_no_correlated_noise(spacing):
    """Photons are white; what optics blurred is alike along the axes."""
    shape = (24, 96, 96)[-len(spacing) :] if len(spacing) == 3 else (256, 256)
    labels = jnp.zeros(shape, jnp.int32).at[..., 20:80, 20:80].set(1)
    first, second = jax.random.split(jax.random.key(0))
    light = microscope.light(first, labels, jnp.array([0.0, 1.0]), spacing, grain_um=1.2, contrast=0.3, nucleoli=0.5)
    image = np.asarray(microscope.image(second, light, spacing, photons=1000.0))
    grey = (np.asarray(normalise(image, fit(lambda: [image], "asinh")), np.float64) + 1) / 2
    assert (grain(grey, np.linspace(0, 1, 9))[1] == 0).all()


def test_an_image_without_noise_tells_no_correlation():
    found, correlation = grain(np.ones((64, 64)), np.array([0.0, 1.0]))
    assert np.isnan(correlation).all() and (found[1] == 0).all()


def test_intensity_survives_json(cells):
    for method in METHODS:
        intensity = fit(cells, method)
        assert Intensity.from_dict(json.loads(json.dumps(intensity.to_dict()))) == intensity


def test_empty_field_of_one_exact_value():
    image = np.zeros((64, 64), np.uint8)
    image[:8] = np.random.default_rng(4).integers(50, 200, (8, 64))
    intensity = fit([image], "asinh")
    assert intensity.background == 0 and 100 < intensity.scale < 150
    np.testing.assert_array_equal(denormalise(normalise(image, intensity), intensity), image)


def test_mistakes_are_named(cells):
    for call, words in (
        (lambda: fit(cells, "zscore"), ("zscore", *METHODS)),
        (lambda: fit([], "asinh"), ("empty",)),
        (lambda: fit([np.full((4, 4), 3, np.uint8)], "asinh"), ("constant", "3")),
        (lambda: fit([cells[0], cells[0].astype(np.uint8)], "asinh"), ("uint8", "uint16")),
        (lambda: fit([np.eye(200, dtype=np.uint8)], "percentile", percentiles=(1, 99)), ("percentiles", "coincide")),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(ValueError, match="twice"):
        fit(iter(cells), "asinh")


@pytest.mark.parametrize("name", ["gowt1", "hela", "dsb2018", "embryo3d"])
@pytest.mark.parametrize("method", METHODS)
def test_real_sets_come_back_from_every_normalisation(real_data, name, method):
    files = volumes.find_files(real_data / name / "images")
    found = volumes.open_set(files[:: len(files) // 4])
    intensity = fit(lambda: volumes.each(found), method)
    for image in volumes.each(found):
        y = normalise(image, intensity)
        assert y.dtype == np.float32 and y.min() >= -1 and y.max() <= 1
        inside = (image >= intensity.low) & (image <= intensity.high)
        assert inside.mean() > {"minmax_shifted": 0.999999, "asinh": 0.9995, "percentile": 0.98}[method]
        np.testing.assert_array_equal(denormalise(y, intensity)[inside], image[inside])
    background, dim, bright = intensity.levels
    assert -1 <= background < dim < bright <= 1
    if method == "asinh":
        assert dim - background > 0.2
