"""Image files: TIFF (OME, ImageJ, BigTIFF, compressed), PNG and HDF5, one channel as a 2D or 3D array.

Whatever is wrong with a file becomes an InputError that names it.
"""

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import h5py
import imagecodecs
import numpy as np
import tifffile

from jaxsynth.errors import InputError

TIFF, HDF5 = (".tif", ".tiff"), (".h5", ".hdf5")
SUFFIXES = (*TIFF, ".png", *HDF5)
IMAGE_DTYPES = ("uint8", "uint16", "int16", "float32", "float64")
DEFAULT_DATASET = "data/image"
SLAB_VOXELS = 2**24

_UM = {"um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0}
_UM |= {"pm": 1e-6, "å": 1e-4, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}

_TAG_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # TIFF 6.0, BigTIFF

# What tifffile logs about a damaged file is raised here as an InputError; one line is enough.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def read(
    path: str | os.PathLike, *, channel: int | None = None, dataset: str | None = None, mapped: bool = False
) -> np.ndarray:
    """One channel of one file.

    Axes are taken from the file: YX; Z, or the unnamed page axis of a plain multi-page TIFF, as Z; axes of length 1
    are dropped. A time axis is refused, with one exception: where T is the only stack axis of an ImageJ (not OME)
    file it is read as Z, because z slices saved without a calibration often come so labelled. HDF5 data sets are
    (Y, X), (Z, Y, X) or (C, Z, Y, X). Of a TIFF with several series the first is read. Palettes are ignored.

    Args:
      path: TIFF, PNG or HDF5 file.
      channel: which channel of a multi-channel or RGB file; may be 0 for a file with one channel.
      dataset: name of the HDF5 data set, by default `data/image`.
      mapped: uncompressed TIFF is mapped into memory, read only, in place of being loaded.

    Returns:
      (Y, X) or (Z, Y, X); uint8, uint16, int16, float32 or float64 as in the file, native byte order.

    Raises:
      InputError: the file is missing, empty, damaged, RGB or multi-channel with no `channel` given, or of another
        dtype or rank.
    """
    array = _read(path, channel, dataset, mapped)
    if array.dtype.name not in IMAGE_DTYPES:
        raise InputError(
            f"{path}: images of type {array.dtype} are not supported, expected one of {', '.join(IMAGE_DTYPES)}"
        )
    return array


def read_labels(
    path: str | os.PathLike, *, channel: int | None = None, dataset: str | None = None, mapped: bool = False
) -> np.ndarray:
    """A label image, int32 (Y, X) or (Z, Y, X), 0 = background; files as in `read`, any integer or whole-valued dtype.

    Mapped as in `read` where asked for and possible; then in the file's own dtype.

    Raises:
      InputError: as `read`, or a value is negative, fractional, not finite or above 2^31 - 1.
    """
    array = _read(path, channel, dataset, mapped)
    if array.dtype.kind not in "buif":
        raise InputError(f"{path}: labels must be whole numbers, got {array.dtype}")
    if array.dtype.kind == "f" and not all(np.isfinite(s).all() and (s == np.rint(s)).all() for s in slabs(array)):
        raise InputError(f"{path}: labels must be whole numbers, got fractions or NaN in {array.dtype}")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise InputError(f"{path}: labels must be in 0 to 2^31 - 1, got {array.min()} to {array.max()}")
    return array if isinstance(array, np.memmap) else array.astype(np.int32)


def slabs(volume: np.ndarray) -> Iterator[np.ndarray]:
    """The volume as views of some rows each, for what makes copies and would else make one of a whole mapped file."""
    count = max(1, SLAB_VOXELS // math.prod(volume.shape[1:]))
    return (volume[first : first + count] for first in range(0, volume.shape[0], count))


def spacing_um(path: str | os.PathLike, *, dataset: str | None = None) -> tuple[float, ...] | None:
    """Voxel size stated in the file, micrometres: (z, y, x) of a stack, (y, x) of a plane; None where not stated.

    Read from OME PhysicalSize (any length unit), the ImageJ tags (resolution, unit, spacing; a stack without
    `spacing` has 1 unit, as in ImageJ), or the HDF5 attribute `element_size_um` of the data set. TIFF resolution in
    inches or centimetres alone describes paper, not specimens, and is passed over.
    """
    path = Path(path)
    with naming(path):
        if path.suffix.lower() in HDF5:
            with h5py.File(path) as file:
                data = _dataset(file, path, dataset)
                sizes = data.attrs.get("element_size_um")
                sizes = None if sizes is None else tuple(np.ravel(sizes))[-max(2, sum(n > 1 for n in data.shape)) :]
        elif path.suffix.lower() in TIFF:
            with tifffile.TiffFile(path) as tif:
                sizes = _ome_sizes(tif) if tif.is_ome else _imagej_sizes(tif) if tif.is_imagej else None
                series = tif.series[0]
                stack = any(n > 1 for n, axis in zip(series.shape, series.axes, strict=True) if axis in "ZTQI")
                sizes = sizes if stack or sizes is None else sizes[-2:]
        else:
            return None
    if sizes is None or not all(size is not None and 0 < size < math.inf for size in sizes):
        return None
    return tuple(float(f"{size:.7g}") for size in sizes)  # TIFF keeps rationals: 0.1625 comes back as 0.16250000001


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns whatever the readers raise for a damaged file into an InputError that names it."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: empty file (0 bytes)")
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # each library has its own exceptions for the same mishap
        cause = " ".join(str(error).split())
        raise InputError(f"{path}: unreadable, damaged or truncated ({type(error).__name__}: {cause})") from error


def _read(path: str | os.PathLike, channel: int | None, dataset: str | None, mapped: bool) -> np.ndarray:
    path = Path(path)
    with naming(path):
        if path.suffix.lower() not in HDF5:
            array = decode(path, channel, mapped=mapped)
            if isinstance(array, np.memmap):
                return array
        else:
            array = hdf5_window(path, None, channel, dataset)
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def decode(path: Path, channel: int | None, *, mapped: bool = False) -> np.ndarray:
    """The chosen channel of a TIFF or PNG file, a view into a read-only memory map where asked for and possible."""
    if path.suffix.lower() == ".png":
        array = imagecodecs.png_decode(path.read_bytes())
        return array[_choose(path, array.shape, "YX" if array.ndim == 2 else "YXS", channel)]
    if path.suffix.lower() not in TIFF:
        raise InputError(f"{path}: not an image file, expected one of {' '.join(SUFFIXES)}")
    with tifffile.TiffFile(path) as tif:
        _check_whole(tif)
        series = tif.series[0]
        chosen = _choose(path, series.shape, series.axes, channel, ome=tif.is_ome)
        if mapped and series.dataoffset is not None:
            return tifffile.memmap(path, mode="r")[chosen]
        return series.asarray()[chosen]


def hdf5_window(path: Path, window: Sequence[slice] | None, channel: int | None, dataset: str | None) -> np.ndarray:
    """The part `window`, one slice per axis of the volume (None: all), of an HDF5 volume; reads nothing else."""
    with h5py.File(path) as file:
        data = _dataset(file, path, dataset)
        chosen = _choose(path, data.shape, _hdf5_axes(data), channel)
        if window is not None:
            slices = iter(window)
            chosen = tuple(next(slices) if isinstance(pick, slice) else pick for pick in chosen)
        return data[chosen]


def _check_whole(tif: tifffile.TiffFile) -> None:
    """Refuses a TIFF cut short; tifffile alone reads it as a shorter stack, or with zeros for what is missing.

    Walks the chain of page directories, which a cut between two pages breaks, and sees that the tags' values and
    the pages' data lie inside the file.
    """
    file, layout = tif.filehandle, tif.tiff
    order = "big" if tif.byteorder == ">" else "little"

    def number(content: bytes) -> int:
        return int.from_bytes(content, order)

    wide = layout.offsetsize
    offset, seen = tif.pages.first.offset, set()
    while offset:
        if offset >= file.size or offset in seen:
            raise tifffile.TiffFileError(f"page at byte {offset} of a file of {file.size} bytes")
        seen.add(offset)
        file.seek(offset)
        num_tags = number(file.read(layout.tagnosize))
        directory = file.read(num_tags * layout.tagsize + wide)
        if len(directory) < num_tags * layout.tagsize + wide:
            raise tifffile.TiffFileError("the file ends within a page's directory")
        for at in range(0, num_tags * layout.tagsize, layout.tagsize):
            code, kind = number(directory[at : at + 2]), number(directory[at + 2 : at + 4])
            size = number(directory[at + 4 :][:wide]) * _TAG_BYTES.get(kind, 1)
            # Private tags (32768 and up) may be anything, and STK files give them false sizes.
            if code < 32768 and size > wide and number(directory[at + 4 + wide :][:wide]) + size > file.size:
                raise tifffile.TiffFileError(f"tag {code} ends beyond the file's {file.size} bytes")
        offset = number(directory[-wide:])
    for page in tif.series[0].pages:
        if page is None:
            raise tifffile.TiffFileError("pages are missing, or lie in other files of an OME set")
        ends = (start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False))
        if page.parent is tif and max(ends, default=0) > file.size:
            raise tifffile.TiffFileError(f"page {page.index} ends beyond the file's {file.size} bytes")


def _choose(path: Path, shape: Sequence[int], axes: str, channel: int | None, *, ome: bool = False) -> tuple:
    """The index that takes one (Y, X) or (Z, Y, X) volume out of an array of `shape` with the named `axes`.

    S (samples of a pixel: RGB) and C are channel axes; Q and I are tifffile's names for pages without a meaning.
    """
    keep = [i for i, (n, axis) in enumerate(zip(shape, axes, strict=True)) if n > 1 or axis in "YX"]
    kept = "".join(axes[i] for i in keep)
    picks = [i for i in keep if axes[i] in "SC"]
    stack = "".join(axis for axis in kept if axis not in "SC")
    if len(picks) > 1 or not stack.endswith("YX") or stack[:-2] not in ("", "Z", "Q", "I", "T"):
        reason = "time series: save one file per frame" if "T" in stack else "expected (Y, X) or (Z, Y, X)"
        raise InputError(f"{path}: axes {kept} of shape {tuple(shape[i] for i in keep)}; {reason}")
    if stack[0] == "T" and ome:
        raise InputError(f"{path}: time series of {shape[axes.index('T')]} frames: save one file per frame")
    num_channels = shape[picks[0]] if picks else 1
    if picks and channel is None:
        colour = "RGB image with" if axes[picks[0]] == "S" else "has"
        # tifffile's ImageJ writer labels a 3D array CYX unless told otherwise.
        hint = "; if these are z slices, label the axis Z in the file" if num_channels > 4 and stack == "YX" else ""
        raise InputError(
            f"{path}: {colour} {num_channels} channels, choose one with data.channel (0 to {num_channels - 1}){hint}"
        )
    if channel is not None and not 0 <= channel < num_channels:
        raise InputError(f"{path}: data.channel is {channel}, the file has {num_channels} channel(s), counted from 0")
    return tuple(channel if i in picks else slice(None) if i in keep else 0 for i in range(len(shape)))


def _dataset(file: h5py.File, path: Path, name: str | None) -> h5py.Dataset:
    name = name or DEFAULT_DATASET
    data = file.get(name)
    if not isinstance(data, h5py.Dataset):
        names = []
        file.visititems(lambda key, item: names.append(key) if isinstance(item, h5py.Dataset) else None)
        raise InputError(f"{path}: no data set {name!r}, the file holds {', '.join(names[:8]) or 'none'}")
    return data


def _hdf5_axes(data: h5py.Dataset) -> str:
    """Leading axes of length 1 do not count: (1, Z, Y, X) is a volume."""
    if data.ndim < 2:
        raise InputError(f"{data.file.filename}: data set of shape {data.shape}, expected (Y, X) or (Z, Y, X)")
    return ("?" * data.ndim + "CZYX")[-data.ndim :]


def _ome_sizes(tif: tifffile.TiffFile) -> list[float | None]:
    pixels = next(e for e in ElementTree.fromstring(tif.ome_metadata).iter() if e.tag.endswith("Pixels"))
    units = [_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm").lower()) for axis in "ZYX"]
    sizes = [pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"]
    return [float(size) * unit if size and unit else None for size, unit in zip(sizes, units, strict=True)]


def _imagej_sizes(tif: tifffile.TiffFile) -> list[float | None] | None:
    unit = _UM.get(re.sub(r"\\u00b5", "µ", str(tif.imagej_metadata.get("unit", "")), flags=re.I).strip().lower())
    tags = [tif.pages.first.tags.get(name) for name in ("YResolution", "XResolution")]
    if unit is None or not all(tag is not None and tag.value[0] for tag in tags):
        return None
    y, x = (tag.value[1] / tag.value[0] for tag in tags)
    return [float(tif.imagej_metadata.get("spacing", 1.0)) * unit, y * unit, x * unit]
