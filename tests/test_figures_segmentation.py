"""Violins and outlines: what is drawn where, in which colour."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from skimage import io

from jaxsynth import figures_segmentation as figures


def count(path, colour):
    """Pixels of exactly that colour, as (rows, columns)."""
    picture = io.imread(path)[..., :3].astype(int)
    return np.nonzero((np.abs(picture - np.round(255 * np.array(to_rgb(colour)))) <= 1).all(-1))


def cells():
    """(image, reference, segmentation, matched) of a found, a missed and an invented cell."""
    image = np.random.default_rng(0).normal(100, 5, (60, 80)).astype(np.float32)
    reference, segmentation = np.zeros((60, 80), int), np.zeros((60, 80), int)
    reference[5:25, 5:25], segmentation[8:28, 5:25] = 3, 7
    reference[35:55, 5:25], segmentation[35:55, 50:70] = 4, 8
    return image, reference, segmentation, (np.array([3]), np.array([7]))


def test_found_missed_and_false_cells_are_told_apart(tmp_path):
    figures.overlays(tmp_path / "one.png", *cells(), heading="one")
    zoom = 700 // 80
    left, top = 18 + 80 * zoom + 10, 18 + 30 + 30  # of the outlines: margins, heading, title, the image beside
    places = {}
    for name, colour in (("found", figures.REFERENCE), ("segment", figures.SEGMENTATION),
                         ("missed", figures.MISSED), ("false", figures.FALSE)):  # fmt: skip
        rows, columns = (
            axis - start for axis, start in zip(count(tmp_path / "one.png", colour), (top, left), strict=True)
        )
        drawn = (rows >= 0) & (rows < 60 * zoom) & (columns >= 0) & (columns < 80 * zoom)
        assert (~drawn).sum() >= 15 * 15  # in the legend
        rows, columns = rows[drawn] / zoom, columns[drawn] / zoom
        places[name] = tuple(round(float(end)) for end in (rows.min(), rows.max(), columns.min(), columns.max()))
    assert places == {
        "found": (5, 25, 5, 25),
        "segment": (8, 28, 5, 25),
        "missed": (35, 55, 5, 25),
        "false": (35, 55, 50, 70),
    }
    # Missed cells are tinted, found ones are not.
    picture = io.imread(tmp_path / "one.png")[..., :3].astype(int)
    missed, found = (picture[top + zoom * row, left + zoom * 15] for row in (45, 15))
    assert np.ptp(missed) > 30 and np.ptp(found) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


def test_segments_beside_a_partial_reference_are_not_called_false(tmp_path):
    figures.overlays(tmp_path / "partial.png", *cells(), partial=True)
    assert not count(tmp_path / "partial.png", figures.FALSE)[0].size
    figures.overlays(tmp_path / "whole.png", *cells())
    more, less = (count(tmp_path / f"{name}.png", figures.SEGMENTATION)[0].size for name in ("partial", "whole"))
    assert more > less


@pytest.mark.parametrize(("planes", "columns"), [((), 4), ((11, 30), 2)])
def test_volumes_show_planes(tmp_path, planes, columns):
    image, reference, segmentation, matched = cells()
    depth = len(planes) or 16
    volume = np.stack([image] * depth)
    labels, segments = (np.stack([part] * depth) for part in (reference, segmentation))
    if not planes:
        labels[14, 30:34] = 3  # the plane with most of the reference, beside those at 4, 8 and 12
    figures.overlays(tmp_path / "volume.png", volume, labels, segments, matched, planes=planes)
    assert io.imread(tmp_path / "volume.png").shape[1] == 2 * 18 + columns * 640 + (columns - 1) * 10
    assert count(tmp_path / "volume.png", figures.MISSED)[0].size > columns * 4 * 20


def test_violins_draw_every_value_and_the_mean(tmp_path):
    rng = np.random.default_rng(0)
    panels = {
        "SEG": {"real": rng.uniform(0.5, 0.9, 40), "synthetic": [0.75, 0.75], "neither": [np.nan]},
        "Dice": {"real": [0.5], "synthetic": rng.uniform(size=3), "neither": []},
    }
    figures.violins(tmp_path / "violins.png", panels)
    figures.violins(tmp_path / "fewer.png", {"SEG": {"real": panels["SEG"]["real"][:20]}})
    picture, fewer = (io.imread(tmp_path / f"{name}.png") for name in ("violins", "fewer"))
    assert picture.shape[0] == fewer.shape[0] == 440 and picture.shape[1] > fewer.shape[1]
    # Green violins of the first group, yellow ones of the second, none of the third.
    hues = [np.array(to_rgb(colour)) * 255 * 0.3 + 255 * 0.7 for colour in figures.SPARE[:3]]
    filled = [(np.abs(picture[..., :3] - hue).max(-1) <= 2).sum() for hue in hues]
    assert filled[0] > 1000 and filled[1] > 300 and filled[2] == 0


def test_the_axis_of_violins_grows_with_the_values(tmp_path):
    figures.violins(tmp_path / "inside.png", {"": {"": [0.2, 0.4, 0.6]}})
    figures.violins(tmp_path / "outside.png", {"": {"": [0.2, 0.4, 6.0]}})
    figures.violins(tmp_path / "empty.png", {"": {"": []}})
    spans = []
    for name in ("inside", "outside"):
        picture = io.imread(tmp_path / f"{name}.png")[..., :3].astype(int)
        fill = np.array(to_rgb(figures.SPARE[0])) * 255 * 0.3 + 255 * 0.7
        rows = np.nonzero((np.abs(picture - fill).max(-1) <= 2).any(1))[0]
        spans.append(np.ptp(rows) / 340)
    assert spans[0] == pytest.approx(0.4 / 1.06, abs=0.02) and spans[1] > 0.85
