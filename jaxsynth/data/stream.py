"""Endless batches for training, on the device: patches of real images, and simulated specimens.

Images that fit in device memory stay there in the files' own dtype, and patches are cut inside jit: no host copy per
step. What does not fit is read by background threads. Both draw the same patches from the same key. Specimens are
simulated where the network runs and never touch the host.
"""

import collections
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jaxsynth import keys
from jaxsynth.data import augment
from jaxsynth.data.intensity import Intensity, normalise
from jaxsynth.data.volumes import VolumeSet, load, read_patch
from jaxsynth.errors import InputError
from jaxsynth.sim import microscope, tissues, views
from jaxsynth.sim.sketch import LEVELS
from jaxsynth.sim.tissues import NOTHING

INT32_LIMIT = 2**31 - 1
PREFETCH = 4  # batches being read ahead, one thread each
SCALES_VOX = (views.ALPHA_VOX, views.ALPHA_VOX)  # of position maps
AHEAD = 2  # simulated batches in the device's queue before they are asked for


@struct.dataclass
class Draw:
    """Where the patches of a batch lie.

    Attributes:
      index: int32 [B], the volume.
      start: int32 [B, D], first voxel; negative where the volume is smaller than the patch, which is then centred.
      symmetry: bool [B, 3], see `augment`.
    """

    index: jax.Array
    start: jax.Array
    symmetry: jax.Array


def draw(key: jax.Array, shapes: np.ndarray, patch: tuple[int, ...], batch_size: int) -> Draw:
    """Draws a batch of patches: volumes in proportion to their voxels, places uniform, symmetries uniform.

    Args:
      key: the batch's key.
      shapes: host int [N, D], the volumes.
      patch: D ints.
    """
    ndim = len(patch)
    share = np.cumsum(np.prod(shapes, axis=1, dtype=np.float64))
    # Made on the host and compared only, so that every backend draws the same.
    share = jnp.asarray(share / share[-1], jnp.float32)
    which = jax.random.uniform(keys.stream(key, "volume"), (batch_size,))
    index = jnp.minimum(jnp.searchsorted(share, which, side="right"), len(shapes) - 1).astype(jnp.int32)
    room = jnp.asarray(shapes - np.asarray(patch), jnp.int32)[index]
    place = jax.random.randint(keys.stream(key, "place"), (batch_size, ndim), 0, jnp.maximum(room, 0) + 1)
    start = jnp.where(room >= 0, place, room // 2)
    symmetry_keys = jax.random.split(keys.stream(key, "symmetry"), batch_size)
    symmetry = jax.vmap(augment.draw_symmetry)(symmetry_keys)
    return Draw(index=index, start=start, symmetry=symmetry)


def cut(flat: jax.Array, offset: jax.Array, shape: jax.Array, start: jax.Array, patch: tuple[int, ...]) -> jax.Array:
    """A patch of the volume of `shape` that lies in `flat` from `offset` on; [*patch]."""
    address = jnp.zeros(patch, jnp.int32)
    for axis, length in enumerate(patch):
        along = augment.reflect(start[axis] + jnp.arange(length), shape[axis])
        address = address * shape[axis] + along.reshape((-1,) + (1,) * (len(patch) - axis - 1))
    return flat[offset + address]


def fits_on_device(volumes: VolumeSet, limit_bytes: float) -> bool:
    """Whether the set may stay in device memory: within `limit_bytes`, and addressable in int32."""
    voxels = volumes.num_voxels
    return voxels <= INT32_LIMIT and voxels * volumes.dtype.itemsize <= limit_bytes


def batches(
    volumes: VolumeSet,
    intensity: Intensity,
    key: jax.Array,
    *,
    patch: tuple[int, ...],
    batch_size: int,
    resident: bool,
    first_step: int = 0,
    symmetries: bool = True,
    split: NamedSharding | None = None,
    replicated: Sharding | None = None,
) -> Iterator[jax.Array]:
    """Batches for steps first_step, first_step + 1, ...; batch i depends on `key` and i alone.

    Args:
      volumes: the training set.
      intensity: the normalisation.
      patch: D ints.
      resident: True keeps the set on the device, False reads patches on background threads.
      symmetries: whether patches are flipped and turned.
      split, replicated: where batches and the resident set lie; default the default device. Of several processes each
        holds, and of streamed batches also reads, what lies on its own devices.

    Yields:
      float32 [B, *patch, 1] in [-1, 1].
    """
    shapes = np.asarray(volumes.shapes)
    patch = tuple(patch)

    def finish(patches: jax.Array, symmetry: jax.Array) -> jax.Array:
        patches = normalise(patches, intensity)
        if symmetries:
            patches = jax.vmap(augment.apply_symmetry)(patches, symmetry)
        return patches[..., None]

    def drawn(step):
        return draw(keys.stream(key, step), shapes, patch, batch_size)

    feed = _resident if resident else _streamed
    return feed(volumes, shapes, patch, drawn, finish, first_step, split, replicated)


def _resident(volumes, shapes, patch, drawn, finish, first_step, split, replicated) -> Iterator[jax.Array]:
    sizes = np.prod(shapes, axis=1)
    offsets = jnp.asarray(np.cumsum(sizes) - sizes, jnp.int32)
    flat = np.concatenate([load(volumes, i).ravel() for i in range(len(shapes))])
    flat = place(flat, replicated)

    def batch(flat, step):
        at = drawn(step)
        one = jax.vmap(lambda index, start: cut(flat, offsets[index], jnp.asarray(shapes)[index], start, patch))
        return finish(one(at.index, at.start), at.symmetry)

    batch = jax.jit(batch, out_shardings=split)
    step = first_step
    while True:
        yield batch(flat, step)
        step += 1


def _streamed(volumes, shapes, patch, drawn, finish, first_step, split, replicated) -> Iterator[jax.Array]:
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        host = jax.local_devices()[0]
    finish = jax.jit(finish, out_shardings=split)
    drawn = jax.jit(drawn)
    # Patches come whole, even where devices share one.
    rows = None if split is None else NamedSharding(split.mesh, PartitionSpec(split.spec[0]))

    def read(step: int) -> tuple[np.ndarray, np.ndarray]:
        # On the host's own device: a draw must not queue behind the training steps.
        with jax.default_device(host):
            at = jax.device_get(drawn(step))
        patches = np.zeros((len(at.index), *patch), volumes.dtype)
        for row in _rows_here(rows, len(at.index)):
            patches[row] = read_patch(volumes, int(at.index[row]), tuple(at.start[row]), patch)
        return patches, at.symmetry

    with ThreadPoolExecutor(PREFETCH, thread_name_prefix="patches") as pool:
        ahead: collections.deque = collections.deque()
        step = first_step
        try:
            while True:
                while len(ahead) < PREFETCH:
                    ahead.append(pool.submit(read, step))
                    step += 1
                yield finish(*(place(array, rows) for array in ahead.popleft().result()))
        finally:
            for future in ahead:
                future.cancel()


def _rows_here(sharding: Sharding | None, count: int) -> list[int]:
    """Which of `count` rows lie on devices of this process."""
    if sharding is None:
        return list(range(count))
    places = sharding.addressable_devices_indices_map((count,)).values()
    return sorted({row for (rows,) in places for row in range(*rows.indices(count))})


def place(array: np.ndarray, sharding: Sharding | None) -> jax.Array:
    """A host array on the devices; every process gives the part that lies on its own."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@struct.dataclass
class SimulatedBatch:
    """A batch of specimens.

    Attributes:
      labels: int32 [B, *S], 0 = background.
      sketch: float32 [B, *S] in [-1, 1], unblurred.
      maps: name -> [B, *S], the maps asked for, see `simulated`.
    """

    labels: jax.Array
    sketch: jax.Array
    maps: dict[str, jax.Array]


def simulated(
    recipe: str | tissues.Recipe,
    key: jax.Array,
    *,
    shape: tuple[int, ...],
    batch_size: int,
    spacing_um: tuple[float, ...] | None = None,
    num_range: tuple[int, int] | None = None,
    levels: tuple[float, float, float] = LEVELS,
    given: tissues.Given = NOTHING,
    maps: tuple[str, ...] = (),
    scales_vox: tuple[float, float] = SCALES_VOX,
    first_step: int = 0,
    split: NamedSharding | None = None,
) -> Iterator[SimulatedBatch]:
    """Batches of simulated specimens for steps first_step, first_step + 1, ...; made on the device.

    Specimen j of step i depends on `key`, i and j alone. While the caller works on a batch the device has the next
    AHEAD in its queue; the host fetches no more of them than whether a specimen lacked room, and has those made again.

    Args:
      recipe: a name of `tissues.RECIPES`, or a record.
      shape: S, of every specimen.
      spacing_um, num_range: micrometres per voxel, least and most cells, as `tissues.simulate` takes them.
      levels: grey levels of the sketch.
      given: what the user brings of each, as `tissues.specimen` takes it.
      maps: names of `views.MAPS`; "image", the microscope's picture with the recipe's PSF, float32 camera counts; of
        tissues with membranes also "nuclei" (int32, under the cells' labels) and "membrane" (bool).
      scales_vox: of the map "position" within and outside the organism, see `views.position`.
      split: a sharding of the leading axis over a mesh; every device simulates its own share.

    Raises InputError, at the call, for recipes and maps unknown or impossible, and batches that do not split evenly.
    """
    found = tissues.find(recipe) if isinstance(recipe, str) else recipe
    shape = tuple(int(size) for size in shape)
    tissues.check(found, shape, spacing_um)
    spacing_um = tuple(float(step) for step in (spacing_um or tissues.default_spacing(found, shape)))
    if num_range is not None and found.num_cells is None:
        raise InputError(f"num_range: recipe {found.name} fills its organism with cells of one size; leave it out")
    low, high = num_range or tissues.num_cells_range(found, shape, spacing_um)
    if not 0 <= low <= high:
        raise InputError(f"num_range: expected least and most cells, 0 or more; got {(low, high)}")
    known = (*views.MAPS, "image", *(("nuclei", "membrane") if found.populate is None else ()))
    for name in set(maps) - set(known):
        raise InputError(f"maps: recipe {found.name} has {', '.join(known)}; got {name!r}")
    many = 1 if split is None else split.mesh.shape[split.spec[0]]
    if batch_size < 1 or batch_size % many:
        raise InputError(f"batch_size: expected a positive multiple of {many}, the devices; got {batch_size}")
    drawn = {"recipe": found, "levels": tuple(levels), "maps": tuple(maps), "batch_size": batch_size, "split": split}
    drawn["scales_vox"] = tuple(scales_vox)
    drawn["given"] = given
    make = functools.partial(_simulate, key, num_range=(low, high), **drawn)
    return _queued(make, tissues.make_site(found, shape, spacing_um, high), first_step)


def _queued(make: Callable, site: tissues.Site, step: int) -> Iterator[SimulatedBatch]:
    queue: collections.deque = collections.deque()
    while True:
        while len(queue) <= AHEAD:
            queue.append((step, site, make(step, site=site)))
            step += 1
        made, site = _with_room(make, site, *queue.popleft())
        yield made


def _with_room(make: Callable, site: tissues.Site, step: int, drawn_at: tissues.Site, drawn: tuple):
    """The batch of a step, drawn again until no specimen lacks room, and the site with the room its blocks needed."""
    made, flags = drawn
    crowded, short = np.asarray(flags)
    if crowded.any():
        # A batch from the queue may not have had the room found since.
        site = tissues.more_room(site, crowded=True, short=False) if drawn_at == site else site
        return _with_room(make, site, step, site, make(step, site=site))
    if short.any():
        # The number of slots changes what is drawn, other than the length of the blocks' lists: others stay.
        wide = tissues.more_room(site, crowded=False, short=True)
        made = _replace(made, _with_room(make, wide, step, wide, make(step, site=wide))[0], short)
    return made, site


@jax.jit
def _replace(old: SimulatedBatch, new: SimulatedBatch, which: jax.Array) -> SimulatedBatch:
    """The batch `old` with the specimens `which`: bool [B] of `new`."""
    return jax.tree.map(lambda a, b: jnp.where(which.reshape((-1,) + (1,) * (a.ndim - 1)), b, a), old, new)


@functools.partial(jax.jit, static_argnames=("recipe", "site", "levels", "maps", "scales_vox", "batch_size", "split"))
def _simulate(
    key, step, num_range, *, recipe, site, levels, maps, batch_size, split, scales_vox=SCALES_VOX, given=NOTHING
):
    """The batch of a step, and bool [2, B]: specimens with too many cells for a block, and for the slots."""
    spacing_um = site.spacing_um

    def one(row):
        own = keys.stream(key, "simulated", step, row)
        number = jax.random.randint(keys.stream(own, "num_cells"), (), num_range[0], num_range[1] + 1)
        made = tissues.specimen(own, recipe, number, site, given)
        known = views.MAPS | {
            "position": functools.partial(views.position, alpha_vox=scales_vox[0], beta_vox=scales_vox[1])
        }
        shown = {name: known[name](made, spacing_um) for name in maps if name in known}
        shown |= {name: getattr(made, name) for name in maps if name in ("nuclei", "membrane")}
        if "image" in maps:
            shot, psf_sigma_um = keys.stream(own, "render"), recipe.psf_sigma_um[-len(site.shape) :]
            light = views.light(shot, made, spacing_um)
            shown["image"] = microscope.image(shot, light, spacing_um, psf_sigma_um=psf_sigma_um)
        ink = keys.stream(own, "sketch")
        sketch = views.sketch(ink, made, spacing_um, nucleoli=recipe.nucleoli, levels=levels)
        return SimulatedBatch(made.labels, sketch, shown), made.crowded, made.short

    rows = jnp.arange(batch_size)
    if split is None:
        made, *flags = jax.vmap(one)(rows)
        return made, jnp.stack(flags)
    # Per device, so that none makes another's specimens and no loop over cells waits for those of another. The kernels'
    # loops start from constants, which the check of varying axes refuses.
    spec = PartitionSpec(split.spec[0])
    made, *flags = jax.shard_map(jax.vmap(one), mesh=split.mesh, in_specs=spec, out_specs=spec, check_vma=False)(rows)
    return made, jax.lax.with_sharding_constraint(jnp.stack(flags), NamedSharding(split.mesh, PartitionSpec()))
