"""Simulated specimens and all views of them, one program each: what `simulate` and `sample` both draw, from the same
keys."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct

from jaxsynth import keys
from jaxsynth.errors import InputError
from jaxsynth.records import Specimen
from jaxsynth.sim import membranes, microscope, shape_model, tissues, views
from jaxsynth.sim.sketch import LEVELS
from jaxsynth.sim.tissues import NOTHING, Given


@dataclass(frozen=True)
class Specimens:
    """How a recipe is drawn; all that a specimen depends on beside its name, the seed and what the user brings.

    Attributes:
      recipe: its name.
      shape: voxels.
      spacing_um: what the files state; None where the voxel size is unknown.
      drawn_at_um: the voxel size that the recipe is drawn at.
      num_cells: per specimen, or None for a draw from num_range.
      num_range: least and most cells, or None for the recipe's own.
      overlap: as `tissues.simulate` has it.
    """

    recipe: str
    shape: tuple[int, ...]
    spacing_um: tuple[float, ...] | None
    drawn_at_um: tuple[float, ...]
    num_cells: int | None
    num_range: tuple[int, int] | None
    overlap: float = 0.0


@dataclass(frozen=True)
class Wanted:
    """What is to be drawn of a specimen.

    Attributes:
      levels: grey levels of its sketch.
      maps: names of `views.MAPS`.
      alpha_um, beta_um: scales of the position map within and outside the organism (paper 003, eq. 1).
      render: whether a microscope takes its picture.
      merge: share of the cells that a poor segmentation joins to a neighbour.
    """

    levels: tuple[float, float, float] = LEVELS
    maps: tuple[str, ...] = ()
    alpha_um: float | None = None
    beta_um: float | None = None
    render: bool = False
    merge: float = 0.0


@struct.dataclass
class Drawn:
    """A specimen and views of it; None, or left out of `maps`, where not wanted or where there is no such thing.

    Attributes:
      specimen: see there; `labels` are the true ones.
      sketch: float32 [*S] in [-1, 1], unblurred.
      nuclei_sketch: likewise, of the nuclei of cells with membranes.
      maps: name -> [*S].
      image: float32 [*S], camera counts.
      merged: int32 [*S], the labels as a poor segmentation gives them.
    """

    specimen: Specimen
    sketch: jax.Array
    nuclei_sketch: jax.Array | None
    maps: dict[str, jax.Array]
    image: jax.Array | None
    merged: jax.Array | None


def plan(
    recipe: str,
    shape: tuple[int, ...] | None,
    spacing_um: tuple[float, ...] | None,
    num_cells: int | None,
    metadata: dict | None,
    overlap: float = 0.0,
) -> Specimens:
    """Fills in what the user left open, from the metadata of a checkpoint where there is one.

    A named organism has the size its paper says. The generic `nuclei` get size and number from the survey of the
    training images: the recipe is drawn as if a voxel were as large as makes them so.

    Raises:
      InputError: no such recipe, or shape, voxel size, number or overlap do not go with it.
    """
    found = tissues.find(recipe)
    seen = metadata and recipe == "nuclei" and spacing_um is None and metadata.get("cells")
    shape = shape or (tuple(seen["shape"]) if seen else found.shape)
    given = spacing_um
    if metadata:
        ndim = len(metadata["config"]["data"]["patch"])
        if len(shape) != ndim:
            raise InputError(f"recipe {recipe} would make {len(shape)}D images, the model is {ndim}D: set --shape")
        spacing_um = spacing_um or (metadata["spacing_um"] and tuple(metadata["spacing_um"]))
    tissues.check(found, shape, given)
    if num_cells is not None and num_cells < 0:
        raise InputError(f"--cells: expected 0 or more; got {num_cells}")
    if num_cells is not None and found.num_cells is None:
        raise InputError(f"--cells: recipe {recipe} fills its organism with cells of one size; leave it out")
    if not 0 <= overlap < 1:
        raise InputError(f"--overlap: expected a share in [0, 1); got {overlap}")
    if overlap and (found.extent != "field" or len(shape) != 2):
        raise InputError(
            f"--overlap: goes with 2D fields of nuclei, as projections are; not with {len(shape)}D {recipe}"
        )
    num_range = None
    if seen:
        relative = [step / spacing_um[-1] for step in spacing_um] if spacing_um else [1.0] * len(shape)
        drawn_at = tuple(step * found.radius_um / seen["radius_vox"] for step in relative)
        share = math.prod(shape) / math.prod(seen["shape"])
        num_range = tuple(max(1, round(factor * seen["num_cells"] * share)) for factor in (0.7, 1.3))
    elif metadata and not given and found.extent != "field":
        # One whole organism fills the image, whatever the voxel size.
        drawn_at = tissues.default_spacing(found, shape)
    else:
        drawn_at = spacing_um or tissues.default_spacing(found, shape)
        spacing_um = drawn_at
    return Specimens(recipe, shape, spacing_um, drawn_at, num_cells, num_range, overlap)


def drawer(
    plan: Specimens, wanted: Wanted, *, psf: jax.Array | None = None, model: shape_model.ShapeModel | None = None
) -> Callable[..., Drawn]:
    """A function that draws the specimen of a name: draw(root, name, given=NOTHING, num_cells=None) -> Drawn.

    Args:
      psf: as `microscope.image` takes it.
      model: of organisms: every specimen gets one of its own.

    The function depends on its arguments alone. `num_cells` is for given centres, of which only so many count. Where
    the field had no room for all cells, one warning line says how many were placed.
    """
    recipe = tissues.find(plan.recipe)
    num_range = plan.num_range or tissues.num_cells_range(recipe, plan.shape, plan.drawn_at_um)
    per_block = 0

    def draw(root: jax.Array, name: str, given: Given = NOTHING, num_cells: int | None = None) -> Drawn:
        nonlocal per_block
        key = keys.stream(root, "simulate", name)
        count = plan.num_cells if num_cells is None else num_cells
        most = num_range[1] if count is None else count
        if given.centres_um is not None:
            most = max(most, given.centres_um.shape[0])
        site = tissues.make_site(recipe, plan.shape, plan.drawn_at_um, most, plan.overlap)
        # Room that one specimen needed the others will need, and the list's length does not change what is drawn.
        site = replace(site, per_block=min(max(per_block, site.per_block), site.max_cells))

        def at(site):
            drawn = _draw(key, jnp.int32(-1 if count is None else count), given, psf, model,
                          recipe=recipe, site=site, num_range=num_range, wanted=wanted)  # fmt: skip
            return drawn, drawn.specimen

        drawn, site = tissues.with_room(at, site, name, recipe)
        per_block = max(per_block, site.per_block)
        return drawn

    return draw


@functools.partial(jax.jit, static_argnames=("recipe", "site", "num_range", "wanted"))
def _draw(key, num_cells, given, psf, model, *, recipe, site, num_range, wanted) -> Drawn:
    """One program, so that views share what they have in common and nothing is made twice."""
    spacing_um = site.spacing_um
    number = jax.random.randint(keys.stream(key, "num_cells"), (), num_range[0], num_range[1] + 1)
    given = with_organism(key, given, model)
    made = tissues.specimen(key, recipe, jnp.where(num_cells < 0, number, num_cells), site, given)
    image = None
    if wanted.render:
        shot = keys.stream(key, "render")
        image = microscope.image(
            shot,
            views.light(shot, made, spacing_um),
            spacing_um,
            psf_sigma_um=recipe.psf_sigma_um[-len(site.shape) :],
            psf=psf,
        )
    return Drawn(
        specimen=made,
        sketch=views.sketch(
            keys.stream(key, "sketch"), made, spacing_um, nucleoli=recipe.nucleoli, levels=wanted.levels
        ),
        nuclei_sketch=None if made.nuclei is None else views.nuclei_sketch(made, wanted.levels),
        maps=maps(made, spacing_um, wanted),
        image=image,
        merged=merge(keys.stream(key, "merge"), made, wanted.merge) if wanted.merge else None,
    )


def with_organism(key: jax.Array, given: Given, model: shape_model.ShapeModel | None) -> Given:
    """What the user brings, with a new organism of the model where there is one; inside jit."""
    if model is None:
        return given
    drawn = shape_model.draw(keys.stream(key, "organism"), model)
    return given._replace(organism=shape_model.table(model, drawn))


def maps(made: Specimen, spacing_um: tuple[float, ...], wanted: Wanted) -> dict[str, jax.Array]:
    """The maps wanted of a specimen, name -> [*S]; inside jit."""
    drawn = {name: views.MAPS[name](made, spacing_um) for name in wanted.maps if name != "position"}
    if "position" in wanted.maps:
        organism = views.organism(made, spacing_um)
        drawn["position"] = membranes.position_map(organism, spacing_um, wanted.alpha_um, wanted.beta_um)
    return drawn


def merge(key: jax.Array, made: Specimen, rate: float) -> jax.Array:
    """The labels with neighbours joined as `membranes.merge_neighbours` does it, across membranes where there are any.

    Walls between cells that are joined are filled, as a segmentation that missed them would have it.
    """
    max_cells = made.brightness.shape[0] - 1
    if made.membrane is None:
        return membranes.merge_neighbours(key, made.labels, rate, max_cells)[0]
    wall = made.membrane & (made.labels == 0)

    def spread(x):
        for axis in range(x.ndim):
            for side in (1, -1):
                x = jnp.maximum(x, _shifted(x, axis, side))
        return x

    def grow(carry):
        labels, _ = carry
        grown = jnp.where(wall & (labels == 0), spread(labels), labels)
        return grown, jnp.any(grown != labels)

    whole, _ = jax.lax.while_loop(lambda carry: carry[1], grow, (made.labels, jnp.bool_(True)))
    joined = membranes.merge_neighbours(key, whole, rate, max_cells)[0]

    def thicken(near):
        return spread(near.astype(jnp.int8)) > 0

    # Walls are the voxels near a boundary, so near that most of them, the corners aside, are found again. Those near
    # none any more are filled.
    def misses(carry):
        # What no boundary is near of, or all of it, thickening does not change.
        near = carry[0]
        return jnp.any(near) & ~jnp.all(near) & (jnp.sum(near & wall) < 0.9 * jnp.sum(wall))

    start = membranes.boundary(whole), membranes.boundary(joined)
    before, after = jax.lax.while_loop(misses, lambda carry: tuple(map(thicken, carry)), start)
    return jnp.where(wall & ~(before & ~after), 0, joined)


def _shifted(x: jax.Array, axis: int, side: int) -> jax.Array:
    """Every voxel's neighbour along an axis, 0 beyond the edge."""
    size = x.shape[axis]
    fill = [(0, 0)] * x.ndim
    fill[axis] = (1, 0) if side > 0 else (0, 1)
    return jnp.pad(jax.lax.slice_in_dim(x, max(-side, 0), size - max(side, 0), axis=axis), fill)
