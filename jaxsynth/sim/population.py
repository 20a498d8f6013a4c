"""Populations: cells that can be drawn, and how they are put in their places; what the recipes are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsynth import keys
from jaxsynth.records import Cells, Specimen
from jaxsynth.sim import brightness, deform, ellipsoids, foregrounds, grid, placement, raster


@dataclass(frozen=True)
class Site:
    """What is fixed while one program runs.

    Attributes:
      shape: S, of rank D.
      spacing_um: D micrometres per voxel.
      max_cells: slots for cells.
      per_block: cells that a block of voxels can list.
      bend: share of a cell's window by which its outline is bent.
      overlap: share by which cells may come closer than touching; above 0, `layers` label images are made.
      layers: label images.
    """

    shape: tuple[int, ...]
    spacing_um: tuple[float, ...]
    max_cells: int
    per_block: int
    bend: float = 0.0
    overlap: float = 0.0
    layers: int = 1

    @property
    def size_um(self) -> jax.Array:
        """Edge lengths, float32 [D]."""
        return grid.size_um(self.shape, self.spacing_um)


class Given(NamedTuple):
    """What the user brings; None: the recipe's own.

    Attributes:
      centres_um: float32 [M, D], where the cells are.
      mask: bool [*S], where cells may be.
      organism: float32 [K(, K)], a table of radii (`sim.starshape`), micrometres: the organism's shape.
      brightness: float32 [Q] or [T, Q], a quantile table or several (`sim.brightness`).
      backgrounds: float32 [T], the background that goes with each of several tables; None: the usual one.
      clustering: float [] in [0, 1], the probability of a cell to be put next to one already there (002, 003), in
        fields of nuclei.
    """

    centres_um: jax.Array | None = None
    mask: jax.Array | None = None
    organism: jax.Array | None = None
    brightness: jax.Array | None = None
    backgrounds: jax.Array | None = None
    clustering: jax.Array | None = None


class Population(NamedTuple):
    """Cells that can be drawn.

    Attributes:
      cells: places, sizes, brightness; capacity N.
      value, reach_um: the cells' shapes as `raster.owners` takes them.
      transform: as `raster.owners` takes it, or None.
      foreground: where cells may be.
    """

    cells: Cells
    value: raster.Value
    reach_um: jax.Array
    transform: Callable | None
    foreground: foregrounds.Foreground


Populate = Callable[[jax.Array, jax.Array, Site, Given], Population]


def draw(populate: Populate, key: jax.Array, num_cells: jax.Array, site: Site, given: Given) -> Specimen:
    """The specimen of a population."""
    population = populate(key, num_cells, site, given)
    cells = population.cells
    labels, crowded = raster.owners(
        population.value,
        cells.centre_um,
        population.reach_um,
        cells.valid,
        site.shape,
        jnp.asarray(site.spacing_um, jnp.float32),
        transform=population.transform,
        layers=site.layers,
        per_block=site.per_block,
    )
    return Specimen(
        labels=labels,
        brightness=jnp.concatenate([jnp.zeros(1), cells.brightness]),
        num_asked=jnp.asarray(num_cells, jnp.int32),
        num_placed=jnp.sum(cells.valid, dtype=jnp.int32),
        crowded=crowded,
        short=num_cells > site.max_cells,
        cells=cells,
    )


def region(site: Site, given: Given, default: foregrounds.Foreground) -> foregrounds.Foreground:
    """Where cells may be: as the user says, or `default`. An organism's shape is put into the middle."""
    if given.mask is not None:
        return foregrounds.mask(given.mask, jnp.asarray(site.spacing_um, jnp.float32))
    if given.organism is not None:
        return foregrounds.star(site.size_um / 2, given.organism)
    return default


def settle(key, num_cells, site, given, foreground, radii_um, rotation, clearance_um, clustering=0.0) -> Cells:
    """Places cells at random, in clusters, or where the user has them."""
    clearance_um = (1 - site.overlap) * clearance_um
    if given.centres_um is not None:
        centres, placed, overflow = at_given(num_cells, site, given)
    elif given.clustering is not None or clustering:
        probability = clustering if given.clustering is None else given.clustering
        centres, placed, overflow = placement.clustered_centres(
            keys.stream(key, "centres"), foreground, clearance_um, num_cells, probability
        )
    else:
        centres, placed, overflow = placement.random_centres(
            keys.stream(key, "centres"), foreground, clearance_um, num_cells
        )
    return collect(key, site, given, centres, radii_um, rotation, placed, overflow)


def at_given(num_cells, site: Site, given: Given) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first `num_cells` of the user's centres: centres, placed and overflow, as `placement` has them."""
    centres, placed, overflow = placement.given_centres(given.centres_um, site.max_cells)
    return centres, placed & (jnp.arange(site.max_cells) < num_cells), overflow


def collect(key, site, given, centres, radii_um, rotation, placed, overflow) -> Cells:
    """Gives cells their brightness and moves those placed to the front, so that labels count from 1 without gaps."""
    order = jnp.argsort(~placed, stable=True)
    fields = (centres, radii_um, rotation, shine(key, site.max_cells, given), placed)
    cells = Cells(*(field[order] for field in fields), overflow=overflow)
    return cells.replace(brightness=jnp.where(cells.valid, cells.brightness, 0.0))


def as_bright_as(tables: Sequence, backgrounds: Sequence) -> Given:
    """The brightness of some images alone, as `Intensity.brightness` and `.backgrounds` have it; (): not known."""
    tables, backgrounds = (jnp.asarray(rows, jnp.float32) if len(rows) else None for rows in (tables, backgrounds))
    return Given(brightness=tables, backgrounds=backgrounds)


def exposed(key: jax.Array, given: Given) -> tuple[Given, jax.Array]:
    """What the user brings with one of several tables of brightness, and the background that goes with it; `key` is
    that which cells are drawn with."""
    if given.brightness is None:
        return given, jnp.zeros(())
    table, background = brightness.of_one_image(keys.stream(key, "brightness"), given.brightness, given.backgrounds)
    return given._replace(brightness=table, backgrounds=None), background


def shine(key: jax.Array, num: int, given: Given) -> jax.Array:
    """Relative brightness of `num` cells: uniform, or as the user's table has it."""
    key = keys.stream(key, "brightness")
    return jax.random.uniform(key, (num,)) if given.brightness is None else brightness.draw(key, given.brightness, num)


def from_ellipsoids(key, cells, foreground, bend=0.0, transform=None) -> Population:
    """Ellipsoids, each bent by a B-spline warp of its own, of `bend` times its window."""
    value, reach_um = ellipsoids.value(cells), ellipsoids.extent_um(cells)
    if bend:
        num, ndim = cells.centre_um.shape
        control = deform.cell_bend(keys.stream(key, "bend"), num, ndim, bend)
        value, reach_um = deform.bent_value(value, reach_um, control)
    return Population(cells, value, reach_um, transform, foreground)
