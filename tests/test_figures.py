"""Pictures: what of a volume is shown, at which scale, in which colours."""

import numpy as np
import pytest
from skimage import io

from jaxsynth import figures, panels


def grey(array):
    return np.asarray(array, np.float32)


def test_labels_of_neighbouring_ids_clearly_differ():
    table = panels.colours(np.arange(2000))
    assert (table[0] == 0).all() and (table[1:].max(-1) >= 0.75).all()
    for step in (1, 2, 3):
        assert np.linalg.norm(table[1 + step :] - table[1:-step], axis=-1).min() > 0.2
    # The same label has the same colour in every picture.
    np.testing.assert_array_equal(panels.colours(np.array([[7, 0], [1999, 7]]))[0, 0], table[7])


@pytest.mark.parametrize(
    ("shape", "aspect", "expected"),
    [
        ((40, 50), 1.0, (240, 300)),  # enlarged
        ((1000, 1500), 1.0, (334, 500)),  # a third, the last row of pixels narrower
        ((13, 250, 1700), 1.0, (63 + 4 + panels.THIN, 425)),  # few planes: stretched
        ((20, 100, 90), 4.0, (300 + 4 + 240, 270)),  # planes four pixels apart
        ((1200, 30, 40), 1.0, (240 + 4 + panels.WHOLE, 320)),  # long in z: compressed
    ],
)
def test_the_whole_is_shown_within_the_panel(shape, aspect, expected):
    volume = np.zeros(shape, np.int32)
    volume[tuple(slice(n // 3, n // 2) for n in shape)] = 5
    for paint, nearest in ((panels.colours, True), (grey, False)):
        picture, told = panels.whole(volume, panels.focus(volume, True), paint, aspect=aspect, nearest=nearest)
        assert picture.shape == (*expected, 3) and picture.dtype == np.float32
        assert ("xz at y" in told) == (len(shape) == 3)
        assert ("z " in told.split("y ")[-1]) == (shape[0] in (13, 1200))


def test_smaller_pictures_average_brightness_and_pick_labels():
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 4, (1120, 561))
    focus = panels.focus(volume, True)
    brightness, told = panels.whole(volume, focus, grey)
    assert told == "1/2 size" and brightness.shape[:2] == (560, 281)
    np.testing.assert_allclose(brightness[7, 9, 0], volume[14:16, 18:20].mean())
    np.testing.assert_allclose(brightness[7, 280, 0], volume[14:16, 560:].mean())  # what is left over at the end
    picked, _ = panels.whole(volume, focus, panels.colours, nearest=True)
    palette = {tuple(colour) for colour in panels.colours(np.arange(4))}
    assert {tuple(colour) for colour in picked.reshape(-1, 3)} == palette


def test_a_preview_shows_one_place_and_says_what_is_elsewhere(monkeypatch, tmp_path):
    """The plane with most of the first volume's cells; one that lies elsewhere is shown where its own cells are."""
    asked = []

    def windowed(volume, where, paint):
        asked.append(where[0][0])
        return panels.windowed(volume, where, paint)

    monkeypatch.setattr(figures, "windowed", windowed)
    volumes = {title: np.zeros((6, 20, 20), np.float32) for title in ("real, elsewhere", "mask", "synthetic")}
    for plane, volume in zip((1, 3, 5), volumes.values(), strict=True):
        volume[plane, 5:15, 5:15] = 1
    figures.preview(tmp_path / "preview.png", volumes)
    assert asked == [1, 3, 3] and (tmp_path / "preview.png").is_file()


def test_the_plane_and_cut_are_those_with_most_cells():
    volume = np.zeros((9, 30, 40), np.int32)
    volume[6, 10:20, 5:35] = 1
    volume[2:5, 25, 20] = 2
    window, row = panels.focus(volume, True)
    assert window[0] == 6 and 10 <= row < 20
    _, told = panels.whole(volume, (window, row), panels.colours)
    assert told == f"8x, z 6 + xz at y {row}"


def test_specimens_writes_a_row_each(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.zeros((6, 64, 80), np.int32)
    labels[1:5, 10:40, 10:50] = 3
    columns = {
        "labels": [labels, labels[:1], labels[2]],
        "sketch": [labels / 3 - 1.0, labels[:1] / 3, labels[2] / 3],
        "boundary": [labels > 0, labels[:1] > 0, labels[2] > 0],
        "image": [rng.poisson(100 + 50 * labels).astype(np.uint16)],  # rendered for the first alone
    }
    figures.specimens(tmp_path / "sheet.png", columns, names=["a", "b", "c"], aspect=2.0, heading="test")
    picture = io.imread(tmp_path / "sheet.png")[..., :3].astype(int)
    assert 4 * 320 < picture.shape[1] < 4 * 320 + 100 and 3 * 256 + 4 + 48 < picture.shape[0] < 1200
    # Coloured pixels only in the first column; the empty middle row and the missing images are no error.
    saturated = np.flatnonzero((np.ptp(picture, axis=-1) > 60).any(0))
    assert saturated.size and saturated.max() < 360
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_distributions_pass_over_what_is_empty(tmp_path):
    rng = np.random.default_rng(0)
    samples = {
        "size": ("size, µm^2", {"real": rng.normal(5, 1, 300), "synthetic": np.array([4.0])}),
        "constant": ("count", {"real": np.full(3, 7.0), "synthetic": np.zeros(0)}),
        "none": ("none", {"real": np.zeros(0)}),
    }
    figures.distributions(tmp_path / "one.png", samples, [["statistic", "real"], ["size", "5"]])
    samples |= {f"again {i}": samples["size"] for i in range(4)}
    figures.distributions(tmp_path / "more.png", samples)
    one, more = (io.imread(tmp_path / f"{name}.png") for name in ("one", "more"))
    assert one.shape[1] == 2 * 560 and more.shape[1] == 3 * 560 and more.shape[0] == 800


def test_curves_take_any_number_of_lines_and_marks(tmp_path):
    panel = {"title": "t", "x": [0, 1, 2], "xlabel": "x", "ylabel": "y", "lines": {str(i): [i, 0, i] for i in range(9)}}
    figures.curves(tmp_path / "plain.png", [panel])
    figures.curves(tmp_path / "marked.png", [panel | {"marks": {"x": 1, "y": 4}}])
    plain, marked = (io.imread(tmp_path / f"{name}.png").astype(int) for name in ("plain", "marked"))
    assert plain.shape == marked.shape
    changed = np.any(plain != marked, -1)
    rows, columns = changed.sum(1), changed.sum(0)
    # One dotted line down the middle of the axes and one across, at x 1 of 0..2 and y 4 of 0..8.
    left, right = 0.85 * 100, (0.85 + 5.6 - 1.05) * 100
    assert abs(np.argmax(columns) - (left + right) / 2) <= 2
    assert abs(np.argmax(rows) - (4.0 - 0.65 - 2.85 / 2) * 100) <= 2
