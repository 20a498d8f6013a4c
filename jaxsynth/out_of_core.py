"""Sampling of volumes larger than the device's memory, or the host's: the result of `samplers.sample` to rounding.

The network runs by tiles (`data.streaming`); what is elementwise, a sampler's step, and all noise run by slabs, rows
of the volume's first axis, whose noise does not depend on how the volume is cut.
"""

import functools
import math
import os
from collections.abc import Callable

import jax
import numpy as np

from jaxsynth.data import streaming, tile_grid, tiles
from jaxsynth.diffusion import gaussian, samplers
from jaxsynth.records import Schedule


def sample(
    stages: tiles.Stages,
    key: jax.Array,
    sketch: np.ndarray,
    plan: samplers.Plan,
    schedule: Schedule,
    grid: tile_grid.TileGrid,
    *,
    sigma: float | tuple[float, ...] = 0.0,
    cond_key: jax.Array | None = None,
    clip: bool = True,
    batch_size: int = 1,
    deep_grid: tile_grid.TileGrid | None = None,
    place: Callable[[np.ndarray], jax.Array] = jax.numpy.asarray,
    scratch: str | os.PathLike | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """The image that `plan` makes of a sketch, both on the host.

    Memory, in float32 volumes: the state, the prediction, x0 of the step before where the plan uses it, the second
    input where there is one, and the coarse levels: of a network of 16 features about 2.5 in 3D, 10 in 2D. On the
    device: a few batches of tiles.

    Args:
      stages: the network, see `streaming.compiled`; it is bound to one tile size, not to a volume.
      key: the volume's key.
      sketch: float [*S] in [-1, 1], in memory or mapped; it is read only.
      plan, schedule: the sampler and its forward process.
      grid, batch_size, deep_grid, place: see `streaming.streamed`.
      sigma: the sketch is blurred by so many voxels first, see `sim.sketch.blur`.
      cond_key: of the noise that is the network's second input; None: it has none.
      clip: see `samplers.run`.
      scratch: a folder, for volumes that do not fit into the host's memory: arrays are then mapped from files there,
        which vanish with them.
      progress: told after every network evaluation how many are done.

    Returns:
      float32 [*S], in memory or mapped from an unnamed file in `scratch`.

    Raises:
      InputError: `scratch` has no room.
    """
    shape = (*sketch.shape, 1)
    denoise = streaming.streamed(stages, grid, batch_size=batch_size, deep_grid=deep_grid, place=place, folder=scratch)
    slabs = list(streaming.slabs(shape, batch_size * math.prod(grid.tile)))
    used = [np.asarray(table) != 0 for table in (plan.std, plan.from_previous)]

    def open_array():
        return streaming.open_array(shape, np.float32, scratch)

    def fill(array, draw):
        def store(slab, values):
            array[_rows(slab)] = values

        streaming.pipelined(((slab, draw(*slab)) for slab in slabs), store)
        return array

    def noised(first, count):
        x0 = streaming.blurred(sketch, sigma, first, count)[..., None]
        return gaussian.noise_to(x0, plan.t[0], _start_noise(key, first, x0.shape), schedule)

    x = fill(open_array(), noised)
    cond = None
    if cond_key is not None:
        cond = fill(open_array(), lambda first, count: _noise(cond_key, first, (count, *shape[1:])))
    predicted = open_array()
    previous = open_array() if used[1].any() else None

    for k in range(plan.num_evaluations):
        denoise(x, int(plan.t[k]), cond, predicted)

        def step(slab, k=k):
            rows = _rows(slab)
            before = 0.0 if previous is None else previous[rows]
            flags = {"clip": clip, "noisy": bool(used[0][k]), "keep": previous is not None}
            return _step(plan, k, x[rows], predicted[rows], before, key, slab[0], **flags)

        def store(slab, values):
            x[_rows(slab)] = values[0]
            if previous is not None:
                previous[_rows(slab)] = values[1]

        streaming.pipelined(((slab, step(slab)) for slab in slabs), store)
        progress(k + 1)
    return x[..., 0]


def _rows(slab: tuple[int, int]) -> slice:
    return slice(slab[0], slab[0] + slab[1])


_noise = jax.jit(samplers.rows_of_noise, static_argnums=2)
_start_noise = jax.jit(samplers.start_noise, static_argnums=2)


@functools.partial(jax.jit, static_argnames=("clip", "noisy", "keep"))
def _step(plan, k, x, predicted, previous, key, first, *, clip, noisy, keep):
    """The state after evaluation k and, to keep it, x0_k, of the slab from row `first` on."""
    x0 = samplers.estimate(plan, k, x, predicted, clip)
    noise = samplers.step_noise(key, k, first, x.shape) if noisy else 0.0
    return samplers.update(plan, k, x, x0, previous, noise), x0 if keep else None
