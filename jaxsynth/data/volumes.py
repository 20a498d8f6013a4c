"""Sets of real images: find them, check that they belong together, read whole volumes or patches.

A volume is one channel, (Y, X) or (Z, Y, X), in the file's own dtype.
"""

import dataclasses
import glob
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxsynth.data.formats import HDF5, SUFFIXES, decode, hdf5_window, naming, read, read_labels, spacing_um
from jaxsynth.data.writing import write
from jaxsynth.errors import InputError

__all__ = [
    "VolumeSet",
    "by_name",
    "each",
    "find_files",
    "load",
    "open_set",
    "read",
    "read_labels",
    "read_patch",
    "spacing_um",
    "subset",
    "write",
]

CACHE_BYTES = 2 * 2**30  # decoded files that `read_patch` keeps


@dataclass(frozen=True)
class VolumeSet:
    """Checked image files of one dtype and rank.

    Attributes:
      paths: the files, sorted.
      shapes: their shapes, (Y, X) or (Z, Y, X), voxels.
      dtype: their dtype, native byte order.
      ndim: 2 or 3.
      spacing_um: micrometres per voxel, (y, x) or (z, y, x); None where neither files nor user state it.
      channel: which channel is read; None for files that have one.
      dataset: which HDF5 data set is read.
    """

    paths: tuple[Path, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: np.dtype
    ndim: int
    spacing_um: tuple[float, ...] | None
    channel: int | None
    dataset: str | None

    @property
    def num_voxels(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)


def find_files(path: str | os.PathLike | Sequence) -> list[Path]:
    """The image files under `path`, sorted, each once.

    Args:
      path: a folder (its own files, not its subfolders'), a glob (`**` for any depth), one file, or a list of these.
        Hidden files are passed over; folders and globs yield TIFF, PNG and HDF5 files only.

    Raises:
      InputError: an entry does not exist or yields no image file.
    """
    entries = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not entries or not all(str(entry) for entry in entries):
        raise InputError(f"data.path: expected a folder, a glob or a list of image files, got {path!r}")
    found = set()
    for entry in entries:
        place = Path(entry).expanduser()
        if place.is_file():
            if place.suffix.lower() not in SUFFIXES:
                raise InputError(f"{place}: not an image file, expected one of {' '.join(SUFFIXES)}")
            found.add(place)
            continue
        if place.is_dir():
            inside = place.iterdir()
        elif glob.has_magic(str(place)):
            inside = map(Path, glob.glob(str(place), recursive=True))
        else:
            raise InputError(f"{place}: no such file or folder")
        files = {p for p in inside if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()}
        if not files:
            raise InputError(f"{place}: no image files found, looked for {' '.join(SUFFIXES)}")
        found |= files
    return sorted(found)


def by_name(files: Iterable[Path], what: str) -> dict[str, Path]:
    """The files by their stems. Raises InputError, beginning with `what`, where two have the same."""
    named = {}
    for file in files:
        if file.stem in named:
            raise InputError(f"{what}: two files named {file.stem}: {named[file.stem]} and {file}")
        named[file.stem] = file
    return named


def open_set(
    path,
    *,
    channel: int | None = None,
    dataset: str | None = None,
    spacing: Sequence[float] | None = None,
    min_shape: Sequence[int] | None = None,
    allow_padding: bool = True,
) -> VolumeSet:
    """Finds and checks images that belong together; every file is read once, one at a time.

    Args:
      path: as in `find_files`.
      channel, dataset: as in `read`.
      spacing: micrometres per voxel, (y, x) or (z, y, x); overrides what the files state.
      min_shape: the patch, voxels.
      allow_padding: whether an image smaller than `min_shape` is accepted (`read_patch` pads it).

    Raises:
      InputError: `read` refuses a file; a file holds NaN or infinity, is constant, or is smaller than `min_shape`
        where padding is refused; files differ in rank, dtype or stated voxel size (where `spacing` is None).
    """
    paths = tuple(find_files(path))
    first, shapes, stated = None, [], {}
    for file in paths:
        volume = read(file, channel=channel, dataset=dataset)
        low, high = volume.min(), volume.max()  # NaN shows in both
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(f"{file}: holds NaN or infinite values")
        if low == high:
            raise InputError(f"{file}: constant image, every voxel is {low}")
        first = volume if first is None else first
        if volume.ndim != first.ndim:
            raise InputError(
                f"{file}: is {volume.ndim}D {volume.shape} but {paths[0]} is {first.ndim}D {first.shape}; "
                "2D and 3D images cannot be mixed"
            )
        if volume.dtype != first.dtype:
            raise InputError(f"{file}: is {volume.dtype} but {paths[0]} is {first.dtype}; dtypes cannot be mixed")
        if min_shape is not None and len(min_shape) != volume.ndim:
            raise InputError(f"{file}: is {volume.ndim}D {volume.shape}, the patch {tuple(min_shape)} is not")
        if min_shape is not None and not allow_padding and any(np.less(volume.shape, min_shape)):
            raise InputError(
                f"{file}: image {volume.shape} is smaller than the patch {tuple(min_shape)} and padding is refused"
            )
        shapes.append(volume.shape)
        size = spacing_um(file, dataset=dataset) if spacing is None else None
        if size is not None and len(size) == volume.ndim:
            stated.setdefault(size, file)
    if spacing is not None:
        if len(spacing) != first.ndim or not all(0 < size < math.inf for size in spacing):
            raise InputError(f"spacing: expected {first.ndim} positive micrometres per voxel, got {tuple(spacing)}")
        stated = {tuple(map(float, spacing)): None}
    for size, file in stated.items():
        one, other = next(iter(stated.items()))
        if not np.allclose(size, one, rtol=1e-3, atol=0):
            raise InputError(f"{file}: voxel size {size} um differs from {one} um of {other}; give the spacing")
    return VolumeSet(paths, tuple(shapes), first.dtype, first.ndim, next(iter(stated), None), channel, dataset)


def load(volumes: VolumeSet, index: int) -> np.ndarray:
    """Volume `index` of the set as `read` gives it."""
    return read(volumes.paths[index], channel=volumes.channel, dataset=volumes.dataset)


def each(volumes: VolumeSet) -> Iterator[np.ndarray]:
    """The volumes of the set in order, one in memory at a time."""
    return (load(volumes, index) for index in range(len(volumes.paths)))


def subset(volumes: VolumeSet, indices: Iterable[int]) -> VolumeSet:
    """The set of the volumes at `indices`, in that order."""
    indices = list(indices)
    return dataclasses.replace(
        volumes, paths=tuple(volumes.paths[i] for i in indices), shapes=tuple(volumes.shapes[i] for i in indices)
    )


def read_patch(volumes: VolumeSet, index: int, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """A patch of volume `index`, for any number of threads at once.

    Uncompressed contiguous TIFF is memory-mapped and HDF5 sliced, so only the patch is read; other files are decoded
    whole and the last used are kept (`CACHE_BYTES`).

    Args:
      start: the patch's first voxel, (y, x) or (z, y, x); may lie outside.
      shape: voxels. What lies outside is the image mirrored at its border voxels (`np.pad`'s "reflect").

    Returns:
      A new array of `shape` in the set's dtype.
    """
    size = volumes.shapes[index]
    if not len(start) == len(shape) == len(size):
        raise ValueError(f"start {tuple(start)} and shape {tuple(shape)} must have the rank of the volume {size}")
    rows = [_reflect(first, count, n) for first, count, n in zip(start, shape, size, strict=True)]
    window = tuple(slice(int(r.min()), int(r.max()) + 1) for r in rows)
    path = volumes.paths[index]
    if path.suffix.lower() in HDF5:
        with naming(path):
            part = hdf5_window(path, window, volumes.channel, volumes.dataset)
    else:
        part = _cached(path, volumes.channel)[window]
    if any(len(r) != n for r, n in zip(rows, part.shape, strict=True)) or any(r[0] > r[-1] for r in rows):
        part = part[np.ix_(*(r - r.min() for r in rows))]
    return np.array(part, dtype=volumes.dtype)


def _reflect(start: int, count: int, n: int) -> np.ndarray:
    """Indices start .. start + count - 1 of an axis of n voxels mirrored at its border voxels."""
    period = max(2 * n - 2, 1)
    rows = np.arange(start, start + count) % period
    return np.where(rows < n, rows, period - rows)


_cache: OrderedDict[tuple, np.ndarray] = OrderedDict()
_cache_lock = threading.Lock()


def _cached(path: Path, channel: int | None) -> np.ndarray:
    """The decoded or memory-mapped file, from the cache where it is there and the file has not changed."""
    with naming(path):
        state = path.stat()
        key = (path, channel, state.st_mtime_ns, state.st_size)
        with _cache_lock:
            if key in _cache:
                _cache.move_to_end(key)
                return _cache[key]
        array = decode(path, channel, mapped=True)  # outside the lock: threads decode different files at once
        if not isinstance(array, np.memmap) and array.base is not None:
            array = array.copy()  # one channel must not keep the others in memory
        with _cache_lock:
            _cache[key] = array
            held = sum(a.nbytes for a in _cache.values() if not isinstance(a, np.memmap))
            while held > CACHE_BYTES and len(_cache) > 1:
                _, oldest = _cache.popitem(last=False)
                held -= 0 if isinstance(oldest, np.memmap) else oldest.nbytes
        return array
