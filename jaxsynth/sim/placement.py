"""Where cells are put: at random, near a surface, layer by layer, in clusters, or where the user says.

Every function gives cells a fixed number of slots and returns which of them are filled, and an overflow flag where
not all could be. `sim.sources` says where points may be, `sim.packing` keeps them apart.
"""

import jax
import jax.numpy as jnp

from jaxsynth import keys
from jaxsynth.sim import foregrounds, packing, sources

CLUSTER_TRIES = 64  # places tried at a time for one cell


def random_centres(
    key: jax.Array,
    foreground: foregrounds.Foreground,
    clearance_um: jax.Array,
    num_cells: jax.Array | int,
    *,
    rounds: int = 200,
    attempts: int = 12,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random centres that keep their distance.

    Fields up to about half full are purely random: points drawn uniformly, kept where there is room (random
    sequential adsorption). Fuller ones are completed by repulsion, which makes them more regular
    (`packing.place`). The published programs drop cells that find no room without a word.

    Args:
      key: typed PRNG key.
      foreground: the region; its test may depend on the cell.
      clearance_um: float32 [N]; cells i and j are at least clearance_i + clearance_j apart.
      num_cells: int32 [], how many of the N slots to fill (the first ones); may be traced.
      rounds: static; most rounds of random points.
      attempts: static; most attempts at repulsion; with 0 the field is random or not full.

    Returns:
      centres_um float32 [N, D], placed bool [N] (a subset of the first num_cells slots), overflow bool []: fewer
      were placed than asked for, for want of room or of slots.
    """
    return _fill(
        key, sources.uniform(foreground), foreground.low_um.shape[0], clearance_um, num_cells, rounds, attempts
    )


def shell_centres(
    key: jax.Array,
    centre_um: jax.Array,
    semi_axes_um: jax.Array,
    inner: jax.Array | float,
    clearance_um: jax.Array,
    num_cells: jax.Array | int,
    *,
    rounds: int = 200,
    attempts: int = 12,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`random_centres` in `foregrounds.shell(centre_um, semi_axes_um, inner)`, which may be as thin as you like."""
    source = sources.shell(centre_um, semi_axes_um, inner)
    return _fill(key, source, semi_axes_um.shape[0], clearance_um, num_cells, rounds, attempts)


def surface_centres(
    key: jax.Array,
    depth: foregrounds.Depth,
    low_depth_um: jax.Array | float,
    high_depth_um: jax.Array | float,
    clearance_um: jax.Array,
    num_cells: jax.Array | int,
    *,
    rounds: int = 200,
    attempts: int = 12,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random centres between two depths below a surface, as `random_centres`.

    Args:
      depth: of the organism (`foregrounds.depth_field`).
      low_depth_um, high_depth_um: range of depths, scalars or [N], each cell's own; may be equal. Depths are kept
        within `sources.tolerance_um(depth)`.
    """
    source = sources.near_surface(depth, low_depth_um, high_depth_um)
    return _fill(key, source, depth.values.ndim, clearance_um, num_cells, rounds, attempts)


def layered_centres(
    key: jax.Array,
    depth: foregrounds.Depth,
    layer_um: jax.Array | float,
    distance_um: jax.Array | float,
    capacity: int,
    *,
    shrink: jax.Array | float = 0.9,
    jitter: jax.Array | float = 0.1,
    closest: float = 0.8,
    max_layers: jax.Array | int = 16,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Centres in layers from the boundary inwards, each layer filled before the next (paper 003, section 3.2).

    The first layer lies at half the layer distance. Layer distance and cell distance both shrink from layer to layer.
    A layer is filled until no more cells fit at the closest distance, then its cells are pushed apart towards the
    cell distance. The published program sets cells on a regular grid of angles and merges those that come close; here
    none come close in the first place.

    Args:
      key: typed PRNG key.
      depth: of the organism (`foregrounds.depth_field`).
      layer_um: distance between the first two layers before shrinking.
      distance_um: distance between neighbouring cells of the first layer.
      capacity: N, static.
      shrink: factor on both distances per layer.
      jitter: of the depth within layer l, as a share of l times its layer distance, to either side.
      closest: static; no two centres of the whole set are closer than this share of their mean cell distance.
      max_layers: may be traced. One or few give the rings of cells below the surface of a Drosophila egg.

    Returns:
      centres_um float32 [N, D] and placed bool [N], from the outermost layer inwards without gaps; layer int32 [N],
      from 0, and -1 for empty slots; overflow bool []: no slot was left, so that cells may be missing.
    """
    ndim = depth.values.ndim
    # An organism too thin for its first layer has it in its middle.
    first_um = jnp.minimum(0.5 * layer_um, 0.5 * jnp.maximum(jnp.max(depth.values), 0.0))

    def add(carry):
        number, below, centres, placed, layer, reach = carry
        factor = shrink**number
        apart_um = jnp.where(placed, reach, 0.5 * distance_um * factor)
        swing = jitter * number * factor * layer_um
        # Never above half of the first layer, whatever the jitter.
        source = sources.near_surface(depth, jnp.maximum(below - swing, 0.5 * first_um), below + swing)
        here = keys.stream(key, "layer", number)
        new, filled = packing.place(here, source, closest * apart_um, ~placed, centres, placed, attempts=0)

        def even(turn, x):
            # Evened out first, then put right where that brought two too close.
            share, steps = jnp.where(turn == 0, 1.0, closest), jnp.where(turn == 0, 20, 100)
            return packing.spread(source, share * apart_um, x, filled, placed, steps)

        new = jax.lax.fori_loop(0, 2, even, new)
        # Hardly ever is a cell left that cannot get away from those of the last layer.
        filled = packing.apart(closest * apart_um, new, filled, placed)
        layer = jnp.where(filled & ~placed, number, layer)
        below = below + factor * shrink * layer_um
        return number + 1, below, new, filled, layer, apart_um

    def unfinished(carry):
        number, below, _, placed, _, _ = carry
        return (number < max_layers) & (below < jnp.max(depth.values)) & ~jnp.all(placed)

    empty = jnp.zeros(capacity)
    start = (jnp.int32(0), first_um, jnp.zeros((capacity, ndim)), empty > 0, jnp.full(capacity, -1), empty)
    _, _, centres, placed, layer, _ = jax.lax.while_loop(unfinished, add, start)
    order = jnp.argsort(jnp.where(placed, layer, max_layers), stable=True)
    return centres[order], placed[order], layer[order], jnp.all(placed)


def clustered_centres(
    key: jax.Array,
    foreground: foregrounds.Foreground,
    clearance_um: jax.Array,
    num_cells: jax.Array | int,
    probability: jax.Array | float,
    *,
    rounds: int = 20,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cells placed one after the other: with a probability next to one already there, else anywhere free.

    The population synthesis of paper 002 with its clustering probability, also used in 003. "Next to" is touching, a
    random one in a random direction. Who finds no such place is put anywhere free. 0 is a random field, 1 one cluster.

    Args:
      key, foreground, clearance_um, num_cells: as in `random_centres`.
      probability: in [0, 1].
      rounds: static; places are tried 64 at a time, so often, and as often again anywhere.

    Returns:
      As `random_centres`. There is no repulsion, so a field fills to about one half.
    """
    capacity, ndim = clearance_um.shape[0], foreground.low_um.shape[0]
    anywhere = sources.uniform(foreground, oversample=1)

    def add(cell, carry):
        centres, placed, order, count = carry
        own, here = clearance_um[cell], keys.stream(key, "cell", cell)
        clustered = (jax.random.uniform(keys.stream(here, "clustered")) < probability) & (count > 0)

        def attempt(carry):
            number, _, _ = carry
            dart = keys.stream(here, "dart", number)
            free, sound = anywhere.propose(keys.stream(dart, "free"), CLUSTER_TRIES)
            pick = jax.random.randint(keys.stream(dart, "mother"), (CLUSTER_TRIES,), 0, jnp.maximum(count, 1))
            mother = order[pick]
            way = jax.random.normal(keys.stream(dart, "way"), (CLUSTER_TRIES, ndim))
            way = way / jnp.linalg.norm(way, axis=1, keepdims=True)
            # A little more than touching, or rounding would find half of them too close.
            beside = centres[mother] + way * ((clearance_um[mother] + own) * (1 + 1e-4))[:, None]
            near = clustered & (number < rounds)
            points = jnp.where(near, beside, free)
            sound = jnp.where(near, sources.inside(foreground, points), sound)
            sound = sound[:, cell if sound.shape[1] == capacity else 0]
            sound &= packing.gaps(points, centres, clearance_um, placed) >= own
            return number + 1, points[jnp.argmax(sound)], jnp.any(sound)

        def unfinished(carry):
            number, _, found = carry
            return (number < jnp.where(clustered, 2 * rounds, rounds)) & (cell < num_cells) & ~found

        start = (jnp.int32(0), jnp.zeros(ndim), jnp.zeros((), bool))
        _, point, found = jax.lax.while_loop(unfinished, attempt, start)
        order = order.at[jnp.where(found, count, capacity)].set(cell, mode="drop")
        return centres.at[cell].set(point), placed.at[cell].set(found), order, count + found

    slots = jnp.zeros(capacity, jnp.int32)
    start = (jnp.zeros((capacity, ndim)), slots > 0, slots, jnp.int32(0))
    centres, placed, _, _ = jax.lax.fori_loop(0, jnp.minimum(num_cells, capacity), add, start)
    return centres, placed, jnp.sum(placed) < num_cells


def given_centres(points_um: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The user's points, float32 [M, D], in `capacity` slots: centres, placed, and overflow where M is more."""
    kept = points_um[:capacity].astype(jnp.float32)
    room = capacity - kept.shape[0]
    placed = jnp.arange(capacity) < kept.shape[0]
    return jnp.pad(kept, ((0, room), (0, 0))), placed, jnp.asarray(points_um.shape[0] > capacity)


def align(key: jax.Array, axis: jax.Array) -> jax.Array:
    """Rotations that turn cells' first own axis along given directions, and are random around them.

    Args:
      key: typed PRNG key.
      axis: float [N, D], of any length; in 3D a zero vector stands for z, in 2D for y.

    Returns:
      float32 [N, D, D], determinant +1; row 0 along `axis`. In 2D nothing is left to chance.
    """
    num, ndim = axis.shape
    length = jnp.linalg.norm(axis, axis=1, keepdims=True)
    first = jnp.where(length > 0, axis / jnp.where(length > 0, length, 1.0), jnp.eye(ndim)[0]).astype(jnp.float32)
    if ndim == 2:
        return jnp.stack([first, jnp.stack([-first[:, 1], first[:, 0]], axis=1)], axis=1)
    # The coordinate axis most across it is never parallel to it.
    across = jnp.cross(first, jnp.eye(3)[jnp.argmin(jnp.abs(first), axis=1)])
    across = across / jnp.linalg.norm(across, axis=1, keepdims=True)
    angle = jax.random.uniform(key, (num, 1), maxval=2 * jnp.pi)
    second = jnp.cos(angle) * across + jnp.sin(angle) * jnp.cross(first, across)
    return jnp.stack([first, second, jnp.cross(first, second)], axis=1)


def _fill(key, source, ndim, clearance_um, num_cells, rounds, attempts):
    """The first `num_cells` slots of an empty field."""
    capacity = clearance_um.shape[0]
    centres, placed = packing.place(
        key,
        source,
        clearance_um,
        jnp.arange(capacity) < num_cells,
        jnp.zeros((capacity, ndim), jnp.float32),
        jnp.zeros(capacity, bool),
        rounds=rounds,
        attempts=attempts,
    )
    return centres, placed, jnp.sum(placed) < num_cells
