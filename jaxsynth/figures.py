"""Pictures for people: the one module that draws. Pixels are shown 1:1 or enlarged by whole numbers, never resampled.

Files are PNG, written aside and renamed, so that a picture is whole or not there.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

INK, FAINT, PAPER = "#1b1f24", "#6a737d", "#ffffff"
COLOURS = {"real": "#1b1f24", "synthetic": "#d1495b", "sketch": "#3a7ca5", "real, other half": "#9aa5b1"}
SPARE = ("#d1495b", "#3a7ca5", "#66a182", "#edae49", "#8d6a9f")
DPI = 100
GAP, MARGIN, CAPTION, TITLE = 10, 16, 22, 34  # pixels


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
    """The tone that shows these volumes well: from their 0.5 to their 99.8 percentile.

    Where the mean of what is brighter than the background would be darker than a third of the range, the dark end is
    made steeper until it is not, so that dim cells are seen beside bright ones.
    """
    voxels = np.concatenate([np.asarray(v, np.float32).reshape(-1)[:: max(1, v.size // 200_000)] for v in volumes])
    voxels = voxels[np.isfinite(voxels)]
    low, high = (float(q) for q in np.percentile(voxels, (0.5, 99.8))) if voxels.size else (0.0, 1.0)
    if not high > low:
        low, high = (float(voxels.min()), float(voxels.max())) if voxels.size else (0.0, 1.0)
    if not high > low:
        return Tone(low, low + 1.0)
    level = np.clip((voxels - low) / (high - low), 0, 1)
    background = np.median(level[level <= np.median(level)])
    spread = 1.4826 * np.median(np.abs(level[level <= np.median(level)] - background))
    signal = level[level > background + 4 * max(spread, 1e-3)]
    if not signal.size:
        return Tone(low, high)
    # 1.5 keeps what noise there is in the background dark.
    for softening in (0.0, 3.0, 6.0, 12.0, 24.0):
        tone = Tone(low, high, softening)
        if np.median(tone(low + signal * (high - low))) >= 0.33:
            break
    return tone


def _view(volume: np.ndarray, most: int, aspect: int = 1) -> np.ndarray:
    """A picture of a volume: its centre, at most `most` pixels wide; in 3D the middle plane and, under it, the cut
    along the middle row with planes `aspect` pixels thick."""
    crop = tuple(slice((n - min(n, most)) // 2, (n - min(n, most)) // 2 + min(n, most)) for n in volume.shape[-2:])
    if volume.ndim == 2:
        return volume[crop]
    plane = volume[volume.shape[0] // 2][crop]
    cut = np.repeat(volume[:, volume.shape[1] // 2, crop[1]], aspect, axis=0)
    gap = np.full((4, plane.shape[1]), -np.inf)
    return np.concatenate([plane.astype(float), gap, cut.astype(float)])


def _grey(view: np.ndarray, tone: Tone) -> np.ndarray:
    """RGB float [H, W, 3] of a view; the gap between plane and cut is paper white."""
    grey = tone(np.where(np.isfinite(view), view, tone.low))[..., None].repeat(3, -1)
    grey[~np.isfinite(view)] = 1
    return grey


def _colours(view: np.ndarray) -> np.ndarray:
    """RGB float [H, W, 3] of a view of labels: every label another bright colour, the background black."""
    from matplotlib.colors import hsv_to_rgb

    labels = np.where(np.isfinite(view), view, 0).astype(np.int64)
    hue = (labels * 0.61803398875) % 1.0  # the golden ratio keeps neighbouring numbers apart
    shade = 0.65 + 0.35 * ((labels * 0.3819660113) % 1.0)
    colours = hsv_to_rgb(np.stack([hue, np.full(hue.shape, 0.65), shade], -1))
    colours[labels == 0] = 0
    colours[~np.isfinite(view)] = 1
    return colours


def overview(
    path: Path,
    columns: Mapping[str, Sequence[np.ndarray]],
    *,
    row_names: Sequence[str] = (),
    most: int = 320,
    aspect: int = 1,
) -> None:
    """A table of pictures, one column per title, one row per image.

    Args:
      path: the PNG.
      columns: title -> images [*S]. `labels` are drawn in colours, `sketch` from -1 to 1, all others in the tone
        that suits the first column, so that brightness can be compared across columns.
      row_names: written under each row.
      most: a larger image is cropped to its centre, pixels.
      aspect: in 3D, a plane's distance over a pixel's width.
    """
    tone = fit_tone(next(iter(columns.values())))
    pictures = {}
    for title, images in columns.items():
        views = [_view(np.asarray(image), most, aspect) for image in images]
        used = Tone(-1.0, 1.0) if title == "sketch" else tone
        pictures[title] = [_colours(view) if title == "labels" else _grey(view, used) for view in views]
    rows = max(len(column) for column in pictures.values())
    sizes = [picture.shape for column in pictures.values() for picture in column]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    zoom = max(1, 256 // width)
    height, width = height * zoom, width * zoom
    total_width = 2 * MARGIN + len(pictures) * (width + GAP) - GAP
    total_height = 2 * MARGIN + TITLE + rows * (height + CAPTION + GAP) - GAP
    figure = _figure(total_width / DPI, total_height / DPI)
    for column, (title, images) in enumerate(pictures.items()):
        left = MARGIN + column * (width + GAP)
        figure.text(left / total_width, 1 - (MARGIN + TITLE / 2) / total_height, title, color=INK, fontsize=15,
                    fontweight="bold", va="center")  # fmt: skip
        for row, image in enumerate(images):
            h, w = image.shape[0] * zoom, image.shape[1] * zoom
            top = MARGIN + TITLE + row * (height + CAPTION + GAP)
            box = (left / total_width, 1 - (top + h) / total_height, w / total_width, h / total_height)
            axes = figure.add_axes(box)
            axes.imshow(image, interpolation="nearest", aspect="auto")
            axes.axis("off")
    for row, name in enumerate(row_names[:rows]):
        top = MARGIN + TITLE + row * (height + CAPTION + GAP) + height + CAPTION / 2
        figure.text(MARGIN / total_width, 1 - top / total_height, name, color=FAINT, fontsize=9, va="center")
    _save(figure, path)


def curves(path: Path, panels: Sequence[dict]) -> None:
    """Panels side by side, each {"title", "x", "xlabel", "ylabel", "lines": {name: y}} and optionally "log": True."""
    figure = _figure(5.2 * len(panels), 4.0)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        spare = iter(SPARE)
        for name, y in panel["lines"].items():
            axes.plot(panel["x"], y, label=name, color=COLOURS.get(name) or next(spare), linewidth=1.8)
        if panel.get("log"):
            axes.set_yscale("log")
        axes.set(title=panel["title"], xlabel=panel["xlabel"], ylabel=panel["ylabel"])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.tight_layout()
    _save(figure, path)


def preview(path: Path, volumes: Mapping[str, np.ndarray]) -> None:
    """A contact sheet of a training run: title -> array [*S] in about [-1, 1]; 3D as middle plane and cut."""
    views = {title: _view(np.asarray(volume), 256) for title, volume in volumes.items()}
    figure = _figure(3.2 * len(views), 3.5)
    for axes, (title, view) in zip(figure.subplots(1, len(views), squeeze=False)[0], views.items(), strict=True):
        axes.imshow(_grey(view, Tone(-1.0, 1.0)), interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    figure.tight_layout()
    _save(figure, path)


def _figure(width: float, height: float):
    """A figure of that size in inches, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path: Path) -> None:
    path = Path(path)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png")
    os.replace(part, path)
