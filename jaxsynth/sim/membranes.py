"""Maps from labels: walls and interiors, boundaries, seeds, depths, and labels gone wrong as a poor segmentation's.

Functions that reason about whole cells take `max_cells`, the greatest label there may be, and give `overflow` where
there is a greater one; the caller reads it outside jit and calls again with more.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsynth import keys
from jaxsynth.sim import distance


class Interiors(NamedTuple):
    """Cells without their walls, and the walls.

    Attributes:
      labels: int32 [*S], the interiors, numbered as before; 0 elsewhere.
      membrane: bool [*S], the walls; neither these nor interiors are background and gaps between cells.
      kept: int32 [], cells that have an interior.
      unopened: int32 [], cells too small for the rounding, which keep their shrunken form, corners and all.
      lost: int32 [], cells too thin to have any interior.
      overflow: bool [], some label exceeds max_cells, whose cell may have been lost uncounted.
    """

    labels: jax.Array
    membrane: jax.Array
    kept: jax.Array
    unopened: jax.Array
    lost: jax.Array
    overflow: jax.Array


def boundary(labels: jax.Array, edge: bool = False) -> jax.Array:
    """Voxels that share a face with another label, background included: int32 [*S] -> bool [*S].

    Both sides of a wall are marked, so the background's too: `boundary(labels) & (labels > 0)` leaves the cells' side.

    Args:
      edge: static; whether voxels at the volume's edge are boundary, too. If not, cells go on unseen.
    """
    found = jnp.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        # The voxel across the far face; at the edge each voxel is its own neighbour, or nobody's.
        here = jax.lax.slice_in_dim(labels, 1, None, axis=axis) != jax.lax.slice_in_dim(labels, 0, -1, axis=axis)
        none = [(0, 0)] * labels.ndim
        for side in ((0, 1), (1, 0)):
            none[axis] = side
            found = found | jnp.pad(here, none, constant_values=edge)
    return found


def signed_distance_um(
    labels: jax.Array, spacing_um: jax.Array, limit_um: jax.Array | float | None = None
) -> jax.Array:
    """Depth within each cell (positive) and distance to the nearest cell (negative, in the background).

    Args:
      labels: int32 [*S], spacing_um and limit_um as in `distance.to_other_um`.

    Returns:
      float32 [*S], micrometres, exact, from voxel centre to the centre of the nearest voxel of another label; so walls
      between touching cells count. For the organism as one body use `distance.signed_um(labels > 0, ...)`.
    """
    depth = distance.to_other_um(labels, spacing_um, limit_um)
    return jnp.where(labels > 0, depth, -depth)


def position_map(
    mask: jax.Array, spacing_um: jax.Array, alpha_um: jax.Array | float, beta_um: jax.Array | float | None = None
) -> jax.Array:
    """Where a voxel is in relation to the organism's boundary (paper 003, eq. 1).

    Args:
      mask: bool [*S], the organism.
      spacing_um: float [D].
      alpha_um: scale within the organism: tanh(dist / alpha).
      beta_um: scale outside: tanh(-dist / beta); None for the same. The paper's alpha = beta = 100 are voxels, so 100
        times the voxel size; at quality levels of 10 to 1000.

    Returns:
      float32 [*S] in [-1, 1], positive in the organism.
    """
    beta_um = alpha_um if beta_um is None else beta_um
    # Beyond 9 scales a float32 tanh is 1.
    limit = 9.0 * jnp.maximum(alpha_um, beta_um)
    return position(distance.signed_um(mask, spacing_um, limit), alpha_um, beta_um)


def position(signed_um: jax.Array, alpha_um: jax.Array | float, beta_um: jax.Array | float) -> jax.Array:
    """`position_map` of signed distances to the organism's boundary, float [*S], positive within; in any one unit."""
    return jnp.tanh(signed_um / jnp.where(signed_um > 0, alpha_um, beta_um))


def open_interiors(
    labels: jax.Array,
    spacing_um: jax.Array,
    thickness_um: jax.Array | float,
    rounding_um: jax.Array | float,
    max_cells: int,
) -> Interiors:
    """Walls of a given thickness between cells that touch, with the cells' corners rounded.

    Each cell gives half the thickness at every face to another label, so a wall between two cells is `thickness_um`
    thick and the organism's outer wall half of it; at the volume's edge cells go on. What is left is opened by a ball
    (what is not within a ball that fits is taken off), exactly, by two distance maps. Where three or more cells meet,
    voxels farther than the thickness from any interior are neither wall nor cell: the gap between round cells, and at
    the surface the groove between two; `(labels > 0) & (interiors == 0)` is wall and gaps in one. A cell too small for
    the ball keeps its shrunken form, and one too thin to leave anything is counted in `lost`.

    Args:
      labels: int32 [*S], cells that touch; 0 = background.
      spacing_um: float [D].
      thickness_um: of walls between cells, at least about one voxel: a thinner wall has no voxels.
      rounding_um: radius of the ball (the published code: 3 voxels); 0 for none.
      max_cells: static.

    Distances run from voxel centre to voxel centre; a wall is taken to lie half of the smallest voxel edge nearer.
    """
    spacing = jnp.asarray(spacing_um, jnp.float32)
    half_voxel = jnp.min(spacing) / 2
    tolerance = 1e-3 * half_voxel  # rounding must not decide whether a voxel at just some distance belongs
    shrunken_um = thickness_um / 2 + half_voxel - tolerance
    core_um = shrunken_um + rounding_um
    depth = distance.to_other_um(labels, spacing, core_um)

    def grade(best, part):
        # 1 in the wall, 2 in the shrunken cell, 3 where the ball's centre may be.
        depth, labels = part
        level = 1 + (depth >= shrunken_um).astype(jnp.int32) + (depth >= core_um)
        return best.at[labels].max(level, mode="drop"), level.astype(jnp.int8)

    # Slice by slice, so that the depth need not be kept and the scatter's operands stay small.
    best, level = jax.lax.scan(grade, jnp.zeros(max_cells + 1, jnp.int32), (_slices(depth), _slices(labels)))
    best, level = best.at[0].set(0), level.reshape(labels.shape)
    # A ball around a core voxel stays within its cell, so the opening need not know the labels. Half a voxel more, as
    # cores are rounded down to whole voxels.
    ball_um, wall_um = rounding_um + half_voxel + tolerance, rounding_um + half_voxel + thickness_um
    to_core = distance.to_mask_um((level == 3) & (labels > 0), spacing, wall_um + tolerance)
    small = (best < 3)[labels] & (labels > 0)
    inside = (labels > 0) & (level >= 2) & (small | (to_core <= ball_um))
    return Interiors(
        jnp.where(inside, labels, 0),
        (labels > 0) & ~inside & (small | (to_core <= wall_um)),
        jnp.sum(best >= 2),
        jnp.sum(best == 2),
        jnp.sum(best == 1),
        jnp.max(labels, initial=0) > max_cells,
    )


def _slices(x: jax.Array) -> jax.Array:
    """A volume as its slices, an image as its only one."""
    return x if x.ndim == 3 else x[None]


def seeds(
    labels: jax.Array, spacing_um: jax.Array, max_cells: int, radius_um: jax.Array | float = 0.0
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One marker per cell at its deepest voxel (of several the first), which lies inside however bent the cell is.

    Args:
      labels: int32 [*S].
      spacing_um: float [D].
      max_cells: static, N.
      radius_um: of the marker, a ball that ends at the cell's own boundary; 0 for a single voxel.

    Returns:
      markers int32 [*S], the label within the ball and 0 elsewhere; position_um float32 [N, D], of cell i + 1's seed;
      has bool [N], whether label i + 1 is there (the position of others is 0); overflow bool [].
    """
    depth = distance.to_other_um(labels, spacing_um)
    deepest = jax.ops.segment_max(depth.ravel(), labels.ravel(), max_cells + 1).at[0].set(-jnp.inf)
    index = jnp.arange(labels.size, dtype=jnp.int32).reshape(labels.shape)
    index = jnp.where(depth == deepest[labels], index, labels.size)
    first = jax.ops.segment_min(index.ravel(), labels.ravel(), max_cells + 1)
    has = first < labels.size
    place = jnp.stack(jnp.unravel_index(jnp.where(has, first, 0), labels.shape), -1)
    spacing_um = jnp.asarray(spacing_um, jnp.float32)
    position = jnp.where(has[:, None], (place + 0.5) * spacing_um, 0.0)
    # Counted in voxels: in micrometres, XLA may round the seed's own offset to something other than 0, and radius 0
    # would find nothing.
    offsets = (jax.lax.broadcasted_iota(jnp.int32, labels.shape, d) - place[:, d][labels] for d in range(labels.ndim))
    squared = sum((offset * spacing_um[d]) ** 2 for d, offset in enumerate(offsets))
    markers = jnp.where(squared <= jnp.asarray(radius_um) ** 2, labels, 0)
    return markers, position[1:], has[1:], jnp.max(labels, initial=0) > max_cells


def merge_neighbours(
    key: jax.Array, labels: jax.Array, rate: jax.Array | float, max_cells: int
) -> tuple[jax.Array, jax.Array]:
    """Labels as a poor segmentation gives them: some cells grown together with a neighbour.

    Each cell, with probability `rate`, joins one of the cells it shares a face with, each as likely as the others.
    Cells joined to each other, in pairs or in chains, all take the smallest of their labels.

    Args:
      key: typed PRNG key.
      labels: int32 [*S].
      rate: in [0, 1]; may be traced. A cell that touches none stays alone.
      max_cells: static, N; memory grows with N^2, one byte and one float each.

    Returns:
      labels int32 [*S], those left numbered as before; overflow bool []: some label exceeds max_cells.
    """
    count = max_cells + 1
    slices = _slices(labels)

    def contacts(number, touch):
        here = slices[number]
        pairs = [(here, slices[jnp.minimum(number + 1, slices.shape[0] - 1)])]
        for axis in range(here.ndim):
            size = here.shape[axis]
            pairs.append(tuple(jax.lax.slice_in_dim(here, i, size - 1 + i, axis=axis) for i in (0, 1)))
        for one, other in pairs:
            touch = touch.at[one, other].set(True, mode="drop")
        return touch

    touch = jax.lax.fori_loop(0, slices.shape[0], contacts, jnp.zeros((count, count), bool))
    touch = (touch | touch.T) & ~jnp.eye(count, dtype=bool)
    touch = touch.at[0].set(False).at[:, 0].set(False)
    draw = jax.random.uniform(keys.stream(key, "neighbour"), (count, count))
    chosen = jnp.argmax(jnp.where(touch, draw, -1.0), axis=1)
    joins = (jax.random.uniform(keys.stream(key, "join"), (count,)) < rate) & jnp.any(touch, axis=1)
    own = jnp.arange(count)
    partner = jnp.where(joins, chosen, own)

    def spread(carry):
        name, _ = carry
        # To the partner and back, then on to the name's own name, which shortens long chains by half.
        low = jnp.minimum(name, name[partner])
        low = low.at[partner].min(low)
        low = low[low]
        return low, jnp.any(low != name)

    name, _ = jax.lax.while_loop(lambda carry: carry[1], spread, (own, jnp.bool_(True)))
    overflow = jnp.max(labels, initial=0) > max_cells
    return jnp.where(labels > max_cells, labels, name[jnp.minimum(labels, max_cells)]), overflow
