"""Files of generated images: simulate, generate and write, all at once. What `sample` and `bench` do."""

import collections
import dataclasses
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsynth import cli, devices, faithful, keys, pipeline, specimens, trained, trained_gan
from jaxsynth.data import intensity as intensities
from jaxsynth.data import volumes, writing
from jaxsynth.diffusion import samplers
from jaxsynth.errors import InputError

FOLDERS = ("labels", "sketches", "images")
AHEAD = 2  # batches dispatched beside the one that is finished first
SLOW_S = 5.0  # a batch that takes longer is waited for piece by piece, and tells how far it is


@dataclasses.dataclass(frozen=True)
class ImageJob:
    """One image to make.

    Attributes:
      name: of its files.
      shape: [*S], voxels.
      draw: (device or None) -> (labels int32 [*S], sketch float32 [*S], spacing_um or None), on the host; what is
        computed for that is computed on this device. For a GAN maps in the sketch's place, see `trained_gan`.
      read: draw reads files and computes nothing on a device.
    """

    name: str
    shape: tuple[int, ...]
    draw: Callable[[jax.Device | None], tuple[np.ndarray, np.ndarray, tuple[float, ...] | None]]
    read: bool = False


@dataclasses.dataclass(frozen=True)
class Settings:
    """How sketches are made images; see the flags of `sample`.

    Attributes:
      plan: the sampler's; None for a GAN, which has no use for `sigma` and `scratch` either.
      sigma: blur of the sketch, voxels.
      tile, overlap, tile_batch, scratch: as `trained.generator` takes them.
      batch: images at once; None: one per device.
      rounded: whether images are made in one of few larger shapes, see `trained.rounded`, and cropped.
      attempts: 0: images are not judged; else one that does not keep to its labels is drawn up to so many times, the
        best is kept, and cells that vanished in it are dropped from its labels.
    """

    plan: samplers.Plan | None
    sigma: float = 1.0
    tile: tuple[int, ...] | None = None
    overlap: tuple[int, ...] | None = None
    tile_batch: int | None = None
    scratch: str | None = None
    batch: int | None = None
    rounded: bool = False
    attempts: int = 0

    def shape(self, job: ImageJob) -> tuple[int, ...]:
        """The shape in which its image is made."""
        return trained.rounded(job.shape) if self.rounded else job.shape


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that are made at once, in one shape [*S]: `size` of them, the last again where jobs are fewer; None: the
    only one, in tiles. `tile` is the largest; `roomy`: the device's memory has room for all under way at once."""

    jobs: tuple[ImageJob, ...]
    shape: tuple[int, ...]
    size: int | None
    tile: tuple[int, ...]
    roomy: bool


def batches(
    model: trained.Trained, jobs: Sequence[ImageJob], settings: Settings, todo: Iterable[str] | None = None
) -> list[Batch]:
    """The batches in which images are made.

    Those that fit into one device's memory are made one or more per device, unless there are so few that cutting them
    uses more devices; others one by one, in tiles that the devices share.

    Args:
      jobs: all of the data set; the batches' sizes do not depend on what of it is made already.
      todo: names of those to make; None: all.

    Raises:
      InputError: tile and overlap do not go together, or a batch does not fit into the memory.
    """
    by_shape, num, made = collections.defaultdict(list), model.num_devices, []
    wanted = settings.tile
    todo = None if todo is None else set(todo)
    for job in jobs:
        by_shape[settings.shape(job)].append(job)
    for shape, some in by_shape.items():
        grid = trained.grid_for(model, shape, wanted, settings.overlap)
        size, tile, roomy = None, grid.tile, False
        if (
            settings.scratch is None
            and (grid.num_tiles == 1 or len(some) >= num)
            and trained.whole(model, shape, wanted)
        ):
            size = num * min(-(-(settings.batch or num) // num), -(-len(some) // num))
            if not trained.whole(model, shape, wanted, size // num):
                raise InputError(f"--batch {settings.batch}: as many images of {shape} do not fit into the memory")
            # Under way are AHEAD and one more, and what draws the next, which takes no more than one of them.
            tile, roomy = grid.padded, trained.whole(model, shape, each=(AHEAD + 2) * size // num)
        left = [job for job in some if todo is None or job.name in todo]
        groups = (left[first : first + (size or 1)] for first in range(0, len(left), size or 1))
        made += [Batch(tuple(group), shape, size, tile, roomy) for group in groups]
    return made


def simulated(
    root: jax.Array, recipe: specimens.Specimens, levels: Sequence[float], names: Iterable[str]
) -> list[ImageJob]:
    """Jobs that simulate their cells; `levels`: grey levels of the sketches."""
    drawer = specimens.drawer(recipe, specimens.Wanted(levels=tuple(levels)))

    def job(name):
        def draw(device):
            with jax.default_device(device):
                made = drawer(root, name)
            return *jax.device_get((made.specimen.labels, made.sketch)), recipe.spacing_um

        return ImageJob(name, tuple(recipe.shape), draw)

    return [job(name) for name in names]


def folders(model: trained.Trained) -> tuple[str, ...]:
    """Those of FOLDERS that this model's data sets have: a GAN has no sketches."""
    return tuple(name for name in FOLDERS if name != "sketches" or model.config.task != "gan")


def generators(model: trained.Trained, settings: Settings) -> tuple[Callable, Callable]:
    """(one image in tiles, a batch of whole images), see `trained.generator` and `trained.batch_generator`."""
    options = {name: getattr(settings, name) for name in ("tile", "overlap", "tile_batch")}
    if model.config.task == "gan":
        one, many = trained_gan.generator(model, **options), trained_gan.batch_generator(model)
        return lambda key, x0, plan, **_: one(key, x0), lambda key, x0, plan, **_: many(key, x0)
    return trained.generator(model, **options, scratch=settings.scratch), trained.batch_generator(model)


def make(
    model: trained.Trained,
    root: jax.Array,
    out: Path,
    work: Sequence[Batch],
    settings: Settings,
    done: Callable[[str, dict], None],
    *,
    ready: tuple[Callable, Callable] | None = None,
    overlapped: bool = True,
    profile: str | None = None,
) -> None:
    """Makes the images of all batches and writes labels, sketches and images into the FOLDERS of `out`.

    The last batches are written while the device computes, and the next one is drawn. Where the device's memory has no
    room for several (volumes in tiles never share it) it holds one batch alone: the next is drawn meanwhile only where
    that reads files, and dispatched when the last is on the host. An image depends on the root key and its own name
    alone, to rounding. What is drawn again is so after all others; its best files are there by then, not told of yet.

    Args:
      work: see `batches`.
      done: called, on any thread, when the files of a name are written, with what the manifest is to tell of them.
      ready: what `generators` returned, for who makes several such sets and would not compile again.
      overlapped: False waits for every stage, to be compared with.
      profile: a folder, for a trace of the second batch, of the only one where there is no other.
    """
    in_tiles, whole = ready or generators(model, settings)
    split = devices.split(model.mesh)
    places = list(model.mesh.devices.flat)
    places = [None] if places[0].platform == "cpu" else places  # those of a CPU share its cores: one program will do
    roomy = all(batch.roomy for batch in work)
    count, slow, traced = 0, True, min(2, len(work))
    draws = faithful.Draws(settings.attempts)

    def draw(batch):
        drawn = _draw(batch.jobs, places)
        x0 = [_extended(sketch, batch.shape) for _, sketch, _ in drawn]
        return drawn, x0[0] if batch.size is None else np.stack(x0 + x0[-1:] * (batch.size - len(x0)))

    def prepare(batch):
        if not roomy and not all(job.read for job in batch.jobs):
            return batch, None  # drawn when the device is free
        drawn, x0 = draw(batch)
        return batch, (drawn, jax.device_put(x0, split) if roomy else x0)

    def dispatch(prepared):
        nonlocal count, slow
        batch, ready = prepared
        drawn, x0 = ready or draw(batch)
        names = [job.name for job in batch.jobs]
        own = [keys.stream(root, *draws.stream(name)) for name in names]
        telling = cli.telling(f"  {', '.join(names[:1] + names[1:][-1:])}: network evaluation")
        count += 1
        with cli.profile(profile if count == traced else None):
            if batch.size is None:
                image = in_tiles(own[0], x0, settings.plan, sigma=settings.sigma, progress=telling)[None]
            else:
                own, x0 = jnp.stack(own + own[-1:] * (batch.size - len(own))), jax.device_put(x0, split)
                began = time.perf_counter()
                image = whole(own, x0, settings.plan, sigma=settings.sigma, progress=telling if slow else None)
                slow = slow and time.perf_counter() - began > SLOW_S
            if profile and count == traced:
                jax.block_until_ready(image)
        fetch = _fetcher(image)
        if not roomy:
            fetch()  # the next has the device for itself
        return [(batch, job, fetch, row, drawn[row]) for row, job in enumerate(batch.jobs)]

    def finish(part):
        batch, job, fetch, row, (labels, sketch, spacing) = part
        image = fetch()[row][tuple(map(slice, job.shape))]
        verdict = {}
        if settings.attempts:
            labels, verdict = faithful.judge(labels, intensities.denormalise(image, model.intensity))

        def write():
            given, what = (sketch, "sketch") if "sketches" in folders(model) else (None, "maps")
            _write(out, job.name, labels, given, image, spacing, model.intensity, mapped=settings.scratch is not None)
            told = {f"{what}_sha256": _digest(sketch, "float32"), "labels_sha256": _digest(labels, "int32")}
            told |= {"shape": job.shape, "tile": batch.tile, "spacing_um": spacing}
            return told | {"num_cells": _count_cells(labels)}

        if (entry := draws.settle(job.name, verdict, write)) is not None:
            done(job.name, entry)

    # Where not roomy, of one the files are written while the next is on the device: more would fill the host's memory.
    ahead = 0 if not overlapped or settings.scratch else AHEAD if roomy else 1
    pipeline.run(work, dispatch, finish, prepare=prepare, ahead=ahead)
    while again := draws.again(work):
        pipeline.run(again, dispatch, finish, prepare=prepare, ahead=ahead)


def _fetcher(images: jax.Array | np.ndarray) -> Callable[[], np.ndarray]:
    """A function that waits for the images and returns them on the host; on whatever threads it is called, they are
    copied once, and the device's are let go of."""
    lock, held = threading.Lock(), [images]
    if isinstance(images, jax.Array):
        images.copy_to_host_async()

    def fetch():
        with lock:
            if isinstance(held[0], jax.Array):
                held[0] = np.asarray(held[0])
            return held[0]

    return fetch


def _draw(jobs: Sequence[ImageJob], places: Sequence) -> list[tuple]:
    """What the jobs draw, as many at once as there are places (devices or None)."""
    with ThreadPoolExecutor(len(places), "draw") as pool:
        return list(pool.map(lambda job, place: job.draw(place), jobs, itertools.cycle(places)))


def _extended(sketch: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A sketch with its far ends reflected up to `shape`; mapped ones, which are never extended, stay mapped."""
    more = [(0, n - m) for n, m in zip(shape, sketch.shape, strict=False)]
    if not any(map(any, more)):
        return sketch
    return np.pad(sketch, more + [(0, 0)] * (sketch.ndim - len(more)), mode="reflect")


def _write(out, name, labels, sketch, image, spacing, intensity, *, mapped) -> None:
    """The files of an image, `sketch` None for one that was made of maps; `mapped`: plane by plane, so that none need
    fit into memory."""

    def finished(rows):
        return intensities.denormalise(np.asarray(rows), intensity)

    for folder, volume, convert in (
        ("labels", labels, np.asarray),
        ("sketches", sketch, np.asarray),
        ("images", image, finished),
    ):
        if volume is None:
            continue
        path = out / folder / f"{name}.tif"
        if not mapped:
            volumes.write(path, convert(volume), spacing_um=spacing)
            continue
        dtype = "uint32" if folder == "labels" else convert(volume[:1]).dtype
        with writing.mapped(path, volume.shape, dtype, spacing_um=spacing) as target:
            for row, values in enumerate(volume):
                target[row] = convert(values)


def _digest(volume: np.ndarray, dtype: str) -> str:
    """SHA-256 of the voxels, row by row."""
    digest = hashlib.sha256()
    for row in volume:
        digest.update(np.ascontiguousarray(row, dtype).tobytes())
    return digest.hexdigest()


def _count_cells(labels: np.ndarray) -> int:
    """How many labels there are beside the background."""
    return len(set().union(*(np.unique(row).tolist() for row in labels)) - {0})
