"""Pictures of intensity profiles and spectra, real beside synthetic (as figures 7, 9, 11 and 14 of paper 003)."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from jaxsynth.figures import COLOURS, FAINT, INK, RULE, SPARE, dress, new_figure, save

COLUMN, TALL = 5.0, 4.2  # inches of a plot with its margins
EMPTY = -119.0  # dB; what is less is no power at all


def profiles(
    path: str | os.PathLike,
    sets: Mapping[str, Mapping[str, np.ndarray]],
    frequencies: np.ndarray,
    spacing_um: Sequence[float] | None = None,
) -> None:
    """Profiles and radial spectra above, spectra in one scale of grey below.

    Args:
      path: the PNG.
      sets: name -> {"profile" [M, P] and, of volumes, "depth_profile" [M, P]: the images' profiles, drawn as their mean
        with a band from the least to the greatest; "radial" [N]: power; "power" [G, G]: power at the frequencies of a
        slice, 0 in the middle}. Sets named "real, ..." have neither a band nor a picture.
      frequencies: of "radial", [N].
      spacing_um: micrometres per voxel, (z, y, x) or (y, x); without, frequencies are in cycles per voxel.
    """
    names = list(sets)
    spare = [colour for colour in SPARE if colour not in COLOURS.values()]
    unknown = [name for name in names if name not in COLOURS]
    colours = COLOURS | {name: spare[i % len(spare)] for i, name in enumerate(unknown)}
    shown = [name for name in names if not name.startswith("real,")]
    volumes = "depth_profile" in sets[names[0]]
    unit, across = "voxel" if spacing_um is None else "µm", "xz slice" if volumes else "image"
    titles = {"profile": ("profile along x", f"x / width, mean over {'z of the central xz slice' if volumes else 'y'}")}
    if volumes:
        titles["depth_profile"] = ("profile along z", "z / depth, mean of every plane")

    columns = max(len(titles) + 1, len(shown))
    width, height = COLUMN * columns + 0.6, 2 * TALL
    figure = new_figure(width, height)

    def place(row, column):
        left, low = COLUMN * column + 0.75, TALL * (1 - row) + 0.65
        return figure.add_axes((left / width, low / height, (COLUMN - 1.0) / width, (TALL - 1.1) / height))

    for column, (key, (title, xlabel)) in enumerate(titles.items()):
        axes = place(0, column)
        x = (np.arange(sets[names[0]][key].shape[1]) + 0.5) / sets[names[0]][key].shape[1]
        for name in names:
            lines = sets[name][key]
            if name in shown:
                axes.fill_between(x, lines.min(0), lines.max(0), color=colours[name], alpha=0.13, linewidth=0)
            axes.plot(x, lines.mean(0), **_style(name, colours))
        dress(axes, title, xlabel, "share of the real images' range")
        _finish(axes)
    axes = place(0, len(titles))
    for name in names:
        axes.plot(frequencies, sets[name]["radial"], **_style(name, colours))
    axes.set_yscale("log")
    dress(axes, f"radial spectrum of the {across}", f"cycles per {unit}", "power (asinh scale)")
    _finish(axes)

    pictures = {name: 10 * np.log10(np.maximum(sets[name]["power"], 1e-12)) for name in shown}
    told = [picture[picture > EMPTY] for picture in pictures.values()]
    ends = np.percentile(np.concatenate(told), (0.5, 99.9)) if any(map(len, told)) else (-1, 0)
    reach = [0.5 / step for step in ((1, 1) if spacing_um is None else (spacing_um[0], spacing_um[-1]))]
    for column, (name, picture) in enumerate(pictures.items()):
        axes = place(1, column)
        drawn = axes.imshow(picture, cmap="gray", vmin=ends[0], vmax=ends[1], origin="lower", interpolation="nearest",
                            extent=(-reach[1], reach[1], -reach[0], reach[0]))  # fmt: skip
        axes.set_anchor("NW")
        dress(axes, f"spectrum, {name}", f"cycles per {unit}, x", f"cycles per {unit}, {'z' if volumes else 'y'}")
    left = COLUMN * len(pictures) - 0.1
    bar = figure.add_axes((left / width, 0.65 / height, 0.13 / width, (TALL - 1.1) / height))
    figure.colorbar(drawn, cax=bar)
    bar.tick_params(labelsize=9, colors=FAINT)
    bar.set_ylabel("power, dB (asinh scale)", fontsize=10, color=INK)
    bar.spines["outline"].set_color(RULE)
    save(figure, path)


def _style(name, colours):
    return {"color": colours[name], "label": name, "linewidth": 1.7, "linestyle": "--" if "," in name else "-"}


def _finish(axes):
    axes.grid(color=RULE, linewidth=0.5)
    axes.margins(x=0.01)
    axes.legend(fontsize=9.5, frameon=False, labelcolor=INK)
