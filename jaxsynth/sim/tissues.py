"""Named recipes: what one organism's cells look like and how they lie (papers 000 and 001), and one call for all.

A recipe's sizes are in micrometres, so it can be drawn at any shape and any voxel size.
"""

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsynth import keys
from jaxsynth.errors import InputError
from jaxsynth.records import Cells
from jaxsynth.sim import deform, ellipsoids, grid, placement

Draw = Callable[[jax.Array, tuple[int, ...], tuple[float, ...], jax.Array, int], Cells]


@dataclass(frozen=True)
class Recipe:
    """One tissue.

    Attributes:
      name: as given on the command line.
      about: one line for the user.
      draw: (key, shape, spacing_um, num_cells int32 [], max_cells) -> Cells of capacity max_cells.
      ndims: the ranks it can be drawn in.
      shape: the paper's image size, used where none is given.
      spacing_um: the voxel size that goes with it.
      num_cells: range of the number of cells in an image of that size, both ends included.
      by_extent: the number grows with the image's physical extent (a field of cells) or does not (one whole organism).
      warp: the cells' outlines are bent by up to this share of `radius_um`.
      radius_um: a typical radius.
      psf_sigma_um: the microscope's blur (z, y, x) that suits it.
    """

    name: str
    about: str
    draw: Draw
    ndims: tuple[int, ...]
    shape: tuple[int, ...]
    spacing_um: tuple[float, ...]
    num_cells: tuple[int, int]
    by_extent: bool
    warp: float
    radius_um: float
    psf_sigma_um: tuple[float, float, float]


class Simulated(NamedTuple):
    """One simulated specimen.

    Attributes:
      labels: int32 [*S], 0 = background; at most `num_placed` different cells show.
      brightness: float32 [N + 1], relative, in [0, 1], indexed by label; entry 0 is 0.
      cells: the population; cell i is label i + 1.
      num_asked, num_placed: counts; fewer placed than asked for means that the field was full, and was logged.
    """

    labels: jax.Array
    brightness: jax.Array
    cells: Cells
    num_asked: int
    num_placed: int


def _population(key, radii_um, rotation, foreground, clearance_um, num_cells) -> Cells:
    """Places cells and moves those placed to the front, so that labels count from 1 without gaps."""
    capacity = radii_um.shape[0]
    centres, placed, overflow = placement.random_centres(
        keys.stream(key, "centres"), foreground, clearance_um, num_cells
    )
    order = jnp.argsort(~placed, stable=True)
    brightness = jax.random.uniform(keys.stream(key, "brightness"), (capacity,))
    fields = (centres, radii_um, rotation, jnp.where(placed, brightness, 0.0), placed)
    return Cells(*(field[order] for field in fields), overflow=overflow)


def _shapes(key, low, high, scale_low, ndim, max_cells) -> tuple[jax.Array, jax.Array]:
    """Radii r s with r in U(low, high), and s in U(scale_low, 1) along one axis, 1 along the others; rotations."""
    radius = jax.random.uniform(keys.stream(key, "radius"), (max_cells, 1), minval=low, maxval=high)
    scale = jax.random.uniform(keys.stream(key, "scale"), (max_cells, 1), minval=scale_low, maxval=1.0)
    radii_um = radius * jnp.concatenate([scale, jnp.ones((max_cells, ndim - 1))], axis=1)
    return radii_um, grid.random_rotation(keys.stream(key, "rotation"), max_cells, ndim)


def _mean_radius(radii_um: jax.Array) -> jax.Array:
    return jnp.exp(jnp.mean(jnp.log(radii_um), axis=-1))


def nuclei(key, shape, spacing_um, num_cells, max_cells) -> Cells:
    """Nuclei of a cultured tissue, from alone to touching, in 2D or 3D, over the whole image and cut by its edge.

    Semi-axes r (s, 1[, 1]) with r in U(4, 6.5) um and s in U(0.6, 1). Centres keep 85 % of the sum of the mean radii,
    so some cells press against each other.
    """
    ndim = len(shape)
    radii_um, rotation = _shapes(key, 4.0, 6.5, 0.6, ndim, max_cells)
    foreground = placement.whole_image(grid.size_um(shape, spacing_um), radii_um, rotation)
    return _population(key, radii_um, rotation, foreground, 0.85 * _mean_radius(radii_um), num_cells)


def hela(key, shape, spacing_um, num_cells, max_cells) -> Cells:
    """HeLa nuclei in clusters (000, 001): a union of 15 to 30 discs of radius 100 voxels at random places.

    Semi-axes r (s, 1), r in U(10, 20) voxels and s in U(0.5, 1), at 0.645 um per voxel. A smaller image gets
    proportionally fewer discs, at least one. Centres keep the sum of the mean radii.
    """
    voxel = 0.645
    radii_um, rotation = _shapes(key, 10 * voxel, 20 * voxel, 0.5, len(shape), max_cells)
    size = grid.size_um(shape, spacing_um)
    share = jnp.prod(size / voxel) / (700 * 1100)
    most = max(1, math.ceil(30 * math.prod(s * d / voxel for s, d in zip(shape, spacing_um, strict=True)) / 770000))
    number = jax.random.uniform(keys.stream(key, "num_discs"), minval=15.0, maxval=30.0) * share
    number = jnp.clip(jnp.round(number), 1, most)
    middles = jax.random.uniform(keys.stream(key, "discs"), (most, len(shape))) * size
    clusters = placement.discs(middles, 100 * voxel, jnp.arange(most) < number)
    image = placement.whole_image(size, radii_um, rotation)
    foreground = placement.both(clusters, image)
    return _population(key, radii_um, rotation, foreground, _mean_radius(radii_um), num_cells)


def celegans(key, shape, spacing_um, num_cells, max_cells) -> Cells:
    """Nuclei of an early C. elegans embryo (000, 001): one ellipsoidal embryo, semi-axes 0.3 of the image.

    A cell gets 1 / (3 n) of the embryo's volume, so the radius r falls as the n cells divide. Semi-axes r (s, 1, 1)
    with s in U(0.5, 1), isotropic in micrometres (the paper's 0.09 along z is the ratio of the voxel's edges); 10 %
    of the cells, just divided, are r (0.5, 0.7, 1.6). Rotations are uniform over SO(3) and centres 2 r apart.
    """
    size = grid.size_um(shape, spacing_um)
    semi_axes = 0.3 * size
    radius = jnp.cbrt(jnp.prod(semi_axes) / (3.0 * jnp.maximum(num_cells, 1)))
    scales, rotation = _shapes(key, 1.0, 1.0, 0.5, 3, max_cells)
    divided = jax.random.bernoulli(keys.stream(key, "divided"), 0.1, (max_cells, 1))
    radii_um = radius * jnp.where(divided, jnp.asarray([0.5, 0.7, 1.6]), scales)
    foreground = placement.ellipsoid(size / 2, semi_axes)
    return _population(key, radii_um, rotation, foreground, jnp.full(max_cells, radius), num_cells)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("nuclei", "nuclei of a cultured tissue, 2D or 3D, alone to touching", nuclei, (2, 3), (256, 256),
               (0.5, 0.5), (35, 85), True, 0.18, 5.0, (0.9, 0.45, 0.45)),
        Recipe("hela", "HeLa nuclei in clusters, 2D", hela, (2,), (700, 1100),
               (0.645, 0.645), (45, 220), True, 0.18, 8.0, (1.5, 0.6, 0.6)),
        Recipe("celegans", "nuclei of a C. elegans embryo, 3D", celegans, (3,), (35, 512, 708),
               (1.0, 0.09, 0.09), (20, 120), False, 0.0, 3.0, (0.9, 0.25, 0.25)),
    )
}  # fmt: skip


def find(name: str) -> Recipe:
    """The recipe of that name. Raises InputError that lists the names there are."""
    if name not in RECIPES:
        raise InputError(f"recipe: expected one of {', '.join(RECIPES)}; got {name!r}")
    return RECIPES[name]


def default_spacing(recipe: Recipe, shape: tuple[int, ...]) -> tuple[float, ...]:
    """The voxel size for a shape where the user gives none, micrometres (z, y, x).

    A field of cells keeps its own voxel size. A whole organism is fitted into the shape: the depth axis on its own,
    the axes in the plane by the tighter of the two, so that pixels stay square.
    """
    if recipe.by_extent:
        if len(shape) == len(recipe.spacing_um):
            return recipe.spacing_um
        return (2 * recipe.spacing_um[-1], *recipe.spacing_um)
    extent = [size * step for size, step in zip(recipe.shape, recipe.spacing_um, strict=True)]
    plane = max(extent[axis] / shape[axis] for axis in (-2, -1))
    return (extent[0] / shape[0], plane, plane)[-len(shape) :]


def check(recipe: Recipe, shape: tuple[int, ...], spacing_um: tuple[float, ...] | None = None) -> None:
    """Raises InputError where the recipe cannot be drawn at that shape or voxel size."""
    if len(shape) not in recipe.ndims:
        ranks = " or ".join(f"{ndim}D" for ndim in recipe.ndims)
        raise InputError(f"shape: recipe {recipe.name} is {ranks}; got {len(shape)}D {tuple(shape)}")
    if min(shape) < 1:
        raise InputError(f"shape: expected sizes of at least 1; got {tuple(shape)}")
    if spacing_um is not None and (len(spacing_um) != len(shape) or not all(0 < s < math.inf for s in spacing_um)):
        raise InputError(
            f"spacing_um: expected {len(shape)} positive numbers, one per axis of the shape; got {tuple(spacing_um)}"
        )


def num_cells_range(recipe: Recipe, shape: tuple[int, ...], spacing_um: tuple[float, ...]) -> tuple[int, int]:
    """How many cells an image of that shape gets, both ends included."""
    low, high = recipe.num_cells
    if not recipe.by_extent:
        return low, high

    def extent(sizes, steps) -> float:
        return math.prod(size * step for size, step in zip(sizes, steps, strict=True))

    share = extent(shape[-2:], spacing_um[-2:]) / extent(recipe.shape[-2:], recipe.spacing_um[-2:])
    if len(shape) > len(recipe.shape):
        # Depth in layers of cells, each as full as the 2D image.
        share *= max(1.0, shape[0] * spacing_um[0] / (1.8 * recipe.radius_um))
    return max(1, round(low * share)), max(1, round(high * share))


@functools.partial(jax.jit, static_argnames=("recipe", "shape", "spacing_um", "num_range", "max_cells", "per_block"))
def _simulate(key, num_cells, *, recipe, shape, spacing_um, num_range, max_cells, per_block):
    low, high = num_range
    drawn = jax.random.randint(keys.stream(key, "num_cells"), (), low, high + 1)
    num_cells = jnp.where(num_cells < 0, drawn, num_cells)
    cells = recipe.draw(keys.stream(key, "cells"), shape, spacing_um, num_cells, max_cells)
    warp_um = None
    if recipe.warp:
        knots = tuple(max(recipe.radius_um / step, 2.0) for step in spacing_um)
        warp_um = deform.random_warp(keys.stream(key, "warp"), shape, knots, recipe.warp * recipe.radius_um)
    labels, crowded = ellipsoids.rasterise(
        cells, shape, jnp.asarray(spacing_um, jnp.float32), warp_um=warp_um, per_block=per_block
    )
    brightness = jnp.concatenate([jnp.zeros(1), cells.brightness])
    return labels, brightness, cells, num_cells, jnp.sum(cells.valid), crowded


def simulate_labels(
    key: jax.Array,
    recipe: str | Recipe,
    shape: tuple[int, ...] | None = None,
    spacing_um: tuple[float, ...] | None = None,
    num_cells: int | None = None,
    num_range: tuple[int, int] | None = None,
) -> Simulated:
    """Draws one specimen. Compiled once per recipe, shape and voxel size; not to be called inside jit.

    Args:
      key: typed PRNG key.
      recipe: a name or a record.
      shape: S; the recipe's own where None.
      spacing_um: D micrometres per voxel; `default_spacing` where None.
      num_cells: how many cells to place, cut ones at the edge included; drawn from `num_range` where None.
      num_range: least and most cells; `num_cells_range` where None.

    Returns:
      `Simulated`. Where the field had no room for all cells, one warning line says how many were placed.

    Raises:
      InputError: no such recipe, a rank it cannot be drawn in, sizes or counts below their least.
    """
    recipe = find(recipe) if isinstance(recipe, str) else recipe
    shape = tuple(int(size) for size in (shape or recipe.shape))
    check(recipe, shape)
    spacing_um = tuple(float(step) for step in (spacing_um or default_spacing(recipe, shape)))
    check(recipe, shape, spacing_um)
    if num_cells is not None and num_cells < 0:
        raise InputError(f"num_cells: expected 0 or more; got {num_cells}")
    num_range = num_range or num_cells_range(recipe, shape, spacing_um)
    most = max(num_range[1], num_cells or 0)
    capacity = 64 * math.ceil(most / 64)
    per_block = min(64, capacity)
    while True:
        labels, brightness, cells, asked, placed, crowded = _simulate(
            key,
            jnp.int32(-1 if num_cells is None else num_cells),
            recipe=recipe,
            shape=shape,
            spacing_um=spacing_um,
            num_range=num_range,
            max_cells=capacity,
            per_block=per_block,
        )
        if not crowded or per_block >= capacity:
            break
        per_block = min(2 * per_block, capacity)
    asked, placed = int(asked), int(placed)
    if placed < asked:
        logging.getLogger(__name__).warning(
            "recipe %s at shape %s: the field is full, placed %d of %d cells", recipe.name, shape, placed, asked
        )
    return Simulated(labels, brightness, cells, asked, placed)
