"""Tables of tracks: what is seen is what is listed, and every fault is named."""

import numpy as np
import pytest

from jaxsynth.data import tracks
from jaxsynth.data.volumes import read_labels, write
from jaxsynth.errors import InputError


def film(*frames):
    """Label images of one row from the labels that show."""
    return [np.array([[0, *frame, 0, 0, 0, 0, 0]], np.int32)[:, :6] for frame in frames]


def test_division():
    frames = film([1], [1], [2, 3], [2, 3], [3])
    rows, labels = tracks.track_table(frames, [0, 1, 1])
    assert rows.tolist() == [[1, 0, 1, 0], [2, 2, 3, 1], [3, 2, 4, 1]]
    np.testing.assert_array_equal(labels, np.tile(np.arange(4), (5, 1)))
    tracks.check_tracks(rows, frames)


def test_out_of_sight_for_a_while():
    frames = film([1, 2], [2], [2, 1], [1], [2, 1], [3, 4])
    rows, labels = tracks.track_table(frames, [0, 0, 1, 2])
    # Cell 1 comes back as 5, cell 2 as 6; their daughters belong to the later tracks.
    assert rows.tolist() == [[1, 0, 0, 0], [2, 0, 2, 0], [3, 5, 5, 5], [4, 5, 5, 6], [5, 2, 4, 1], [6, 4, 4, 2]]
    shown = [tracks.relabel(frame, lookup) for frame, lookup in zip(frames, labels, strict=True)]
    assert [set(np.unique(frame)) - {0} for frame in shown] == [{1, 2}, {2}, {2, 5}, {5}, {5, 6}, {3, 4}]
    assert all(frame.dtype == np.uint16 for frame in shown)
    tracks.check_tracks(rows, shown)


def test_mother_never_seen_and_cell_never_seen():
    rows, _ = tracks.track_table(film([], [3], [3]), [0, 1, 2, 0])
    assert rows.tolist() == [[3, 1, 2, 0]]


def test_mother_out_of_sight_when_she_divides():
    rows, _ = tracks.track_table(film([1], [], [], [2]), [0, 1])
    assert rows.tolist() == [[1, 0, 0, 0], [2, 3, 3, 1]]


@pytest.mark.parametrize("frames", [[], film([], [])])
def test_nothing_to_see(frames):
    rows, labels = tracks.track_table(frames, [])
    assert rows.shape == (0, 4) and labels.shape == (len(frames), 1)
    tracks.check_tracks(rows, frames)


def test_frames_are_read_once_and_may_be_volumes():
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 40, (3, 4, 5)) for _ in range(8)]
    rows, labels = tracks.track_table(iter(frames), np.zeros(60, int))
    shown = [tracks.relabel(frame, lookup) for frame, lookup in zip(frames, labels, strict=True)]
    tracks.check_tracks(rows, iter(shown))
    # The table and the images hold the same: every voxel still belongs to the cell it belonged to.
    roots = {label: label for label in range(61)}
    for label, _, _, parent in sorted(rows.tolist(), key=lambda row: row[1]):
        roots[label] = roots[parent] if label > 60 else label
    for old, new in zip(frames, shown, strict=True):
        np.testing.assert_array_equal(np.vectorize(roots.get)(new), old)
    assert (rows[:, 0] > 60).any()


@pytest.mark.parametrize(
    ("frames", "parent", "words"),
    [
        (film([1], [1, 2]), [0, 1], r"cell 1, the mother of 2, is seen until frame 1, her daughter from 1"),
        (film([3]), [0, 1], r"frame 0: expected labels in 0 to 2; got 0 to 3"),
        ([np.array([[-1]])], [0], r"frame 0: expected labels in 0 to 1; got -1"),
        (film([1]), [7], r"parent: expected labels in 0 to 1; got 7"),
        ([np.array([[66000]])], np.zeros(66000, int), r"uint16 labels end at 65535"),
    ],
)
def test_series_that_cannot_be_written(frames, parent, words):
    with pytest.raises(InputError, match=words):
        tracks.track_table(frames, parent)


def test_relabel_refuses_what_uint16_cannot_hold():
    with pytest.raises(InputError, match=r"at most 65535.*65536"):
        tracks.relabel(np.array([[1]]), np.array([0, 65536]))


@pytest.mark.parametrize(
    ("rows", "frames", "words"),
    [
        ([[1, 0, 0]], None, "four numbers"),
        ([[0, 0, 0, 0]], None, "track 0: expected a label in 1 to 65535"),
        ([[65536, 0, 0, 0]], None, "track 65536: expected a label"),
        ([[1, 0, 0, 0], [1, 2, 2, 0]], None, "track 1: listed twice"),
        ([[1, 2, 1, 0]], None, "track 1: expected 0 <= begin <= end; got 2 and 1"),
        ([[1, -1, 1, 0]], None, "track 1: expected 0 <= begin"),
        ([[2, 1, 1, 1]], None, "track 2: its parent 1 is not in the table"),
        ([[1, 0, 1, 0], [2, 1, 1, 1]], None, "track 2: its parent 1 must end before it begins; got 1 and 1"),
        ([[1, 0, 1, 1]], None, "track 1: its parent 1 must end before"),
        ([[1, 0, 1, 0]], film([1], []), "track 1: expected in frame 1, but not in its image"),
        ([[1, 0, 0, 0]], film([1], [1]), "track 1: in the image of frame 1, but not in the table for it"),
        ([], film([], [5]), "track 5: in the image of frame 1"),
        ([[1, 0, 2, 0]], film([1], [1]), "track 1: ends in frame 2, but there are only 2 frames"),
    ],
)
def test_check_names_the_first_fault(rows, frames, words):
    with pytest.raises(InputError, match=words):
        tracks.check_tracks(np.array(rows).reshape(len(rows), -1) if rows else np.zeros((0, 4)), frames)


def test_write_and_read(tmp_path):
    rows = np.array([[1, 0, 3, 0], [2, 4, 9, 1], [65535, 4, 4, 1]])
    tracks.write_tracks(tmp_path / "man_track.txt", rows)
    assert (tmp_path / "man_track.txt").read_text() == "1 0 3 0\n2 4 9 1\n65535 4 4 1\n"
    np.testing.assert_array_equal(tracks.read_tracks(tmp_path / "man_track.txt"), rows)
    with pytest.raises(InputError):
        tracks.write_tracks(tmp_path / "man_track.txt", rows[1:])
    np.testing.assert_array_equal(tracks.read_tracks(tmp_path / "man_track.txt"), rows)
    assert [file.name for file in tmp_path.iterdir()] == ["man_track.txt"]
    tracks.write_tracks(tmp_path / "none.txt", np.zeros((0, 4), int))
    assert tracks.read_tracks(tmp_path / "none.txt").shape == (0, 4)


@pytest.mark.parametrize("line", ["1 0 3", "1 0 3 x", "1 0 3 0 0", "1.5 0 3 0"])
def test_read_names_file_and_line(tmp_path, line):
    path = tmp_path / "man_track.txt"
    path.write_text(f"2 0 3 0\n\n{line}\n")
    with pytest.raises(InputError, match=r"man_track\.txt: line 3: expected four whole numbers"):
        tracks.read_tracks(path)
    with pytest.raises(InputError, match="no such file"):
        tracks.read_tracks(tmp_path / "other.txt")


def test_names(tmp_path):
    names = tracks.ctc_names(tmp_path, 2, 90)
    assert names.image(7) == tmp_path / "02" / "t007.tif"
    assert names.tracking(7) == tmp_path / "02_GT" / "TRA" / "man_track007.tif"
    assert names.table == tmp_path / "02_GT" / "TRA" / "man_track.txt"
    assert names.segmentation(89) == tmp_path / "02_GT" / "SEG" / "man_seg089.tif"
    assert tracks.ctc_names(tmp_path, 1, 1000).image(999).name == "t999.tif"
    assert tracks.ctc_names(tmp_path, 1, 1001).image(1000).name == "t1000.tif"
    for sequence in (0, 100):
        with pytest.raises(InputError, match="sequence"):
            tracks.ctc_names(tmp_path, sequence)


def test_files_hold_what_the_table_says(tmp_path):
    frames = film([1], [], [1], [2, 3])
    names = tracks.ctc_names(tmp_path)
    names.table.parent.mkdir(parents=True)
    rows, labels = tracks.track_table(frames, [0, 1, 1])
    for number, (frame, lookup) in enumerate(zip(frames, labels, strict=True)):
        write(names.tracking(number), tracks.relabel(frame, lookup))
    tracks.write_tracks(names.table, rows)
    written = [read_labels(names.tracking(number)) for number in range(4)]
    tracks.check_tracks(tracks.read_tracks(names.table), written)
