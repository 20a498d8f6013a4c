"""How brightness is distributed over cells: uniform, or as in the user's annotated images.

A distribution is its quantile table: float32 [Q], rising, the quantiles at the probabilities 0, 1 / (Q - 1), ..., 1,
with straight lines between. Images differ in exposure, so that there may be a table for each of several, float32
[T, Q]: the cells of one specimen are all drawn from one of these. Their backgrounds differ, too, float32 [T]: how much
brighter each is than usual, in the same units.
"""

import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from skimage.segmentation import relabel_sequential

from jaxsynth import keys
from jaxsynth.errors import InputError
from jaxsynth.sim.sketch import cell_means

QUANTILES = 257


@struct.dataclass
class Brightness:
    """Brightness of cells as measured; `sketch(ranks, of_ranks(key, N, table, backgrounds), levels=levels)` looks like
    it.

    Attributes:
      table: float32 [Q] or [T, Q], quantiles of the relative brightness, 0 for the dimmest cell, 1 for the brightest.
      levels: the grey of the background, of the dimmest cell and of the brightest, in [-1, 1]; static.
      backgrounds: float32 [T], of each of several tables; None: that of the levels for all.
    """

    table: jax.Array
    levels: tuple[float, float, float] = struct.field(pytree_node=False)
    backgrounds: jax.Array | None = None


def uniform(low: float = 0.0, high: float = 1.0) -> jax.Array:
    """The quantile table of U(low, high): float32 [2]. Raises InputError unless 0 <= low <= high <= 1."""
    if not 0 <= low <= high <= 1:
        raise InputError(f"brightness: expected a range within [0, 1]; got {low} to {high}")
    return jnp.asarray([low, high], jnp.float32)


def draw(key: jax.Array, table: jax.Array, num: int) -> jax.Array:
    """Draws from a quantile table by the inverse of its distribution function.

    Args:
      key: typed PRNG key.
      table: float32 [Q], Q >= 2, as in `Brightness`; or [T, Q], of which one is chosen.
      num: static.

    Returns:
      float32 [num], within the table's range.
    """
    table, _ = of_one_image(key, table)
    at = jax.random.uniform(key, (num,)) * (table.shape[0] - 1)
    below = jnp.minimum(at.astype(jnp.int32), table.shape[0] - 2)
    part = at - below
    return (1 - part) * table[below] + part * table[below + 1]


def of_one_image(key: jax.Array, table: jax.Array, backgrounds: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The table that `draw` takes with the same key, float32 [Q], and the background that goes with it, float32 [].

    Args:
      key, table: as in `draw`.
      backgrounds: float32 [T], as in `Brightness`.
    """
    if table.ndim == 1:
        return table, jnp.zeros(())
    row = jax.random.randint(keys.stream(key, "table"), (), 0, table.shape[0])
    return table[row], jnp.zeros(()) if backgrounds is None else backgrounds[row]


def fit(means: np.ndarray, background: float) -> Brightness:
    """The distribution of given brightnesses.

    Levels are the extremes of the cells, not the intensity's percentiles (`Intensity.levels`), so that no cell's
    brightness is clipped and drawn greys are distributed as the measured ones.

    Args:
      means: float [M], one mean grey per cell, in [-1, 1]; cells of any number of images.
      background: the grey of the background, in [-1, 1].

    Raises:
      InputError: no cell, or values that are not finite or not in [-1, 1].
    """
    means = np.asarray(means, np.float64).ravel()
    if means.size == 0:
        raise InputError("brightness: expected the means of at least one cell; got none")
    greys = np.append(means, background)
    if not (np.abs(greys) <= 1).all():  # not for NaN either
        raise InputError(f"brightness: expected greys in [-1, 1]; got {greys.min():g} to {greys.max():g}")
    low, high = float(means.min()), float(means.max())
    table = np.quantile((means - low) / (high - low or 1.0), np.linspace(0, 1, QUANTILES))
    return Brightness(jnp.asarray(table, jnp.float32), (float(background), low, high))


def fit_images(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Brightness:
    """The distribution of the cells of annotated images; the background is the mean over the images.

    Args:
      pairs: (labels int32 [*S], 0 = background; image float [*S], normalised to [-1, 1]), any number, one at a time.

    Raises:
      InputError: labels and image differ in shape, there is no cell in any, or a value is outside [-1, 1].
    """
    means, backgrounds = [], []
    for labels, image in pairs:
        labels, image = np.asarray(labels), np.asarray(image)
        if labels.shape != image.shape:
            raise InputError(f"brightness: expected labels of the image's shape {image.shape}; got {labels.shape}")
        ranks, ids, capacity = ranked(labels)
        found, background = _cell_means(jnp.asarray(ranks), jnp.asarray(image, jnp.float32), capacity)
        means.append(np.asarray(found)[: len(ids) - 1])
        backgrounds.append(float(background))
    return fit(np.concatenate(means) if means else np.zeros(0), float(np.mean(backgrounds)) if backgrounds else 0.0)


def ranked(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels for tables that go by rank, as ids in files may be large and sparse; on the host.

    Args:
      labels: integers [*S], 0 = background.

    Returns:
      Ranks int32 [*S]; the id of every rank, 0 first; and the size of a table for them, one of few, so that few
      programs are compiled.
    """
    ranks, _, ids = relabel_sequential(labels)
    ids = np.asarray(ids)
    return ranks.astype(np.int32), ids, 2 ** math.ceil(math.log2(max(len(ids) - 1, 63) + 1))


def of_ranks(key: jax.Array, capacity: int, table: Sequence = (), backgrounds: Sequence = ()) -> jax.Array:
    """The brightness of every rank of label files, where nothing is known of it: float32 [capacity + 1], entry 0 as in
    `records.Specimen`.

    Args:
      key: of the file.
      capacity: static, see `ranked`.
      table: as `draw` takes it, such as `Intensity.brightness`; (): U(0, 1).
      backgrounds: of each of several tables, such as `Intensity.backgrounds`; (): the usual one.
    """
    key = keys.stream(key, "brightness")
    table = jnp.asarray(table, jnp.float32) if len(table) else uniform()
    own, shift = of_one_image(key, table, jnp.asarray(backgrounds, jnp.float32) if len(backgrounds) else None)
    return draw(key, own, capacity + 1).at[0].set(shift)


_cell_means = jax.jit(cell_means, static_argnums=2)
