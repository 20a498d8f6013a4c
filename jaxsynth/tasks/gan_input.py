"""What the GAN's generator draws from: a mask at the images' grey values, where it lies, and noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxsynth import keys
from jaxsynth.data.intensity import MOST_CORRELATION, SCORES, Intensity, smoothing
from jaxsynth.data.unpaired import MOST_LEVEL, middle
from jaxsynth.diffusion import samplers
from jaxsynth.errors import InputError
from jaxsynth.sim import deform
from jaxsynth.sim.sketch import LEVELS, background_grey, blur
from jaxsynth.sim.tissues import Recipe


@dataclasses.dataclass(frozen=True)
class Drawn:
    """How masks become the generator's input.

    Attributes:
      background: grey value in [0, 1] of the images' background, of sketches its mean.
      contrast: of masks' cells to it; None: masks are sketches, which have their grey values.
      sigma: blur of masks, voxels.
      middle: what blurred masks come to where they are all there, see `unpaired.middle`.
      noise_channel: whether there is a third channel, of noise.
      grain: what this noise adds to masks' grey values: a row for each of some, evenly from 0 to 1, of what it is where
        the noise is as `intensity.SCORES` (evenly between the same ends); (): nothing.
      grain_correlation: of this noise in neighbours along each axis, 0 to `intensity.MOST_CORRELATION`; (): none.
      clouds_vox: over how many voxels the noise of a fourth one is smooth; 0: there is none.
      clouds: what this noise adds to masks' grey values, as rows of `grain`: outside of the organism, within it beside
        masks, and on masks, where these are no sketches; (): nothing.
    """

    background: float
    contrast: float | None
    sigma: float
    middle: float
    noise_channel: bool
    grain: tuple[tuple[float, ...], ...]
    grain_correlation: tuple[float, ...]
    clouds_vox: float
    clouds: tuple[tuple[float, ...], ...]


def of_config(own: dict, noise_channel: bool) -> Drawn:
    """The input that config.gan asks for.

    Raises:
      InputError: a value that makes no sense.
    """
    if not 0 <= own["sigma"] < 100:
        raise InputError(f"gan.sigma must lie in 0..100 voxels, got {own['sigma']}")
    if not own["clouds_vox"] >= 0:
        raise InputError(f"gan.clouds_vox must be at least 0, got {own['clouds_vox']}")
    if len(own["clouds"]) and not (own["clouds_vox"] and noise_channel):
        raise InputError("gan.clouds are made of the noise of gan.clouds_vox: set that and model.noise_channel, too")
    for name, rows, word in (("grain", None, "rows"), ("clouds", 3, "three rows")):
        table = _numbers(own[name])
        shaped = table.ndim == 2 and min(table.shape) > 1 and rows in (None, len(table))
        if len(own[name]) and not (shaped and (np.abs(table) <= 1).all()):
            raise InputError(f"gan.{name}: expected {word} of equally many numbers in -1..1, two or more, or ()")
    correlation = _numbers(own["grain_correlation"])
    if correlation.ndim != 1 or not ((correlation >= 0) & (correlation <= MOST_CORRELATION)).all():
        raise InputError(f"gan.grain_correlation: expected 0..{MOST_CORRELATION} for each axis, or ()")
    background, *cells = levels_of(own)
    return Drawn(
        background=background,
        contrast=None if own["mask"] == "sketch" else cells[0] - background,
        sigma=own["sigma"],
        middle=middle(own["mask"], own["sigma"]),
        noise_channel=noise_channel,
        grain=tuple(map(tuple, own["grain"])),
        grain_correlation=tuple(correlation.tolist()),
        clouds_vox=own["clouds_vox"] if noise_channel else 0.0,
        clouds=tuple(map(tuple, own["clouds"])),
    )


def _numbers(given) -> np.ndarray:
    """As an array; NaN where these are no numbers, or rows of several lengths."""
    try:
        return np.asarray(given, np.float64)
    except (TypeError, ValueError):
        return np.full(1, np.nan)


def levels_of(own: dict | ConfigDict) -> tuple[float, ...]:
    """The grey values in [0, 1] of config.gan: of background and cells; of sketches' background, dim and bright cells.
    Of masks' cells up to MOST_LEVEL, as what is thin and blurred comes to less.

    Raises:
      InputError: there are more or fewer, or they are no grey values.
    """
    names = ("background", "dim cells", "bright cells") if own["mask"] == "sketch" else ("background", "cells")
    levels = tuple(own["levels"]) or ((0.0, 0.25, 1.0) if len(names) == 3 else (0.0, 1.0))
    most = 1 if own["mask"] == "sketch" else MOST_LEVEL
    if len(levels) != len(names) or not (0 <= levels[0] <= 1 and all(0 <= level <= most for level in levels)):
        raise InputError(f"gan.levels: expected grey values of {', '.join(names)} in 0..1, or (); got {levels}")
    return levels


def sketch_levels(own: ConfigDict) -> tuple[float, ...]:
    """The grey values in [-1, 1] of the sketches that config.gan asks for; where it asks for none, any."""
    return tuple(round(2 * level - 1, 4) for level in levels_of(own)) if own.mask == "sketch" else LEVELS


def check_recipe(mask: str, recipe: Recipe) -> None:
    """Raises InputError where sketches are to be of membranes, which are those of nuclei here."""
    if mask == "sketch" and recipe.populate is None:
        raise InputError(f"recipe {recipe.name}: its sketches show membranes, not nuclei: use gan.mask=boundary")


def background_range(own: ConfigDict, scale: Intensity) -> tuple[float, float]:
    """The darkest and the brightest background, in [-1, 1], of the sketches that config.gan asks for."""
    greys = np.asarray(background_grey(jnp.asarray(scale.backgrounds or (0.0,)), sketch_levels(own)))
    return float(greys.min()), float(greys.max())


def generator_input(drawn: Drawn, own_keys: jax.Array, maps: jax.Array) -> jax.Array:
    """Masks in {0, 1}, or sketches in [0, 1], and position maps, float32 [B, *S, 2] -> [B, *S, 2 to 4]: the masks at
    the images' grey values, blurred, with clouds and grain as strong as the images' on them (`gan.clouds`,
    `gan.grain`), position maps, and channels of normal noise, that of the grain (`model.noise_channel`), and that of
    the clouds, which is smooth (`gan.clouds_vox`).

    The published generator has none of these. Without noise every voxel of equal surroundings gets the same grey value:
    the grain of a camera can then only be imitated by a pattern that repeats itself, and that backgrounds of real
    images are not equally bright everywhere, which the critic soon sees, not at all.

    Args:
      own_keys: of the images, [B].
    """
    sigmas = (0.0,) + (drawn.sigma,) * (maps.ndim - 2)
    soft = blur(maps[..., 0], sigmas)
    grey = jnp.clip(soft if drawn.contrast is None else drawn.background + drawn.contrast * soft, 0, 1)
    if not drawn.noise_channel:
        return maps.at[..., 0].set(grey)
    shape = maps.shape[1:-1]
    noise = [jax.vmap(lambda key: samplers.rows_of_noise(keys.stream(key, "noise"), 0, (*shape, 1))[..., 0])(own_keys)]
    for axis, correlation in enumerate(drawn.grain_correlation, 1):
        if correlation:  # around the end, so that the noise is the same everywhere
            own, beside = smoothing(correlation)
            noise[0] = own * noise[0] + beside * (jnp.roll(noise[0], 1, axis) + jnp.roll(noise[0], -1, axis))
    if drawn.clouds_vox:
        knots = (drawn.clouds_vox,) * len(shape)
        noise.append(jax.vmap(lambda key: deform.smooth_noise(keys.stream(key, "clouds"), shape, knots))(own_keys))
        if drawn.clouds:
            within = blur((maps[..., 1] > 0).astype(grey.dtype), sigmas)
            on = 0.0 if drawn.contrast is None else jnp.clip(soft / drawn.middle, 0, 1)
            outside, beside, masks = (grain_of((row, row), grey, noise[1]) for row in drawn.clouds)
            grey = jnp.clip(grey + (1 - within) * outside + within * ((1 - on) * beside + on * masks), 0, 1)
    if drawn.grain:
        grey = jnp.clip(grey + grain_of(drawn.grain, grey, noise[0]), 0, 1)
    return jnp.stack([grey, maps[..., 1], *noise], axis=-1)


def grain_of(grain: tuple[tuple[float, ...], ...], grey: jax.Array, noise: jax.Array) -> jax.Array:
    """Normal noise made into the grain of grey values in [0, 1], float [...] each; `grain` as in `Drawn`, with straight
    lines between, and none stronger than at its ends."""
    table = jnp.asarray(grain, jnp.float32)
    (rows, columns), last = table.shape, float(SCORES[-1])
    places = (jnp.clip(grey, 0, 1) * (rows - 1), (jnp.clip(noise, -last, last) / last + 1) / 2 * (columns - 1))
    (row, down), (column, right) = (
        (whole, place - whole)
        for place, size in zip(places, (rows, columns), strict=True)
        for whole in [jnp.minimum(place.astype(jnp.int32), size - 2)]
    )
    flat, at = table.ravel(), row * columns + column
    above = flat[at] + right * (flat[at + 1] - flat[at])
    below = flat[at + columns] + right * (flat[at + columns + 1] - flat[at + columns])
    return above + down * (below - above)
