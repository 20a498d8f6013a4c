"""Pictures for people: the one module that draws. Pixels are shown 1:1 or by whole numbers larger or smaller.

Files are PNG, written aside and renamed, so that a picture is whole or not there.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from jaxsynth.panels import Tone, colours, extremes, fit_tone, focus, whole, windowed

DPI = 100
INK, FAINT, RULE, PAPER = "#1b1f24", "#6a737d", "#d0d7de", "#ffffff"
COLOURS = {"real": INK, "real, other half": "#8c959f", "synthetic": "#d1495b", "sketch": "#3a7ca5"}
SPARE = ("#66a182", "#edae49", "#8d6a9f", "#d1495b", "#3a7ca5", "#a0522d", "#00b4d8", "#b5b000")
ELSEWHERE = ", elsewhere"  # ends the title of what does not show the same place as the others
GAP, MARGIN, CAPTION, LINE, TITLE = 10, 18, 22, 15, 30  # pixels


def overview(
    path: str | os.PathLike,
    columns: Mapping[str, Sequence[np.ndarray]],
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    aspect: float = 1.0,
    heading: str = "",
) -> None:
    """A table of pictures, one column per title, one row per image.

    An image larger than `panels.SHOWN` pixels is shown through the window that holds most cells; a volume as its plane
    with most cells and, below, the cut across their middle. Windows and planes are the same along a row where shapes
    are.

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
        paints["sketch"] = Tone(*extremes(columns["sketch"]))
    rows = []
    for row in range(max(map(len, columns.values()))):
        volumes = {title: np.asarray(column[row]) for title, column in columns.items() if row < len(column)}
        places = _places(volumes, ("labels",))
        panels, left = [], ""
        for title in columns:
            name = names[title][row] if names and row < len(names.get(title, ())) else ""
            volume = volumes.get(title)
            shown = None if volume is None else windowed(volume, places[volume.shape], paints[title], aspect)
            panels.append((shown, "" if name == left else name))
            left = name
        rows.append(panels)
    sheet(path, rows, list(columns), heading)


def specimens(
    path: str | os.PathLike,
    columns: Mapping[str, Sequence[np.ndarray]],
    *,
    names: Sequence[str] = (),
    aspect: float = 1.0,
    labels: Sequence[str] = ("labels", "nuclei"),
    heading: str = "",
) -> None:
    """A contact sheet of simulated specimens: one row each, whole, made smaller where larger than `panels.WHOLE`.

    A volume is shown as its plane with most cells and, below, the xz cut where most cells are; planes few or thin are
    stretched in the cut. The caption tells the scale, the plane and the cut, and the range of maps that are not labels.

    Args:
      path: the PNG.
      columns: title -> volumes [*S], (Y, X) or (Z, Y, X), one rank per row. Label maps are drawn in colours, masks
        (bool) black and white, a sketch from its least to its greatest value, "image" and other maps in the tone that
        suits them.
      names: the rows' names.
      aspect: in 3D, a plane's distance over a pixel's width.
      labels: which titles are label maps.
      heading: a line above the titles.
    """
    rows = []
    for row in range(max(map(len, columns.values()))):
        volumes = {title: np.asarray(column[row]) for title, column in columns.items() if row < len(column)}
        # One plane needs no cut.
        volumes = {t: v[0] if v.ndim == 3 and len(v) == 1 else v for t, v in volumes.items()}
        places = _places(volumes, labels)
        panels = []
        for title in columns:
            if title not in volumes:
                panels.append((None, ""))
                continue
            volume = volumes[title]
            if title in labels:
                paint, told = colours, f"{np.count_nonzero(np.unique(volume))} cells"
            elif volume.dtype == bool:
                paint, told = Tone(0.0, 1.0), f"{volume.mean():.1%} of voxels"
            else:
                paint = Tone(*extremes([volume])) if title == "sketch" else fit_tone([volume])
                told = f"{volume.min():.4g} to {volume.max():.4g}"
            shown, how = whole(volume, places[volume.shape], paint, aspect=aspect, nearest=title in labels)
            name = names[row] if title == next(iter(columns)) and row < len(names) else ""
            panels.append((shown, "\n".join(part for part in (f"{name}  {told}".strip(), how) if part)))
        rows.append(panels)
    sheet(path, rows, list(columns), heading)


def _places(volumes: Mapping[str, np.ndarray], labels: Sequence[str]) -> dict:
    """Where to look, shape -> `panels.focus`; labels know best where the cells are."""
    places = {}
    for title in sorted(volumes, key=lambda title: title not in labels):
        if volumes[title].shape not in places:
            places[volumes[title].shape] = focus(volumes[title], title in labels)
    return places


def preview(path: str | os.PathLike, volumes: Mapping[str, np.ndarray]) -> None:
    """A contact sheet of a training run: title -> array [*S] in about [-1, 1], its range written below.

    All show the plane or window where most cells of the first lie, but those whose title ends in ELSEWHERE, which are
    of another place. Each has a contrast of its own, as a noised image would drown the others.
    """
    panels = []
    here = None
    for title, volume in volumes.items():
        volume = np.asarray(volume)
        where = focus(volume, False) if here is None or title.endswith(ELSEWHERE) else here
        if not title.endswith(ELSEWHERE):
            here = where
        shown = windowed(volume, where, fit_tone([volume]))
        panels.append((shown, f"{volume.min():.3g} to {volume.max():.3g}"))
    sheet(path, [panels], list(volumes), "")


def curves(path: str | os.PathLike, panels: Sequence[Mapping], table: Sequence[Sequence[str]] = ()) -> None:
    """Plots side by side, four at most, in rows and, below, a table.

    Args:
      path: the PNG.
      panels: each {"title", "x", "xlabel", "ylabel", "lines": {name: y}} and optionally "log": True for the vertical
        axis, "ticks": (places, texts) for the horizontal one, and "marks": {"x": value, "y": value}, dotted lines
        across. Where x is one longer than y it holds the edges of a histogram.
      table: rows of equally many texts, the first being the columns' heads.
    """
    from matplotlib.lines import Line2D

    column, tall, row = 5.6, 4.0, 0.25  # inches
    below = row * len(table) + 0.3 if table else 0.0
    rows = -(-len(panels) // 4)
    across = -(-len(panels) // rows)
    width, height = column * across, tall * rows + below
    figure = new_figure(width, height)
    for i, panel in enumerate(panels):
        left, low = column * (i % across), below + tall * (rows - 1 - i // across)
        box = ((left + 0.85) / width, (low + 0.65) / height, (column - 1.05) / width, 2.85 / height)
        axes = figure.add_axes(box)
        spare = itertools.cycle(SPARE)
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
        for axis, place in panel.get("marks", {}).items():
            draw = axes.axvline if axis == "x" else axes.axhline
            draw(place, color=FAINT, linewidth=1, linestyle=":")
        if "ticks" in panel:
            axes.set_xticks(*panel["ticks"])
        dress(axes, panel["title"], panel["xlabel"], panel["ylabel"])
        axes.grid(color=RULE, linewidth=0.5)
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
    save(figure, path)


def distributions(
    path: str | os.PathLike,
    samples: Mapping[str, tuple[str, Mapping[str, np.ndarray]]],
    table: Sequence[Sequence[str]] = (),
) -> None:
    """Cumulative curves side by side and, below, a table.

    Args:
      path: the PNG.
      samples: title -> (label of the horizontal axis, {name: values [M]}), each set's values being a curve that tells
        what share of them is at most x. The axis leaves out the outermost half per cent; sets without values are
        passed over, and so are titles without sets.
      table: as in `curves`.
    """
    panels = []
    for title, (xlabel, sets) in samples.items():
        sets = {name: np.sort(values) for name, values in sets.items() if len(values)}
        if not sets:
            continue
        ends = [np.percentile(values, (0.5, 99.5)) for values in sets.values()]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        margin = 0.03 * (high - low) or 0.5
        x = np.linspace(low - margin, high + margin, 600)
        lines = {name: np.searchsorted(values, x, side="right") / len(values) for name, values in sets.items()}
        panels.append({"title": title, "x": x, "xlabel": xlabel, "ylabel": "share at most x", "lines": lines})
    curves(path, panels, table)


def sheet(path, rows, titles, heading, legend: Mapping[str, str] = MappingProxyType({})) -> None:
    """Pictures in a grid, rows[r][c] = (picture or None, caption), every column under its title.

    A `legend`, text -> colour, stands below all.
    """
    from matplotlib.colors import to_rgb

    widths = [max([180] + [row[c][0].shape[1] for row in rows if row[c][0] is not None]) for c in range(len(titles))]
    heights = [max([40] + [picture.shape[0] for picture, _ in row if picture is not None]) for row in rows]
    top = MARGIN + (TITLE if heading else 0)
    below = CAPTION + LINE * max(caption.count("\n") for row in rows for _, caption in row)
    width = 2 * MARGIN + sum(widths) + GAP * (len(widths) - 1)
    foot = top + TITLE + sum(heights) + len(rows) * (below + GAP)
    height = foot + (LINE + GAP) * len(legend)
    canvas = np.ones((height, width, 3), np.float32)
    figure = new_figure(width / DPI, height / DPI)

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
                for i, line in enumerate(caption.split("\n")):
                    place = y + picture.shape[0] + CAPTION // 2 + LINE * i
                    write(left, place, _shorten(line, wide // 7), fontsize=9, color=FAINT)
        y += tall + below + GAP
    for i, (text, colour) in enumerate(legend.items()):
        y = foot + (LINE + GAP) * i
        canvas[y : y + LINE, MARGIN : MARGIN + LINE] = to_rgb(colour)
        write(MARGIN + LINE + GAP, y + LINE // 2, text, fontsize=9, color=INK)
    figure.figimage(canvas, 0, 0, origin="upper")
    save(figure, path)


def _shorten(text, length):
    """The text, its middle left out where it is too long."""
    keep = (length - 1) // 2
    return text if len(text) <= length else f"{text[:keep]}…{text[-keep:]}"


def dress(axes, title: str, xlabel: str, ylabel: str) -> None:
    """Titles and quiet lines of a plot."""
    axes.set_title(title, loc="left", fontsize=12, color=INK, fontweight="bold")
    axes.set_xlabel(xlabel, fontsize=10, color=INK)
    axes.set_ylabel(ylabel, fontsize=10, color=INK)
    axes.tick_params(which="both", labelsize=9, colors=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)


def new_figure(width: float, height: float):
    """A figure of that size in inches, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def save(figure, path) -> None:
    """Writes the PNG, whole or not at all."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        figure.savefig(part, format="png", dpi=DPI)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
