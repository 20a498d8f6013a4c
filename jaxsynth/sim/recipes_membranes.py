"""The recipes whose cells fill an organism and meet at membranes.

Each function is (key, num_cells, site, given) -> Specimen, inside jit; the number of cells follows from their distance.
"""

import jax
import jax.numpy as jnp

from jaxsynth import keys
from jaxsynth.records import Cells, Specimen
from jaxsynth.sim import ellipsoids, foregrounds, grid, membranes, placement, shape_model, starshape, voronoi
from jaxsynth.sim.population import Given, Site, at_given, region, shine

NUCLEUS = 0.3  # radius of a nucleus, relative to the distance to the next cell


def arabidopsis(key, num_cells, site, given) -> Specimen:
    """A shoot apical meristem of A. thaliana (003): a statistical shape model, filled layer by layer from its surface.

    Layers and cells are 23 voxels of 0.22 um apart, and both get 0.9 times as dense with every layer inwards, with a
    radial jitter that grows with the depth. Without `given.organism` the shape is drawn from the analytic
    `shape_model.meristem`, its first 3 modes, cut by the base of the volume.
    """
    default = None
    if given.organism is None and given.mask is None:
        height_um, width_um = 0.95 * site.size_um[0], 0.8 * jnp.min(site.size_um[1:])
        model = shape_model.meristem(height_um, width_um)
        table = shape_model.table(model, shape_model.draw(keys.stream(key, "organism"), model, 3))
        low, high = (corner[0] for corner in starshape.box_um(table[None]))
        # The base lies on the end of the volume, which cuts it; to the sides the plant is in the middle.
        centre = (site.size_um - low - high) / 2
        centre = centre.at[0].set(site.size_um[0] - shape_model.BASE * height_um)
        default = foregrounds.star(centre, table)
    organism = region(site, given, default)
    distance_um = 23 * 0.22
    depth = foregrounds.depth_field(organism)
    places = _places(key, num_cells, site, given, depth, distance_um, shrink=1 / 0.9)
    return _tissue(key, num_cells, site, given, organism, depth, places, distance_um)


def drosophila(key, num_cells, site, given) -> Specimen:
    """A Drosophila egg (003, code): a hollow ellipsoid, flatness 0.4, elongation 2, shrink 0.3, in rings of cells.

    Cells are 6 voxels of 0.8 um apart, in two rings below the surface.
    """
    distance_um = 6 * 0.8
    egg = region(site, given, foregrounds.hollow_egg(site.size_um))
    # Rings are counted from the outer surface; the inner one is no surface to start from.
    depth = foregrounds.depth_field(region(site, given, foregrounds.hollow_egg(site.size_um, shrink=1.0)))
    places = _places(key, num_cells, site, given, depth, distance_um, max_layers=2)
    return _tissue(key, num_cells, site, given, egg, depth, places, distance_um)


def _places(key, num_cells, site: Site, given: Given, depth, distance_um, **layers):
    """Where the cells are: in layers, as far apart from each other as the layers; or the user's centres."""
    if given.centres_um is not None:
        return at_given(num_cells, site, given)
    centres, placed, _, short = placement.layered_centres(
        keys.stream(key, "centres"), depth, distance_um, distance_um, site.max_cells, **layers
    )
    return centres, placed, short


def _tissue(key, num_cells, site: Site, given: Given, organism, depth, places, distance_um) -> Specimen:
    """Cells about their places: a weighted Voronoi partition, membranes, and a nucleus in each."""
    spacing_um = jnp.asarray(site.spacing_um, jnp.float32)
    centres, placed, short = places
    # Where the volume cuts the organism, cells beyond it still shape those within.
    order = jnp.argsort(~placed, stable=True)
    centres, placed = centres[order], placed[order]
    nearest_um = voronoi.nearest_neighbour_um(centres, placed)
    mask = foregrounds.voxels(organism, site.shape, spacing_um)
    whole, crowded = voronoi.partition(
        centres, voronoi.weights(nearest_um), placed, site.shape, spacing_um, mask, per_block=site.per_block
    )
    interiors = membranes.open_interiors(whole, spacing_um, 0.1 * distance_um, 0.13 * distance_um, site.max_cells)
    brightness = jnp.where(placed, shine(key, site.max_cells, given), 0.0)
    room_um = jnp.where(jnp.isfinite(nearest_um), nearest_um, distance_um)
    flat = jax.random.uniform(keys.stream(key, "nuclei"), (site.max_cells, 3), minval=0.8, maxval=1.1)
    cells = Cells(
        centre_um=centres,
        radii_um=NUCLEUS * room_um[:, None] * flat,
        rotation=grid.random_rotation(keys.stream(key, "spin"), site.max_cells, 3),
        brightness=brightness,
        valid=placed,
        overflow=short,
    )
    nuclei, full = ellipsoids.rasterise(cells, site.shape, spacing_um, per_block=site.per_block)
    return Specimen(
        labels=interiors.labels,
        brightness=jnp.concatenate([jnp.zeros(1), brightness]),
        # The user's cells all count, also those without a voxel in the organism.
        num_asked=interiors.kept + interiors.lost if given.centres_um is None else jnp.asarray(num_cells, jnp.int32),
        num_placed=interiors.kept,
        crowded=crowded | full,
        short=short,
        nuclei=jnp.where(nuclei == interiors.labels, nuclei, 0),
        # Solid where three cells meet, and not a voxel missing where a wall is thinner than one.
        membrane=mask & (interiors.labels == 0),
        depth=depth,
    )
