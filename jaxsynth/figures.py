"""Pictures for people: the one module that draws. Pixels are shown 1:1 or enlarged by whole numbers, never resampled.

Files are PNG, written aside and renamed, so that a picture is whole or not there.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DPI = 100
INK, FAINT, RULE, PAPER = "#1b1f24", "#6a737d", "#d0d7de", "#ffffff"
COLOURS = {"real": INK, "real, other half": "#8c959f", "synthetic": "#d1495b", "sketch": "#3a7ca5"}
SPARE = ("#66a182", "#edae49", "#8d6a9f", "#d1495b", "#3a7ca5")
SHOWN = 384  # most pixels of a panel along a side; larger images are cropped
SMALL = 320  # a panel is enlarged as long as it stays within so many pixels
GAP, MARGIN, CAPTION, TITLE = 10, 18, 22, 30  # pixels


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
    if not high > low:
        return Tone(*_extremes(volumes))
    level = np.clip((voxels - low) / (high - low), 0, 1)
    # The root brings dim and bright cells together, so that Otsu's threshold tells cells from background.
    cells = level[np.sqrt(level) > threshold_otsu(np.sqrt(level))]
    quarter = np.percentile(cells, 25) if cells.size else 1.0
    for softening in (0.0, 3.0, 6.0, 12.0, 24.0):
        tone = Tone(low, high, softening)
        if tone(low + quarter * (high - low)) >= 0.4:
            break
    return tone


def _extremes(volumes: Sequence[np.ndarray]) -> tuple[float, float]:
    """Least and greatest value, kept apart."""
    low = min(float(np.min(volume)) for volume in volumes)
    high = max(float(np.max(volume)) for volume in volumes)
    return low, high if high > low else low + 1.0


def overview(
    path: str | os.PathLike,
    columns: Mapping[str, Sequence[np.ndarray]],
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    aspect: float = 1.0,
    heading: str = "",
) -> None:
    """A table of pictures, one column per title, one row per image.

    An image larger than `SHOWN` pixels is shown through the window that holds most cells; a volume as its plane with
    most cells and, below, the cut across their middle. Windows and planes are the same along a row where shapes are.

    Args:
      path: the PNG.
      columns: title -> images [*S], (Y, X) or (Z, Y, X). "labels" are drawn in colours, "sketch" from its
        least to its greatest value, all others in the tone that suits the first column: brightness can be compared.
      names: title -> the images' names, written below; one that equals its left neighbour's is left out.
      aspect: in 3D, a plane's distance over a pixel's width.
      heading: a line above the titles.
    """
    tone = fit_tone(next(iter(columns.values())))
    paints = {title: tone for title in columns}
    paints["labels"] = colours
    if "sketch" in columns:
        paints["sketch"] = Tone(*_extremes(columns["sketch"]))
    rows = []
    for row in range(max(map(len, columns.values()))):
        volumes = {title: np.asarray(column[row]) for title, column in columns.items() if row < len(column)}
        focus = {}
        for title in sorted(volumes, key=lambda title: title != "labels"):  # labels know best where the cells are
            focus.setdefault(volumes[title].shape, _focus(volumes[title], title == "labels"))
        panels, left = [], ""
        for title in columns:
            name = names[title][row] if names and row < len(names.get(title, ())) else ""
            volume = volumes.get(title)
            picture = None if volume is None else _picture(volume, focus[volume.shape], paints[title], aspect)
            panels.append((picture, "" if name == left else name))
            left = name
        rows.append(panels)
    _sheet(path, rows, list(columns), heading)


def preview(path: str | os.PathLike, volumes: Mapping[str, np.ndarray]) -> None:
    """A contact sheet of a training run: title -> array [*S] in about [-1, 1], its range written below.

    "labels" are drawn in colours; the rest each in a contrast of its own, as a noised image would drown the others.
    """
    panels = []
    for title, volume in volumes.items():
        volume = np.asarray(volume)
        labels = title == "labels"
        picture = _picture(volume, _focus(volume, labels), colours if labels else fit_tone([volume]))
        panels.append((picture, f"{volume.min():.3g} to {volume.max():.3g}"))
    _sheet(path, [panels], list(volumes), "")


def curves(path: str | os.PathLike, panels: Sequence[Mapping], table: Sequence[Sequence[str]] = ()) -> None:
    """Plots side by side and, below, a table.

    Args:
      path: the PNG.
      panels: each {"title", "x", "xlabel", "ylabel", "lines": {name: y}} and optionally "log": True for the vertical
        axis and "ticks": (places, texts) for the horizontal one. Where x is one longer than y it holds the edges of
        a histogram.
      table: rows of equally many texts, the first being the columns' heads.
    """
    from matplotlib.lines import Line2D

    column, row = 5.6, 0.25  # inches
    below = row * len(table) + 0.3 if table else 0.0
    width, height = column * len(panels), 4.0 + below
    figure = _figure(width, height)
    for i, panel in enumerate(panels):
        box = ((column * i + 0.85) / width, (below + 0.65) / height, (column - 1.05) / width, 2.85 / height)
        axes = figure.add_axes(box)
        spare = iter(SPARE)
        floor = min((np.min(y[y > 0]) for y in map(np.asarray, panel["lines"].values()) if np.any(y > 0)), default=1.0)
        for name, y in panel["lines"].items():
            # A logarithmic axis shows an empty bin as a line that leaves the plot.
            y = np.maximum(y, floor / 10) if panel.get("log") else y
            style = {"color": COLOURS.get(name) or next(spare), "label": name, "linewidth": 1.7,
                     "linestyle": "--" if name.startswith("real,") else "-"}  # fmt: skip
            if len(panel["x"]) == len(y) + 1:
                axes.stairs(y, panel["x"], baseline=None, **style)
            else:
                axes.plot(panel["x"], y, **style)
        if panel.get("log"):
            axes.set_yscale("log")
            axes.set_ylim(bottom=floor / 1.5)
        if "ticks" in panel:
            axes.set_xticks(*panel["ticks"])
        axes.set_title(panel["title"], loc="left", fontsize=12, color=INK, fontweight="bold")
        axes.set_xlabel(panel["xlabel"], fontsize=10, color=INK)
        axes.set_ylabel(panel["ylabel"], fontsize=10, color=INK)
        axes.tick_params(which="both", labelsize=9, colors=FAINT)
        axes.grid(color=RULE, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(RULE)
        axes.margins(x=0.01)
        axes.legend(fontsize=9.5, frameon=False, labelcolor=INK)
    for i, texts in enumerate(table):
        y = (below - row * (i + 0.5)) / height
        for j, text in enumerate(texts):
            x = 0.3 if j == 0 else 3.2 + (width - 3.5) * j / (len(texts) - 1)
            figure.text(x / width, y, text, fontsize=10, va="center", ha="right" if j else "left",
                        color=INK if i else FAINT, fontweight="normal" if i else "bold", parse_math=False)  # fmt: skip
        if i == 0:
            y -= 0.5 * row / height
            figure.add_artist(Line2D([0.3 / width, 1 - 0.3 / width], [y, y], color=RULE, linewidth=1))
    _save(figure, path)


def colours(labels: np.ndarray) -> np.ndarray:
    """A bright colour per cell on black, always the same for the same label: float32 [*S, 3] in [0, 1]."""
    from matplotlib.colors import hsv_to_rgb

    ids, index = np.unique(labels, return_inverse=True)
    # Steps of the golden ratio keep the hues of successive labels far apart, however many there are.
    hue, saturation, value = (ids * step % 1 for step in (0.618033988749895, 0.7548776662, 0.569840291))
    table = hsv_to_rgb(np.stack([hue, 0.45 + 0.4 * saturation, 0.75 + 0.25 * value], -1))
    table[ids == 0] = 0
    return table[index.reshape(labels.shape)].astype(np.float32)


def _focus(volume: np.ndarray, labels: bool) -> tuple[tuple[int | slice, ...], int]:
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


def _picture(volume, focus, paint, aspect=1.0) -> np.ndarray:
    """The picture of a volume, float32 [H, W, 3] in [0, 1]."""
    window, row = focus
    plane = _rgb(paint(volume[window]))
    zoom = max(1, SMALL // max(plane.shape[:2]))
    plane = _enlarge(plane, zoom, zoom)
    if volume.ndim == 2:
        return plane
    cut = _rgb(paint(volume[:, row, window[2]]))
    cut = _enlarge(cut, min(zoom * aspect, SHOWN / len(cut)), zoom)
    return np.concatenate([plane, np.ones((4, plane.shape[1], 3), np.float32), cut])


def _rgb(picture):
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1).astype(np.float32)


def _enlarge(picture, rows, columns):
    """Repeats pixels; `rows` may be a fraction, as planes seldom lie whole pixels apart."""
    index = (np.arange(max(1, round(len(picture) * rows))) / rows).astype(int)
    return np.repeat(picture[np.minimum(index, len(picture) - 1)], columns, axis=1)


def _sheet(path, rows, titles, heading) -> None:
    """Pictures in a grid, rows[r][c] = (picture or None, caption), every column under its title."""
    widths = [max([180] + [row[c][0].shape[1] for row in rows if row[c][0] is not None]) for c in range(len(titles))]
    heights = [max([40] + [picture.shape[0] for picture, _ in row if picture is not None]) for row in rows]
    top = MARGIN + (TITLE if heading else 0)
    width = 2 * MARGIN + sum(widths) + GAP * (len(widths) - 1)
    height = top + TITLE + sum(heights) + len(rows) * (CAPTION + GAP)
    canvas = np.ones((height, width, 3), np.float32)
    figure = _figure(width / DPI, height / DPI)

    def write(x, y, text, **style):
        figure.text(x / width, 1 - y / height, text, va="center", parse_math=False, **style)

    if heading:
        write(MARGIN, MARGIN + TITLE // 3, heading, fontsize=12, color=INK)
    lefts = [MARGIN + sum(widths[:c]) + GAP * c for c in range(len(widths))]
    for left, title in zip(lefts, titles, strict=True):
        write(left, top + TITLE // 3, title, fontsize=13, color=INK, fontweight="bold")
    y = top + TITLE
    for row, tall in zip(rows, heights, strict=True):
        for left, wide, (picture, caption) in zip(lefts, widths, row, strict=True):
            if picture is not None:
                canvas[y : y + picture.shape[0], left : left + picture.shape[1]] = picture
                caption = _shorten(caption, wide // 9)
                write(left, y + picture.shape[0] + CAPTION // 2, caption, fontsize=9, color=FAINT)
        y += tall + CAPTION + GAP
    figure.figimage(canvas, 0, 0, origin="upper")
    _save(figure, path)


def _shorten(text, length):
    """The text, its middle left out where it is too long."""
    keep = (length - 1) // 2
    return text if len(text) <= length else f"{text[:keep]}…{text[-keep:]}"


def _figure(width: float, height: float):
    """A figure of that size in inches, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path) -> None:
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        figure.savefig(part, format="png", dpi=DPI)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
