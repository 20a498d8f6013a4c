"""Writing image files: TIFF, whole or not at all, and TIFF to be filled piece by piece."""

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile

from jaxsynth.data.formats import IMAGE_DTYPES
from jaxsynth.errors import InputError

BIG_BYTES = 3.9e9  # beyond it `write` makes a BigTIFF


def write(path: str | os.PathLike, volume: np.ndarray, *, spacing_um: Sequence[float] | None = None) -> None:
    """Writes a zlib-compressed TIFF, whole or not at all (written aside, then renamed).

    uint8, uint16, int16 and float32 are written as they are, float16 and float64 as float32, bool as uint8. Other
    integers are labels: uint16 where the greatest is below 65536, else uint32. The file is an ImageJ hyperstack
    where ImageJ knows the dtype, otherwise (uint32, or more than 3.9 GB, then BigTIFF) an OME-TIFF.

    Args:
      volume: (Y, X) or (Z, Y, X).
      spacing_um: micrometres per voxel, (y, x) or (z, y, x).

    Raises:
      ValueError: another rank or dtype, or a label outside 0 to 2^32 - 1.
    """
    path, volume = Path(path), np.asarray(volume)
    _check_rank(path, volume.shape, spacing_um)
    volume = _storable(path, volume)
    options = {"compression": "zlib"} | _layout(volume.shape, volume.dtype, spacing_um)
    aside = _aside(path)
    try:
        tifffile.imwrite(aside, volume, **options)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def mapped(
    path: str | os.PathLike, shape: Sequence[int], dtype: np.dtype, *, spacing_um: Sequence[float] | None = None
) -> Iterator[np.memmap]:
    """A TIFF to be filled piece by piece, for volumes larger than memory: zeros, mapped and writable within `with`.

    Not compressed; otherwise as `write` makes it. The file gets its name when the block ends well and is gone when
    it does not; its room on the disk is taken at once.

    Args:
      shape: (Y, X) or (Z, Y, X).
      dtype: uint8, uint16, int16, float32, or uint32 for labels.
      spacing_um: micrometres per voxel, (y, x) or (z, y, x).

    Raises:
      ValueError: another rank or dtype.
      InputError: the file cannot be made, or the disk has no room.
    """
    path, shape, dtype = Path(path), tuple(shape), np.dtype(dtype)
    _check_rank(path, shape, spacing_um)
    if dtype.name not in {*IMAGE_DTYPES, "uint32"} - {"float64"}:
        raise ValueError(f"{path}: expected uint8, uint16, uint32, int16 or float32, got {dtype}")
    aside = _aside(path)
    try:
        with room(path, math.prod(shape) * dtype.itemsize):
            volume = tifffile.memmap(aside, shape=shape, dtype=dtype, **_layout(shape, dtype, spacing_um))
            with open(aside, "r+b") as file:
                reserve(file.fileno(), aside.stat().st_size)
        yield volume
        volume.flush()
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def room(path: str | os.PathLike, num_bytes: int) -> Iterator[None]:
    """Turns an OSError, which a full disk raises without a file's name, into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot make a file of {num_bytes / 1e9:.3g} GB ({reason})") from error


def reserve(descriptor: int, num_bytes: int) -> None:
    """Takes room for a file on its disk, where the system can; a mapped file would else meet a full disk in mid-write.

    Raises:
      OSError: there is not so much.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")


def _check_rank(path: Path, shape: tuple[int, ...], spacing_um: Sequence[float] | None) -> None:
    if len(shape) not in (2, 3) or (spacing_um is not None and len(spacing_um) != len(shape)):
        raise ValueError(f"{path}: expected a 2D or 3D volume and as many spacings, got {shape}, {spacing_um}")


def _layout(shape: tuple[int, ...], dtype: np.dtype, spacing_um: Sequence[float] | None) -> dict:
    """tifffile's options for a volume: ImageJ where it knows dtype and size, otherwise OME."""
    axes = "ZYX"[-len(shape) :]
    big = math.prod(shape) * dtype.itemsize > BIG_BYTES
    options = {"photometric": "minisblack", "bigtiff": big, "metadata": {"axes": axes}}
    if dtype == np.uint32 or big:
        # A fixed UUID, as the same volume shall give the same bytes.
        options |= {"ome": True, "metadata": {"axes": axes, "UUID": "00000000-0000-0000-0000-000000000000"}}
        for axis, size in zip(axes, spacing_um or (), strict=False):
            options["metadata"] |= {f"PhysicalSize{axis}": float(size), f"PhysicalSize{axis}Unit": "µm"}
    else:
        options["imagej"] = True
        if spacing_um is not None:
            options["resolution"] = (1 / spacing_um[-1], 1 / spacing_um[-2])
            options["metadata"] |= {"unit": "um"}
            options["metadata"] |= {"spacing": float(spacing_um[0])} if len(shape) == 3 else {}
    return options


def _storable(path: Path, volume: np.ndarray) -> np.ndarray:
    kind, dtype = volume.dtype.kind, volume.dtype.newbyteorder("=")
    if kind == "b":
        return volume.astype(np.uint8)
    if kind == "f":
        return volume.astype(np.float32)
    if kind not in "iu":
        raise ValueError(f"{path}: cannot write {volume.dtype}")
    if dtype.name in IMAGE_DTYPES:
        return volume.astype(dtype)
    low, high = (int(volume.min()), int(volume.max())) if volume.size else (0, 0)
    if low < 0 or high >= 2**32:
        raise ValueError(f"{path}: labels must be in 0 to 2^32 - 1, got {low} to {high}")
    return volume.astype(np.uint16 if high < 2**16 else np.uint32)
