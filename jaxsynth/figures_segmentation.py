"""Pictures of segmentations: their scores as violins, and their outlines on the image."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from jaxsynth.figures import FAINT, INK, RULE, SPARE, new_figure, save, sheet
from jaxsynth.panels import fit_tone

LEAST = 700  # an image is enlarged as long as its longer side stays within so many pixels
REFERENCE, SEGMENTATION, MISSED, FALSE = "#19d3c5", "#ffd23f", "#ff4136", "#ff5ce1"
TINT = 0.22  # how strongly missed and false cells are filled


def violins(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    *,
    ylabel: str = "score, one point per image",
) -> None:
    """Distributions of scores: a panel per score, a violin per group with its values as points and its mean as a line.

    Args:
      path: the PNG.
      panels: title -> {group: values [M]}; values that are not finite are passed over, and so are empty groups.
      ylabel: of all panels; they share a vertical axis from 0 to 1, wider where values lie outside.
    """
    from matplotlib.colors import to_rgba

    names = list(dict.fromkeys(group for sets in panels.values() for group in sets))
    colours = {name: SPARE[i % len(SPARE)] for i, name in enumerate(names)}
    found = [
        {name: (x := np.asarray(values, np.float64))[np.isfinite(x)] for name, values in sets.items()}
        for sets in panels.values()
    ]
    every = np.concatenate([values for sets in found for values in sets.values()] or [np.zeros(0)])
    low, high = min(0.0, every.min(initial=0.0)), max(1.0, every.max(initial=1.0))
    margin = 0.03 * (high - low)

    each = 0.6 + max(0.45, 0.09 * max(map(len, names), default=0)) * max(map(len, found), default=1)  # inches
    width, height = 0.8 + each * len(found), 4.4
    figure = new_figure(width, height)
    for i, (title, sets) in enumerate(zip(panels, found, strict=True)):
        axes = figure.add_axes(((0.7 + each * i) / width, 0.55 / height, (each - 0.25) / width, 3.4 / height))
        for place, (name, values) in enumerate(sets.items()):
            if not values.size:
                continue
            if np.ptp(values) > 0:
                body = axes.violinplot([values], [place], widths=0.85, showextrema=False)["bodies"][0]
                body.set(facecolor=to_rgba(colours[name], 0.3), edgecolor=colours[name], alpha=None, linewidth=1)
            # Spread as the golden ratio does, the same at every drawing.
            off = (np.arange(values.size) * 0.618034 % 1 - 0.5) * min(0.5, 0.03 * values.size)
            axes.plot(place + off, np.sort(values), "o", color=colours[name], markersize=3.5, alpha=0.75,
                      markeredgewidth=0)  # fmt: skip
            axes.plot([place - 0.3, place + 0.3], [values.mean()] * 2, color=INK, linewidth=1.8)
            axes.annotate(f"{values.mean():.3f}", (place, high + margin), xytext=(0, 2), textcoords="offset points",
                          ha="center", va="bottom", fontsize=8.5, color=INK)  # fmt: skip
        axes.set_xticks(range(len(sets)), list(sets), fontsize=9, color=INK)
        axes.set_xlim(-0.6, len(sets) - 0.4)
        axes.set_ylim(low - margin, high + margin)
        axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold", pad=16)
        axes.tick_params(axis="y", labelsize=9, colors=FAINT, labelleft=i == 0)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y", color=RULE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(RULE)
        if i == 0:
            axes.set_ylabel(ylabel, fontsize=10, color=INK)
    save(figure, path)


def overlays(
    path: str | os.PathLike,
    image: np.ndarray,
    reference: np.ndarray,
    segmentation: np.ndarray,
    matched: tuple[np.ndarray, np.ndarray],
    *,
    partial: bool = False,
    planes: Sequence[int] = (),
    heading: str = "",
) -> None:
    """The image, and beside or below it the outlines of reference and segmentation on it.

    Missed cells and false segments have colours of their own and are tinted. Of a volume one column per plane: at a
    quarter, a half and three quarters of the depth, and that in which most of the reference lies.

    Args:
      path: the PNG.
      image: [*S], (Y, X) or (Z, Y, X).
      reference, segmentation: integers [*S], 0 = background.
      matched: labels of the reference [M] and of the segmentation [M] that were matched, as of `overlap.matches`; they
        hold for the whole volume.
      partial: the reference does not hold every cell: segments without a match are drawn as all others.
      planes: where the arrays are some planes of a volume, their z; all are shown.
      heading: a line above.
    """
    tone = fit_tone([image])
    if image.ndim == 2:
        columns = {"": (image, reference, segmentation)}
    else:
        most = int(np.argmax(np.count_nonzero(reference, axis=(1, 2))))
        shown = sorted({len(image) // 4, len(image) // 2, 3 * len(image) // 4, most})
        titles = dict(enumerate(planes)) if planes else {z: z for z in shown}
        columns = {f"z {title}": (image[z], reference[z], segmentation[z]) for z, title in titles.items()}
    plain, drawn = [], []
    for plane, cells, segments in columns.values():
        zoom = max(1, LEAST // max(plane.shape))
        grey = np.repeat(_enlarge(tone(plane), zoom)[..., None], 3, -1)
        plain.append((grey, ""))
        outlines = grey.copy()
        _draw(outlines, _enlarge(segments, zoom), matched[1], SEGMENTATION, SEGMENTATION if partial else FALSE)
        _draw(outlines, _enlarge(cells, zoom), matched[0], REFERENCE, MISSED)
        drawn.append((outlines, ""))
    legend = {"reference, found": REFERENCE, "reference, missed": MISSED, "segmentation": SEGMENTATION}
    if not partial:
        legend["segmentation, false"] = FALSE
    if image.ndim == 2:
        sheet(path, [[*plain, *drawn]], ["image", "outlines"], heading, legend)
    else:
        sheet(path, [plain, drawn], list(columns), heading, legend)


def _draw(picture: np.ndarray, labels: np.ndarray, matched: np.ndarray, colour: str, other: str) -> None:
    """Outlines on the picture [H, W, 3], in place: those of `matched` labels in one colour, others in another."""
    from matplotlib.colors import to_rgb
    from skimage.segmentation import find_boundaries

    edge = find_boundaries(labels, connectivity=1, mode="inner")
    left_over = (labels > 0) & ~np.isin(labels, matched)
    if other != colour:
        picture[left_over] = (1 - TINT) * picture[left_over] + TINT * np.array(to_rgb(other))
    picture[edge] = to_rgb(colour)
    picture[edge & left_over] = to_rgb(other)


def _enlarge(plane: np.ndarray, zoom: int) -> np.ndarray:
    return np.repeat(np.repeat(plane, zoom, 0), zoom, 1)
