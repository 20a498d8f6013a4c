"""Cells -> labels: rotated ellipsoids on a voxel grid (paper 000, eq. 1), any rank, any spacing."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsynth.records import Cells
from jaxsynth.sim import raster


def quadratic_form(cells: Cells) -> jax.Array:
    """The matrices A of (x - c)^T A (x - c) <= 1: float32 [N, D, D], symmetric, 1 / um^2."""
    own = cells.rotation / cells.radii_um[..., None]
    return jnp.einsum("nki,nkj->nij", own, own)


def extent_um(cells: Cells) -> jax.Array:
    """Half edge lengths of each cell's bounding box, float32 [N, D], micrometres."""
    return jnp.sqrt(jnp.sum((cells.rotation * cells.radii_um[..., None]) ** 2, axis=1))


def value(cells: Cells) -> raster.Value:
    """The quadratic form of paper 000, eq. 1, as `raster.owners` takes it: 1 on the surface, 0 at the centre."""
    form = quadratic_form(cells)

    def evaluate(cell: jax.Array, offset: raster.Axes) -> jax.Array:
        # Written out per element, so that it fuses: a matrix product per voxel would not.
        ndim = len(offset)
        return sum(
            form[:, i, j][cell] * (1.0 if i == j else 2.0) * offset[i] * offset[j]
            for i in range(ndim)
            for j in range(i, ndim)
        )

    return evaluate


def rasterise(
    cells: Cells,
    shape: tuple[int, ...],
    spacing_um: jax.Array,
    *,
    transform: Callable[[raster.Axes], raster.Axes] | None = None,
    warp_um: raster.Axes | None = None,
    layers: int = 1,
    per_block: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """The instance map of a population: `raster.owners` for ellipsoids, which tells of arguments and results.

    Cell i is drawn as label i + 1 where `valid`; a voxel inside several cells belongs to the one it is closest to in
    that cell's own metric.
    """
    return raster.owners(
        value(cells),
        cells.centre_um,
        extent_um(cells),
        cells.valid,
        shape,
        spacing_um,
        transform=transform,
        warp_um=warp_um,
        layers=layers,
        per_block=per_block,
    )
