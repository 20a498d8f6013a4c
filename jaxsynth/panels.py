"""How an array becomes a picture: tones and colours, the window or plane that shows most, scaling to a panel's size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SHOWN = 384  # most pixels of a window along a side; larger images are cropped
WHOLE = 560  # most pixels of a whole image along a side; larger ones are made smaller
SMALL = 320  # a picture is enlarged as long as it stays within so many pixels
THIN = 24  # least rows of a cut, of a whole volume


@dataclass(frozen=True)
class Tone:
    """How brightness becomes grey: (x - low) / (high - low), through asinh(softening x) where that is above 0.

    Attributes:
      low, high: what becomes black and white, image units.
      softening: steepness of the dark end; 0 = linear.
    """

    low: float
    high: float
    softening: float = 0.0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Grey values, float32 [*S] in [0, 1]."""
        y = (np.asarray(image, np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)
        y = np.clip(y, 0, 1)
        return np.arcsinh(y * self.softening) / np.arcsinh(self.softening) if self.softening else y


def fit_tone(volumes: Sequence[np.ndarray]) -> Tone:
    """The tone that shows these volumes well, from their 0.5 to their 99.95 percentile.

    Where a quarter of the cells' voxels would be darker than 0.4 of the range, the dark end is made steeper until
    they are not, so that dim cells are seen beside bright ones.
    """
    from skimage.filters import threshold_otsu

    voxels = np.concatenate([np.asarray(v, np.float32).reshape(-1)[:: max(1, v.size // 200_000)] for v in volumes])
    voxels = voxels[np.isfinite(voxels)]
    low, high = (float(q) for q in np.percentile(voxels, (0.5, 99.95))) if voxels.size else (0.0, 1.0)
    if not voxels.size:
        return Tone(low, high)
    if not high > low:
        return Tone(*extremes(volumes))
    level = np.clip((voxels - low) / (high - low), 0, 1)
    # The root brings dim and bright cells together, so that Otsu's threshold tells cells from background.
    cells = level[np.sqrt(level) > threshold_otsu(np.sqrt(level))]
    quarter = np.percentile(cells, 25) if cells.size else 1.0
    for softening in (0.0, 3.0, 6.0, 12.0, 24.0):
        tone = Tone(low, high, softening)
        if tone(low + quarter * (high - low)) >= 0.4:
            break
    return tone


def extremes(volumes: Sequence[np.ndarray]) -> tuple[float, float]:
    """Least and greatest value, kept apart."""
    low = min(float(np.min(volume)) for volume in volumes)
    high = max(float(np.max(volume)) for volume in volumes)
    return low, high if high > low else low + 1.0


def colours(labels: np.ndarray) -> np.ndarray:
    """A bright colour per cell on black, always the same for the same label: float32 [*S, 3] in [0, 1]."""
    from skimage.color import hsv2rgb

    ids, index = np.unique(labels, return_inverse=True)
    # Steps of the golden ratio keep the hues of successive labels far apart, however many there are.
    hue, saturation, value = (ids * step % 1 for step in (0.618033988749895, 0.7548776662, 0.569840291))
    table = hsv2rgb(np.stack([hue, 0.45 + 0.4 * saturation, 0.75 + 0.25 * value], -1))
    table[ids == 0] = 0
    return table[index.reshape(labels.shape)].astype(np.float32)


def focus(volume: np.ndarray, labels: bool) -> tuple[tuple[int | slice, ...], int]:
    """Where most cells lie: (index of the plane or window, [D]; row of the cut, of use in 3D)."""
    cells = volume > (0 if labels else np.percentile(volume, 95))
    window, row = [], 0
    for axis, size in enumerate(volume.shape):
        sums = cells.sum(axis=tuple(a for a in range(volume.ndim) if a != axis))
        width = 1 if axis == volume.ndim - 3 else min(size, SHOWN)
        totals = np.convolve(sums, np.ones(width), mode="valid")
        best = np.flatnonzero(totals == totals.max())
        start = int(best[len(best) // 2])
        window.append(start if axis == volume.ndim - 3 else slice(start, start + width))
        if axis == 1:
            row = start + int(np.argmax(sums[start : start + width]))
    return tuple(window), row


def windowed(volume, focus, paint, aspect=1.0) -> np.ndarray:
    """The picture of where most cells lie, of a volume the plane and, below, the cut: float32 [H, W, 3] in [0, 1]."""
    window, row = focus
    plane = _rgb(paint(volume[window]))
    zoom = max(1, SMALL // max(plane.shape[:2]))
    plane = _enlarge(plane, zoom, zoom)
    if volume.ndim == 2:
        return plane
    cut = _rgb(paint(volume[:, row, window[2]]))
    cut = _enlarge(cut, min(zoom * aspect, SHOWN / len(cut)), zoom)
    return np.concatenate([plane, np.ones((4, plane.shape[1], 3), np.float32), cut])


def whole(
    volume: np.ndarray, focus: tuple, paint: Callable, *, aspect: float = 1.0, nearest: bool = False
) -> tuple[np.ndarray, str]:
    """The picture of all of an image or of a volume's plane and cut: (float32 [H, W, 3] in [0, 1], what was done).

    Larger than `WHOLE` it is made smaller by a whole number: labels (`nearest`) keep every n-th voxel, all else is
    averaged.

    Args:
      focus: of `focus`; only its plane and row are used.
      aspect: in 3D, a plane's distance over a pixel's width.
    """
    window, row = focus
    plane = volume[window[0]] if volume.ndim == 3 else volume
    factor = max(1, -(-max(plane.shape) // WHOLE))
    zoom = max(1, SMALL // max(plane.shape))
    told = f"1/{factor} size" if factor > 1 else f"{zoom}x" if zoom > 1 else ""
    plane = _rgb(paint(_enlarge(_shrink(plane, (factor, factor), nearest), zoom, zoom)))
    if volume.ndim == 2:
        return plane, told
    true = len(volume) * aspect * zoom / factor
    rows = round(min(max(true, THIN), WHOLE))
    cut = _shrink(volume[:, row], (max(1, len(volume) // rows), factor), nearest)
    cut = _rgb(paint(_enlarge(cut, rows / len(cut), zoom)))
    scaled = f", z {rows / true:.2g}x" if abs(rows / true - 1) > 0.05 else ""
    told = ", ".join(part for part in (told, f"z {window[0]} + xz at y {row}{scaled}") if part)
    return np.concatenate([plane, np.ones((4, plane.shape[1], 3), np.float32), cut]), told


def _shrink(plane: np.ndarray, factors: tuple[int, int], nearest: bool) -> np.ndarray:
    """The plane smaller by whole numbers; what is left over at its ends makes a last, narrower row."""
    if factors == (1, 1):
        return plane
    if nearest:
        places = [np.minimum(np.arange(0, n, f) + f // 2, n - 1) for f, n in zip(factors, plane.shape, strict=True)]
        return plane[np.ix_(*places)]
    for axis, factor in enumerate(factors):
        starts = np.arange(0, plane.shape[axis], factor)
        counts = np.diff([*starts, plane.shape[axis]]).reshape([-1 if a == axis else 1 for a in range(2)])
        plane = np.add.reduceat(plane.astype(np.float32), starts, axis) / counts.astype(np.float32)
    return plane


def _rgb(picture):
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1).astype(np.float32)


def _enlarge(picture, rows, columns):
    """Repeats pixels; `rows` may be a fraction, as planes seldom lie whole pixels apart."""
    index = (np.arange(max(1, round(len(picture) * rows))) / rows).astype(int)
    return np.repeat(picture[np.minimum(index, len(picture) - 1)], columns, axis=1)
