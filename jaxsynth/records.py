"""Frozen pytrees that travel between the layers. Arrays only; D is the rank of the volume, 2 (Y, X) or 3 (Z, Y, X)."""

from typing import Any

import jax
from flax import struct


@struct.dataclass
class Cells:
    """A population of ellipsoidal cells of fixed capacity N.

    Attributes:
      centre_um: float32 [N, D], micrometres from the volume's corner (the outer corner of voxel 0).
      radii_um: float32 [N, D], semi-axes in the cell's own frame, micrometres.
      rotation: float32 [N, D, D], rows are the cell's own axes in volume coordinates.
      brightness: float32 [N], relative, in [0, 1].
      valid: bool [N]; rows that are False hold no cell.
      overflow: bool []; True where the field had room for fewer cells than were asked for, or capacity ran out.
        Read outside jit by the caller.
    """

    centre_um: jax.Array
    radii_um: jax.Array
    rotation: jax.Array
    brightness: jax.Array
    valid: jax.Array
    overflow: jax.Array


@struct.dataclass
class Specimen:
    """One simulated specimen.

    Attributes:
      labels: int32 [*S], 0 = background; [M, *S] where cells may overlap: the M nearest of every voxel,
        M = 4, or twice that and so on where more meet.
      brightness: float32 [N + 1], relative, in [0, 1], indexed by label; entry 0 is how much brighter than usual the
        background is, from 0 to 1 being from the dimmest cell to the brightest: 0 unless images tell it.
      num_asked, num_placed: int32 []; fewer placed than asked for means that the field was full. A cell placed may
        still have no voxel of its own: beyond the edge, off the map, or between two planes.
      crowded: bool []; some block of voxels met more cells than it had room to list, so that some may be missing.
      short: bool []; more cells were to be placed than there are slots.
      cells: the ellipsoids behind nuclei, cell i being label i + 1, or the spheres that harmonics vary about; None for
        cells with membranes.
      nuclei: int32 [*S], the nuclei of cells with membranes, under the cells' labels; None for other tissues.
      membrane: bool [*S], likewise.
      depth: `sim.foregrounds.Depth` of the organism, for light that fades inwards; None where it has no use.
    """

    labels: jax.Array
    brightness: jax.Array
    num_asked: jax.Array
    num_placed: jax.Array
    crowded: jax.Array
    short: jax.Array
    cells: Cells | None = None
    nuclei: jax.Array | None = None
    membrane: jax.Array | None = None
    depth: Any = None


@struct.dataclass
class Schedule:
    """A discrete forward process of T steps (paper 001, eq. 2-3); index i is the step from x_i to x_(i+1).

    Attributes:
      betas: [T]; float64 on the host, see `diffusion.schedule.make_schedule`.
      alphas_bar: [T], likewise; cumulative product of 1 - betas.
    """

    betas: jax.Array
    alphas_bar: jax.Array


@struct.dataclass
class TrainState:
    """All that changes while a network trains.

    Attributes:
      step: int32 [], updates done.
      params: parameters as the optimiser sees them.
      ema_params: their exponential moving average, what samples are made with.
      opt_state: state of the optax optimiser.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
