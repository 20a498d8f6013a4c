"""The recipes whose cells are nuclei: where they lie, how large they are, what they are shaped like.

Each function is (key, num_cells, site, given) -> Population, inside jit. Sizes are in micrometres.
"""

import math

import jax
import jax.numpy as jnp

from jaxsynth import keys
from jaxsynth.sim import cartography, deform, foregrounds, grid, harmonics, placement, starshape
from jaxsynth.sim.population import Population, at_given, collect, from_ellipsoids, region, settle


def _shapes(key, radius, low, high, ndim) -> tuple[jax.Array, jax.Array]:
    """Semi-axes r (s, 1[, 1]) for radii r [N] and s in U(low, high); uniform rotations."""
    num = radius.shape[0]
    scale = jax.random.uniform(keys.stream(key, "scale"), (num, 1), minval=low, maxval=high)
    radii_um = radius[:, None] * jnp.concatenate([scale, jnp.ones((num, ndim - 1))], axis=1)
    return radii_um, grid.random_rotation(keys.stream(key, "rotation"), num, ndim)


def _uniform(key, name, num, low, high) -> jax.Array:
    return jax.random.uniform(keys.stream(key, name), (num,), minval=low, maxval=high)


def mean_radius(radii_um: jax.Array) -> jax.Array:
    """Radius of the ball of equal volume: [N, D] -> [N]."""
    return jnp.exp(jnp.mean(jnp.log(radii_um), axis=-1))


def _field(
    key, num_cells, site, given, low, high, scale_low, scale_high, clearance, clusters=None, clustering=0.0
) -> Population:
    """A field of ellipsoids over the whole image, cut by its edge, with radii in U(low, high)."""
    radius = _uniform(key, "radius", site.max_cells, low, high)
    radii_um, rotation = _shapes(key, radius, scale_low, scale_high, len(site.shape))
    image = foregrounds.whole_image(site.size_um, radii_um, rotation)
    inner = region(site, given, clusters)
    foreground = image if inner is None else foregrounds.both(inner, image)
    cells = settle(
        key, num_cells, site, given, foreground, radii_um, rotation, clearance * mean_radius(radii_um), clustering
    )
    return from_ellipsoids(key, cells, foreground, site.bend)


def nuclei(key, num_cells, site, given) -> Population:
    """Nuclei of a cultured tissue, from alone to touching, in 2D or 3D, over the whole image and cut by its edge.

    Semi-axes r (s, 1[, 1]) with r in U(4, 6.5) um and s in U(0.6, 1). Centres keep 85 % of the sum of the mean radii,
    so some cells press against each other.
    """
    return _field(key, num_cells, site, given, 4.0, 6.5, 0.6, 1.0, 0.85)


def gowt1(key, num_cells, site, given) -> Population:
    """Mouse stem cells (000, 001): semi-axes r (s, 1), r in U(30, 37) voxels of 0.24 um, s in U(0.68, 1).

    Apart, a tenth of them put next to another; outlines bent by B-splines of 3 x 3 control points, +-10 % of the
    window. The paper's r in U(30, 45), s in U(0.75, 1) and +-5 %, all of them anywhere, gave larger, rounder and
    smoother nuclei than those of the Cell Tracking Challenge are, and fewer near others.
    """
    return _field(key, num_cells, site, given, 30 * 0.24, 37 * 0.24, 0.68, 1.0, 1.0, clustering=0.1)


def hela(key, num_cells, site, given) -> Population:
    """HeLa nuclei in clusters (000, 001): a union of 9 to 18 discs of radius 100 voxels at random places.

    Semi-axes r (s, 1), r in U(12.5, 17.5) voxels of 0.645 um, s in U(0.57, 0.9), bent by +-15 % of the window. Centres
    keep 90 % of the sum of the mean radii. A smaller image gets proportionally fewer discs, at least one. The paper's
    r in U(10, 20), s in U(0.5, 1), +-10 % and 15 to 30 discs spread wider than the Cell Tracking Challenge's do.
    """
    voxel = 0.645
    share = math.prod(n * step / voxel for n, step in zip(site.shape, site.spacing_um, strict=True)) / (700 * 1100)
    discs = foregrounds.disc_clusters(
        keys.stream(key, "discs"), site.size_um, (max(1, round(9 * share)), max(1, round(18 * share))), 100 * voxel
    )
    return _field(key, num_cells, site, given, 12.5 * voxel, 17.5 * voxel, 0.57, 0.9, 0.9, discs)


def celegans(key, num_cells, site, given) -> Population:
    """Nuclei of an early C. elegans embryo (000, 001): one ellipsoidal embryo, semi-axes 0.3 of the image.

    A cell gets 1 / (3 n) of the embryo's volume, so the radius r falls as the n cells divide. Semi-axes r (s, 1, 1)
    with s in U(0.5, 1), isotropic in micrometres (the paper's 0.09 along z is the ratio of the voxel's edges); 10 %
    of the cells, just divided, are r (0.5, 0.7, 1.6). Rotations are uniform over SO(3) and centres 2 r apart.
    """
    semi_axes = 0.3 * site.size_um
    radius = jnp.cbrt(jnp.prod(semi_axes) / (3.0 * jnp.maximum(num_cells, 1)))
    scales, rotation = _shapes(key, jnp.ones(site.max_cells), 0.5, 1.0, 3)
    divided = jax.random.bernoulli(keys.stream(key, "divided"), 0.1, (site.max_cells, 1))
    radii_um = radius * jnp.where(divided, jnp.asarray([0.5, 0.7, 1.6]), scales)
    embryo = region(site, given, foregrounds.ellipsoid(site.size_um / 2, semi_axes))
    clearance = jnp.broadcast_to(radius, site.max_cells)
    cells = settle(key, num_cells, site, given, embryo, radii_um, rotation, clearance)
    return from_ellipsoids(key, cells, embryo)


def tribolium(key, num_cells, site, given) -> Population:
    """Nuclei of a T. castaneum embryo, as a map of its surface (000, TRIC): up to 3000, densely on a shell.

    The embryo is a sphere of radius 230 um, each axis times U(0.95, 1); nuclei are balls with r in U(5, 6) um (the
    published code's whole numbers from [5, 6) are all 5). The map's 13 planes are 13 radii, 5 % are left off at each
    pole, and cells near the poles are stretched as any map stretches them. Nuclei are drawn straight onto the map.
    """
    radius = 230.0
    stretch = _uniform(key, "embryo", 3, 0.95, 1.0)
    radii = _uniform(key, "radius", site.max_cells, 5.0, 6.0)
    rotation = jnp.broadcast_to(jnp.eye(3), (site.max_cells, 3, 3))
    centre = jnp.full(3, radius)
    surface = foregrounds.ellipsoid(centre, radius * stretch)
    centres, placed, overflow = placement.shell_centres(
        keys.stream(key, "centres"), centre, radius * stretch, 0.999, radii, num_cells
    )
    cells = collect(key, site, given, centres, jnp.tile(radii[:, None], 3), rotation, placed, overflow)
    projection = cartography.make_projection(centre, radius * stretch, site.shape, site.spacing_um)
    return from_ellipsoids(key, cells, surface, transform=lambda axes: cartography.positions(projection, axes))


def danio(key, num_cells, site, given) -> Population:
    """Nuclei of a D. rerio embryo (003): spherical harmonics of order 5, gamma 5, r in N(9, 1) voxels of 0.5 um.

    Their power falls as l^-gamma, as in the program that made the paper's data; eq. 7's e^(-gamma l) makes spheres.
    The paper puts them at the detections of a real image, which `given.centres_um` does; else they lie anywhere, apart.
    """
    radius = jnp.maximum(9.0 + jax.random.normal(keys.stream(key, "radius"), (site.max_cells,)), 4.0)
    return _harmonic(key, num_cells, site, given, 0.5 * radius, 5, jnp.full(site.max_cells, 5.0), "power")


def rough(key, num_cells, site, given) -> Population:
    """Cells of rough outline (003): harmonics of order 20, gamma in U(0.5, 2.5), r in U(9, 14) voxels of 0.5 um."""
    radius = 0.5 * _uniform(key, "radius", site.max_cells, 9.0, 14.0)
    gamma = _uniform(key, "gamma", site.max_cells, 0.5, 2.5)
    return _harmonic(key, num_cells, site, given, radius, 20, gamma)


def _harmonic(key, num_cells, site, given, radius, order, gamma, decay="order") -> Population:
    """Star-shaped cells over the whole image: harmonics about spheres of radius [N], which keep apart."""
    num = site.max_cells
    radii_um = jnp.tile(radius[:, None], 3)
    rotation = jnp.broadcast_to(jnp.eye(3), (num, 3, 3))
    image = foregrounds.whole_image(site.size_um, radii_um, rotation)
    inner = region(site, given, None)
    foreground = image if inner is None else foregrounds.both(inner, image)
    cells = settle(key, num_cells, site, given, foreground, radii_um, rotation, radius)
    draws = jax.random.split(keys.stream(key, "harmonics"), num)

    def shape(key, radius, gamma):
        return harmonics.random_coefficients(key, radius, order, gamma, decay=decay)

    shapes = jax.vmap(shape)(draws, cells.radii_um[:, 0], gamma)
    table = harmonics.table(shapes, 3)
    return Population(cells, starshape.value(table), starshape.reach_um(table), None, foreground)


def embryo_elongated(key, num_cells, site, given) -> Population:
    """Long nuclei below the surface of an elongated embryo (003, code): an ellipsoid with two dents, bent three times.

    Nuclei are elongated 1.5 to 3 times, their long axis along the gradient of the distance to the surface.
    """
    num, size = site.max_cells, site.size_um
    body, short = foregrounds.ellipsoid(size / 2, 0.4 * size), jnp.min(size)
    dents = deform.random_dents(keys.stream(key, "dents"), size / 2, 0.4 * size, 2, 0.05 * short, 0.2 * short)
    bend = deform.gaussian_bend(keys.stream(key, "bend"), size, 3)
    embryo = region(site, given, foregrounds.bent(foregrounds.bent(body, dents), bend))
    depth = foregrounds.depth_field(embryo)
    radius = 1.2 * _uniform(key, "radius", num, 0.8, 1.2)
    longer = _uniform(key, "elongation", num, 1.5, 3.0)[:, None]
    radii_um = radius[:, None] * jnp.concatenate([longer ** (2 / 3), longer ** (-1 / 3), longer ** (-1 / 3)], -1)
    if given.centres_um is None:
        centres, placed, overflow = placement.surface_centres(
            keys.stream(key, "centres"), depth, radii_um[:, 0], radii_um[:, 0] + 2.0, radius, num_cells
        )
    else:
        centres, placed, overflow = at_given(num_cells, site, given)
    rotation = placement.align(keys.stream(key, "spin"), foregrounds.inward_normal(depth, centres))
    cells = collect(key, site, given, centres, radii_um, rotation, placed, overflow)
    return from_ellipsoids(key, cells, embryo)


ON_SURFACES = (tribolium, embryo_elongated)  # recipes whose cells lie on or below a surface
