"""What is shown of a specimen: its sketch, the light it sends out, and maps of its labels."""

import math

import jax
import jax.numpy as jnp

from jaxsynth import keys
from jaxsynth.records import Specimen
from jaxsynth.sim import distance, extent, foregrounds, membranes, microscope
from jaxsynth.sim import sketch as sketches
from jaxsynth.sim.sketch import LEVELS

ALPHA_VOX = 100.0  # scale of the position map where none is given (003)
GAP_VOX = 4.0  # along x; gaps between cells of up to twice as much are walls
FADE = 0.15  # light of the innermost membranes, relative to the outermost


def sketch(
    key: jax.Array,
    made: Specimen,
    spacing_um: tuple[float, ...],
    *,
    nucleoli: tuple[int, int] = (0, 0),
    levels: tuple[float, float, float] = LEVELS,
) -> jax.Array:
    """The sketch of a specimen, unblurred: membranes where it has them, or else cells at their brightness.

    Args:
      key: typed PRNG key.
      made: the specimen.
      spacing_um: D micrometres per voxel.
      nucleoli: least and greatest number of dark spots per nucleus, static.
      levels: as in `sketch.sketch`.

    Returns:
      float32 [*S] in [-1, 1].
    """
    if made.membrane is not None:
        return sketches.membrane_sketch(made.membrane, _fade(made, spacing_um), levels=levels)
    shade = None
    if nucleoli[1] and made.cells is not None:
        shade = sketches.nucleoli(
            keys.stream(key, "nucleoli"), made.labels, made.cells, jnp.asarray(spacing_um), number=nucleoli
        )
    stacked = made.labels.ndim > len(spacing_um)
    return sketches.sketch(made.labels, made.brightness, levels=levels, shade=shade, stacked=stacked)


def nuclei_sketch(made: Specimen, levels: tuple[float, float, float] = LEVELS) -> jax.Array:
    """The second channel of a specimen with membranes: its nuclei at their brightness; as `sketch`."""
    return sketches.sketch(made.nuclei, made.brightness, levels=levels)


def light(key: jax.Array, made: Specimen, spacing_um: tuple[float, ...]) -> jax.Array:
    """The light a specimen sends out, for `microscope.image`: float32 [*S], 1 for the brightest cells."""
    if made.membrane is not None:
        return made.membrane * _fade(made, spacing_um)
    return microscope.light(key, made.labels, made.brightness, spacing_um)


def _fade(made: Specimen, spacing_um: tuple[float, ...]) -> jax.Array:
    """Light of the membranes, falling linearly from 1 at the organism's surface to FADE at its deepest point."""
    if made.depth is None:
        return jnp.ones((1,) * len(spacing_um))
    below = foregrounds.depth_map(made.depth, made.membrane.shape, spacing_um)
    deepest = jnp.max(made.depth.values)
    return sketches.decay(below, jnp.maximum(deepest, 1e-6), profile="linear", floor=FADE)


def organism(made: Specimen, spacing_um: tuple[float, ...]) -> jax.Array:
    """The voxels of the organism, bool [*S]: below its surface where that is known, else its cells, closed."""
    if made.depth is not None:
        return foregrounds.depth_map(made.depth, made.labels.shape[-len(spacing_um) :], spacing_um) > 0
    return extent.closed(_nearest(made, spacing_um), spacing_um, made.membrane)


def _nearest(made: Specimen, spacing_um: tuple[float, ...]) -> jax.Array:
    """The labels, of overlapping cells the nearest ones'."""
    return made.labels if made.labels.ndim == len(spacing_um) else made.labels[0]


def boundary(made: Specimen, spacing_um: tuple[float, ...]) -> jax.Array:
    """Voxels of cells that share a face with something else, bool [*S]; of membranes, these themselves."""
    labels = _nearest(made, spacing_um)
    return membranes.boundary(labels) & (labels > 0) if made.membrane is None else made.membrane


def walls(made: Specimen, spacing_um: tuple[float, ...]) -> jax.Array:
    """Membranes without hollows, bool [*S], what the GAN draws from: where a specimen has them these themselves, else
    `boundary` with the gaps between cells that do not quite touch, as in label images of interiors: what closing the
    cells by a ball of GAP_VOX adds."""
    if made.membrane is not None:
        return made.membrane
    reach, labels = GAP_VOX * spacing_um[-1], _nearest(made, spacing_um)
    limit = reach + min(spacing_um)  # what is as far as this lies beyond reach
    near = distance.to_mask_um(labels > 0, spacing_um, limit) <= reach
    closed = distance.to_mask_um(~near, spacing_um, limit) > reach
    return boundary(made, spacing_um) | (closed & (labels == 0))


def signed_distance(made: Specimen, spacing_um: tuple[float, ...]) -> jax.Array:
    """`membranes.signed_distance_um`: float32 [*S], micrometres, positive within cells."""
    labels = _nearest(made, spacing_um)
    # Where there are no cells at all, as far as the volume reaches.
    farthest = math.hypot(*(size * step for size, step in zip(labels.shape, spacing_um, strict=True)))
    return membranes.signed_distance_um(labels, spacing_um, farthest)


def seeds(made: Specimen, spacing_um: tuple[float, ...]) -> jax.Array:
    """The deepest voxel of every cell, under its label: int32 [*S]."""
    return membranes.seeds(_nearest(made, spacing_um), spacing_um, made.brightness.shape[0] - 1)[0]


def position(
    made: Specimen, spacing_um: tuple[float, ...], alpha_vox: float = ALPHA_VOX, beta_vox: float | None = None
) -> jax.Array:
    """The position map of paper 003, eq. 1: float32 [*S] in [-1, 1].

    Args:
      alpha_vox, beta_vox: scales within and outside the organism, voxels along x; None for the same.
    """
    alpha_um = alpha_vox * spacing_um[-1]
    beta_um = alpha_um if beta_vox is None else beta_vox * spacing_um[-1]
    return membranes.position_map(organism(made, spacing_um), spacing_um, alpha_um, beta_um)


# name -> (specimen, spacing_um) -> [*S]
MAPS = {"boundary": boundary, "walls": walls, "distance": signed_distance, "seeds": seeds, "position": position}
