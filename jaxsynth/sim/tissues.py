"""Named recipes, one per organism (papers 000, 001 and 003), and one call that draws a specimen of any.

A recipe's sizes are in micrometres, so it can be drawn at any shape and any voxel size. How its cells are made stands
in `recipes_nuclei` and `recipes_membranes`.
"""

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsynth import keys
from jaxsynth.errors import InputError
from jaxsynth.records import Specimen
from jaxsynth.sim import population, recipes_membranes, recipes_nuclei
from jaxsynth.sim.population import Given, Populate, Site

Draw = Callable[[jax.Array, jax.Array, Site, Given], Specimen]
NOTHING = Given()


@dataclass(frozen=True)
class Recipe:
    """One tissue.

    Attributes:
      name: as given on the command line.
      about: one line for the user.
      populate: makes the nuclei of tissues that consist of nuclei; None for the others.
      draw: makes the cells of the others.
      ndims: the ranks it can be drawn in.
      shape: the paper's image size, used where none is given.
      spacing_um: the voxel size that goes with it.
      num_cells: range of the number of cells in an image of that size, both ends included; None where cells fill
        the organism at a distance of their own, so that their number follows.
      fills: about how many that are in an image of that size; slots are made for so many, and more where they run out.
      extent: what an image of another shape shows: "field" more or less tissue at the same voxel size, "organism" all
        of one organism, pixels square, "map" all of a map, each axis on its own.
      radius_um: a typical radius.
      psf_sigma_um: the microscope's blur (z, y, x) that suits it.
      bend: outlines are bent by B-splines of up to this share of a cell's window.
      nucleoli: least and greatest number of dark nucleoli in a nucleus, for sketches.
    """

    name: str
    about: str
    populate: Populate | None
    draw: Draw | None
    ndims: tuple[int, ...]
    shape: tuple[int, ...]
    spacing_um: tuple[float, ...]
    num_cells: tuple[int, int] | None
    extent: str
    radius_um: float
    psf_sigma_um: tuple[float, float, float]
    fills: int = 0
    bend: float = 0.0
    nucleoli: tuple[int, int] = (0, 0)

    @property
    def clusters(self) -> bool:
        """Whether its cells may be put next to each other at will: not below a surface, nor all over an organism."""
        return self.populate is not None and self.populate not in recipes_nuclei.ON_SURFACES


def _nuclei(name, about, populate, *rest, **more) -> Recipe:
    return Recipe(name, about, populate, None, *rest, **more)


def _membranes(name, about, draw, *rest, **more) -> Recipe:
    return Recipe(name, about, None, draw, *rest, **more)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        _nuclei("nuclei", "nuclei of a cultured tissue, 2D or 3D, alone to touching", recipes_nuclei.nuclei, (2, 3),
                (256, 256), (0.5, 0.5), (35, 85), "field", 5.0, (0.9, 0.45, 0.45), bend=0.1),
        _nuclei("gowt1", "mouse stem cells, 2D", recipes_nuclei.gowt1, (2,),
                (1024, 1024), (0.24, 0.24), (20, 28), "field", 7.4, (1.0, 0.4, 0.4), bend=0.1, nucleoli=(0, 2)),
        _nuclei("hela", "HeLa nuclei in clusters, 2D", recipes_nuclei.hela, (2,),
                (700, 1100), (0.645, 0.645), (50, 140), "field", 8.3, (1.5, 0.6, 0.6), bend=0.15),
        _nuclei("celegans", "nuclei of a C. elegans embryo, 3D", recipes_nuclei.celegans, (3,),
                (35, 512, 708), (1.0, 0.09, 0.09), (20, 120), "organism", 3.0, (0.9, 0.25, 0.25)),
        _nuclei("tribolium", "T. castaneum embryo, nuclei of its surface as a map", recipes_nuclei.tribolium, (3,),
                (13, 2450, 1700), (1.0, 0.59, 0.3825), (2000, 3000), "map", 5.5, (1.5, 0.8, 0.8)),
        _nuclei("danio", "D. rerio nuclei of rough outline, 3D", recipes_nuclei.danio, (3,),
                (112, 512, 512), (0.5, 0.5, 0.5), (1500, 2200), "field", 4.5, (0.8, 0.4, 0.4)),
        _nuclei("harmonics", "cells of rough to smooth outline, 3D", recipes_nuclei.rough, (3,),
                (140, 140, 1000), (0.5, 0.5, 0.5), (150, 250), "field", 5.75, (0.8, 0.4, 0.4)),
        _nuclei("embryo_elongated", "elongated embryo, long nuclei below its surface, 3D",
                recipes_nuclei.embryo_elongated, (3,),
                (140, 140, 1000), (0.12, 0.12, 0.12), (150, 250), "organism", 1.2, (0.4, 0.2, 0.2)),
        _membranes("arabidopsis", "A. thaliana meristem, cells between membranes, 3D", recipes_membranes.arabidopsis,
                   (3,), (221, 495, 511), (0.22, 0.22, 0.22), None, "field", 2.5, (0.5, 0.25, 0.25), fills=1400),
        _membranes("drosophila", "Drosophila egg, rings of cells below its surface, 3D", recipes_membranes.drosophila,
                   (3,), (300, 300, 300), (0.8, 0.8, 0.8), None, "field", 2.4, (1.0, 0.6, 0.6), fills=5000),
    )
}  # fmt: skip


def find(name: str) -> Recipe:
    """The recipe of that name. Raises InputError that lists the names there are."""
    if name not in RECIPES:
        raise InputError(f"recipe: expected one of {', '.join(RECIPES)}; got {name!r}")
    return RECIPES[name]


def default_spacing(recipe: Recipe, shape: tuple[int, ...]) -> tuple[float, ...]:
    """The voxel size for a shape where the user gives none, micrometres (z, y, x); see `Recipe.extent`.

    A whole organism is fitted into the shape: the depth axis on its own, the axes in the plane by the tighter of
    the two, so that pixels stay square.
    """
    if recipe.extent == "field":
        if len(shape) == len(recipe.spacing_um):
            return recipe.spacing_um
        return (2 * recipe.spacing_um[-1], *recipe.spacing_um)
    extent = [size * step for size, step in zip(recipe.shape, recipe.spacing_um, strict=True)]
    if recipe.extent == "map":
        return tuple(length / size for length, size in zip(extent, shape, strict=True))
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
    if spacing_um is not None and recipe.extent == "map":
        own = default_spacing(recipe, shape)
        if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(spacing_um[1:], own[1:], strict=True)):
            plane = ", ".join(f"{step:.4g}" for step in own[1:])
            raise InputError(
                f"spacing_um: recipe {recipe.name} shows all of its map; at shape {tuple(shape)} voxels are {plane} um"
            )


def num_cells_range(recipe: Recipe, shape: tuple[int, ...], spacing_um: tuple[float, ...]) -> tuple[int, int]:
    """How many cells an image of that shape is to get, both ends included; (0, 0) where that follows by itself."""
    low, high = recipe.num_cells or (0, 0)
    if recipe.extent != "field" or not high:
        return low, high

    def extent(sizes, steps) -> float:
        return math.prod(size * step for size, step in zip(sizes, steps, strict=True))

    share = extent(shape[-2:], spacing_um[-2:]) / extent(recipe.shape[-2:], recipe.spacing_um[-2:])
    if len(shape) > len(recipe.shape):
        # Depth in layers of cells, each as full as the 2D image.
        share *= max(1.0, shape[0] * spacing_um[0] / (1.8 * recipe.radius_um))
    elif len(shape) == 3:
        share *= shape[0] * spacing_um[0] / (recipe.shape[0] * recipe.spacing_um[0])
    return max(1, round(low * share)), max(1, round(high * share))


def make_site(
    recipe: Recipe,
    shape: tuple[int, ...],
    spacing_um: tuple[float, ...],
    most_cells: int,
    overlap: float = 0.0,
) -> Site:
    """Room for `most_cells` cells; 0 for those that fill the recipe's organism, if it is one that cells fill."""
    if recipe.num_cells is None and not most_cells:
        extents = zip(shape, spacing_um, recipe.shape, recipe.spacing_um, strict=True)
        most_cells = math.ceil(recipe.fills * math.prod(n * step / (m * own) for n, step, m, own in extents))
    max_cells = 64 * max(1, math.ceil(most_cells / 64))
    # A block meets few nuclei, and many cells that might be the nearest.
    per_block = min(16 if recipe.num_cells else 64, max_cells)
    return Site(shape, spacing_um, max_cells, per_block, recipe.bend, overlap, 4 if overlap else 1)


def specimen(key: jax.Array, recipe: Recipe, num_cells: jax.Array, site: Site, given: Given = NOTHING) -> Specimen:
    """One specimen, as a kernel: pure, to be called inside jit and vmap.

    Args:
      key: typed PRNG key.
      recipe, site: static.
      num_cells: int32 [], how many to place; without effect where `recipe.num_cells` is None.
    """
    key = keys.stream(key, "cells")
    if recipe.populate is None:
        return recipe.draw(key, num_cells, site, given)
    given, background = population.exposed(key, given)
    made = population.draw(recipe.populate, key, num_cells, site, given)
    return made.replace(brightness=made.brightness.at[0].set(background))


@functools.partial(jax.jit, static_argnames=("recipe", "site", "num_range"))
def _simulate(key, num_cells, given, *, recipe, site, num_range):
    drawn = jax.random.randint(keys.stream(key, "num_cells"), (), num_range[0], num_range[1] + 1)
    return specimen(key, recipe, jnp.where(num_cells < 0, drawn, num_cells), site, given)


def simulate(
    key: jax.Array,
    recipe: str | Recipe,
    shape: tuple[int, ...] | None = None,
    spacing_um: tuple[float, ...] | None = None,
    num_cells: int | None = None,
    num_range: tuple[int, int] | None = None,
    *,
    overlap: float = 0.0,
    given: Given = NOTHING,
) -> Specimen:
    """Draws one specimen. Compiled once per recipe, shape and voxel size; not to be called inside jit.

    Args:
      key: typed PRNG key.
      recipe: a name or a record.
      shape: S; the recipe's own where None.
      spacing_um: D micrometres per voxel; `default_spacing` where None.
      num_cells: how many cells to place, cut ones at the edge included; drawn from `num_range` where None.
      num_range: least and most cells; `num_cells_range` where None.
      overlap: share in [0, 1) by which cells may come closer than touching, as in projections of thick tissue; above 0
        the labels are [M, *S], see `Specimen`.
      given: what the user brings. With centres, all of them are cells, unless `num_cells` is given.

    Returns:
      `Specimen`. Where the field had no room for all cells, one warning line says how many were placed.

    Raises:
      InputError: no such recipe, a rank it cannot be drawn in, sizes or counts below their least, or arguments that
        do not apply to it.
    """
    recipe = find(recipe) if isinstance(recipe, str) else recipe
    shape = tuple(int(size) for size in (shape or recipe.shape))
    check(recipe, shape)
    spacing_um = tuple(float(step) for step in (spacing_um or default_spacing(recipe, shape)))
    check(recipe, shape, spacing_um)
    _check_choices(recipe, shape, num_cells, overlap, given)
    if num_cells is None and given.centres_um is not None:
        num_cells = len(given.centres_um)
    num_range = num_range or num_cells_range(recipe, shape, spacing_um)
    site = make_site(recipe, shape, spacing_um, max(num_range[1], num_cells or 0), overlap)
    count = jnp.int32(-1 if num_cells is None else num_cells)

    def draw(site: Site) -> tuple[Specimen, Specimen]:
        made = _simulate(key, count, given, recipe=recipe, site=site, num_range=num_range)
        return made, made

    return with_room(draw, site, f"recipe {recipe.name} at shape {shape}", recipe)[0]


def with_room(draw: Callable[[Site], tuple[Any, Specimen]], site: Site, what: str, recipe: Recipe) -> tuple[Any, Site]:
    """Draws with more and more room until there is enough, and warns once where cells found no place.

    Args:
      draw: site -> (result, the specimen in it); called outside jit.
      site: to begin with.
      what: is drawn, for the warning.

    Returns:
      The result, and the site that had room for it.
    """
    while True:
        result, made = draw(site)
        crowded, short = bool(made.crowded), bool(made.short)
        if not (crowded or short):
            break
        site = more_room(site, crowded, short)
    asked, placed = int(made.num_asked), int(made.num_placed)
    if placed < asked or (not placed and recipe.num_cells is None):
        logging.getLogger(__name__).warning("%s: no room for all cells, placed %d of %d cells", what, placed, asked)
    return result, site


def more_room(site: Site, crowded: bool, short: bool) -> Site:
    """The site to draw a specimen at again that had not enough room at this one; see `Specimen`."""
    if short:
        site = replace(site, max_cells=2 * site.max_cells)
    if crowded and site.per_block < site.max_cells:
        return replace(site, per_block=min(2 * site.per_block, site.max_cells))
    if crowded:
        return replace(site, layers=2 * site.layers)
    return site


def _check_choices(recipe, shape, num_cells, overlap, given) -> None:
    """Raises InputError for arguments out of range, and for those that do not apply to the recipe."""
    if num_cells is not None and num_cells < 0:
        raise InputError(f"num_cells: expected 0 or more; got {num_cells}")
    if num_cells is not None and recipe.num_cells is None and given.centres_um is None:
        raise InputError(f"num_cells: recipe {recipe.name} fills its organism with cells of one size; leave it out")
    if not 0 <= overlap < 1:
        raise InputError(f"overlap: expected a share in [0, 1); got {overlap}")
    if given.mask is not None and given.organism is not None:
        raise InputError("mask, organism: both say where cells may be; give one of the two")
    if given.clustering is not None and (given.centres_um is not None or not recipe.clusters):
        raise InputError(
            f"clustering: recipe {recipe.name} has a way of its own to place its cells, or centres are given"
        )
    if overlap and (recipe.populate is None or recipe.extent != "field"):
        raise InputError(f"overlap: goes with fields of nuclei, not with recipe {recipe.name}")
    if given.mask is not None and given.mask.shape != shape:
        raise InputError(f"mask: expected the shape {shape}; got {given.mask.shape}")
    if given.centres_um is not None and (given.centres_um.ndim != 2 or given.centres_um.shape[1] != len(shape)):
        raise InputError(f"centres_um: expected [M, {len(shape)}]; got {list(given.centres_um.shape)}")
    if given.centres_um is not None and recipe.extent == "map":
        raise InputError(f"centres_um: recipe {recipe.name} is a map of a curved surface; it places its own cells")
    if (given.mask is not None or given.organism is not None) and recipe.extent == "map":
        raise InputError(f"mask, organism: recipe {recipe.name} is a map of a surface of its own")
