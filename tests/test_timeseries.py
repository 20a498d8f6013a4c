"""Sequences as the simulate command writes them, read back by means of their own."""

import json

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from jaxsynth import simulate
from jaxsynth.data import volumes

WORDS = ("--recipe", "nuclei", "--shape", "80,96", "--cells", 10, "--frames", 7, "--cycle_frames", 5)


def run(patch, *words):
    """Runs the command; returns its exit status."""
    patch.setattr("sys.argv", ["simulate", *map(str, words)])
    try:
        simulate.main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    out = tmp_path_factory.mktemp("series") / "out"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, *WORDS, "--num", 2, "--preview", "--out", out) == 0
    return out


def frames(out, sequence, kind):
    folder = {"image": sequence, "sketch": f"{sequence}_sketches", "track": f"{sequence}_GT/TRA",
              "seg": f"{sequence}_GT/SEG"}[kind]  # fmt: skip
    stem = {"image": "t", "sketch": "t", "track": "man_track", "seg": "man_seg"}[kind]
    return np.stack([tifffile.imread(out / folder / f"{stem}{frame:03d}.tif") for frame in range(7)])


@pytest.mark.parametrize("sequence", ["01", "02"])
def test_the_table_tells_what_the_frames_show(series, sequence):
    labels = frames(series, sequence, "track")
    assert labels.shape == (7, 80, 96) and labels.dtype == np.uint16
    rows = [list(map(int, line.split())) for line in (series / f"{sequence}_GT/TRA/man_track.txt").open()]
    told = {label: (begin, end, parent) for label, begin, end, parent in rows}
    assert len(told) == len(rows) and set(told) == set(np.unique(labels)) - {0}
    for label, (begin, end, parent) in told.items():
        shown = np.flatnonzero((labels == label).any(axis=(1, 2)))
        np.testing.assert_array_equal(shown, np.arange(begin, end + 1))
        if parent:
            assert told[parent][1] < begin
    divided = [parent for _, _, parent in told.values() if parent]
    assert len(divided) > 4 and max(divided.count(parent) for parent in divided) == 2
    assert len(np.unique(labels[-1])) > len(np.unique(labels[0]))
    np.testing.assert_array_equal(frames(series, sequence, "seg"), labels)


def test_cells_stay_near_where_they_were(series):
    """Labels last: from frame to frame a cell moves by less than its own radius, and daughters begin at the mother."""
    labels = frames(series, "01", "track")
    rows = np.loadtxt(series / "01_GT/TRA/man_track.txt", dtype=int, ndmin=2)

    def centre(frame, label):
        return np.array(ndimage.center_of_mass(labels[frame] == label))

    for label, begin, end, parent in rows:
        for frame in range(begin, end):
            assert np.linalg.norm(centre(frame + 1, label) - centre(frame, label)) < 9  # voxels of 0.5 um
        if parent:
            last = rows[rows[:, 0] == parent][0, 2]
            assert np.linalg.norm(centre(begin, label) - centre(last, parent)) < 25


def test_images_and_sketches_show_the_cells(series):
    labels, image, drawn = (frames(series, "02", kind) for kind in ("track", "image", "sketch"))
    assert image.dtype == np.uint16 and drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn > -1, labels > 0)
    for frame in range(7):
        assert image[frame][labels[frame] > 0].mean() > 1.5 * image[frame][labels[frame] == 0].mean()
        for label in np.unique(labels[frame])[1:]:
            assert np.ptp(drawn[frame][labels[frame] == label]) == 0
    assert volumes.spacing_um(series / "02" / "t003.tif") == (0.5, 0.5)
    assert (frames(series, "01", "track")[0] != labels[0]).any()
    assert (series / "preview.png").stat().st_size > 5000


def test_a_lost_file_comes_back_the_same(series, monkeypatch, tmp_path, capsys):
    out = tmp_path / "out"
    words = (*WORDS, "--out", out)
    assert run(monkeypatch, *words, "--num", 1) == 0
    (out / "01_GT" / "SEG" / "man_seg002.tif").unlink()
    capsys.readouterr()
    assert run(monkeypatch, *words, "--num", 2, "--worker", "2/2") == 0
    assert "others are not yet" in capsys.readouterr().out
    assert run(monkeypatch, *words, "--num", 2) == 0
    assert "1 of 2 are finished already" in capsys.readouterr().out
    made, whole = ({str(file.relative_to(place)): file.read_bytes() for place_file in [place]
                    for file in sorted(place_file.rglob("*")) if file.suffix in (".tif", ".txt")}
                   for place in (out, series))  # fmt: skip
    assert made == whole and len(made) == 2 * (4 * 7 + 1)
    settings = json.loads((out / "manifest.json").read_text())["settings"]
    assert settings["frames"] == 7 and settings["cycle_frames"] == 5
    assert run(monkeypatch, *words, "--num", 2, "--death_rate", 0.1) == 2
    assert "was made with death_rate 0.0, not 0.1" in capsys.readouterr().err


def test_no_division_no_motion(monkeypatch, tmp_path):
    """Cells that neither grow nor move look the same in every frame but for the noise; 3D, an organism that holds
    them."""
    out = tmp_path / "out"
    words = ("--recipe", "celegans", "--shape", "8,32,40", "--cells", 5, "--frames", 3, "--num", 1)
    assert run(monkeypatch, *words, "--cycle_frames", "inf", "--step_um", 0, "--out", out) == 0
    labels = [tifffile.imread(out / f"01_GT/TRA/man_track00{frame}.tif") for frame in range(3)]
    images = [tifffile.imread(out / f"01/t00{frame}.tif").astype(float) for frame in range(3)]
    assert labels[0].shape == (8, 32, 40)
    assert len(np.unique(labels[0])) == len(np.unique(labels[2])) > 3
    # Random turns remain.
    assert ((labels[0] > 0) == (labels[2] > 0)).mean() > 0.98
    assert (images[0] != images[1]).any() and abs(images[0].mean() / images[2].mean() - 1) < 0.05
