"""The simulate command, run as a user runs it."""

import json
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from imageio import v3 as iio
from scipy import ndimage

from jaxsynth import checkpoint, simulate
from jaxsynth.data import intensity, volumes
from jaxsynth.records import TrainState
from jaxsynth.sim import extent
from jaxsynth.sim.tissues import RECIPES

KINDS = ("labels", "sketches", "images")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command with the given words; returns its exit status and what it printed."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["simulate", *map(str, words)])
        try:
            simulate.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.tif")}


def intensity_of(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    return intensity.Intensity.from_dict(manifest["settings"]["intensity"])


@pytest.fixture
def own(tmp_path):
    """Three label images with sparse ids on background 1, and their images."""
    rng = np.random.default_rng(0)
    for index in range(3):
        labels = np.ones((48, 56), np.uint16)
        labels[4:14, 5:20], labels[20:40, 30:50], labels[30:44, 3:12] = 7, 1000, 60000
        image = np.where(labels == 1, 100, labels // 60 + 300) + rng.normal(0, 5, labels.shape)
        volumes.write(tmp_path / "masks" / f"f{index}.tif", labels, spacing_um=(0.3, 0.2))
        volumes.write(tmp_path / "real" / f"f{index}.tif", np.rint(image).astype(np.uint16))
    return tmp_path


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for name in ("masks", "real"):
        (tmp_path / name).mkdir()


def test_recipe_writes_labels_sketches_images_and_manifest(command, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = command("--recipe", "nuclei", "--num", 2, "--shape", "64,72", "--cells", 6, "--render",
                                 "--seed", 5, "--out", out)  # fmt: skip
    assert status == 0 and "2/2" in printed
    for name in ("nuclei_0000", "nuclei_0001"):
        labels, drawn, image = (tifffile.imread(out / kind / f"{name}.tif") for kind in KINDS)
        assert labels.shape == drawn.shape == image.shape == (64, 72)
        assert labels.dtype == np.uint16 and drawn.dtype == np.float32 and image.dtype == np.uint16
        assert len(np.unique(labels)) == 7
        assert (drawn[labels == 0] == -1).all() and drawn[labels > 0].min() >= -0.5 and drawn.max() <= 1
        means = ndimage.mean(image, labels, range(1, 7))
        greys = ndimage.mean(drawn, labels, range(1, 7))
        assert np.corrcoef(means, greys)[0, 1] > 0.6 and means.min() > image[labels == 0].mean()
        assert volumes.spacing_um(out / "labels" / f"{name}.tif") == (0.5, 0.5)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["recipe"] == "nuclei" and manifest["settings"]["spacing_um"] == [0.5, 0.5]
    assert manifest["files"]["nuclei_0001"] == {"key": ["simulate", "nuclei_0001"], "num_asked": 6, "num_placed": 6}
    assert not list(out.rglob("*.part"))


def test_files_are_the_same_whichever_were_skipped(command, tmp_path):
    words = ("--recipe", "celegans", "--shape", "8,32,40", "--cells", 5)
    assert command(*words, "--num", 3, "--out", tmp_path / "whole")[0] == 0
    part = tmp_path / "part"
    assert command(*words, "--num", 2, "--out", part)[0] == 0
    (part / "sketches" / "celegans_0000.tif").unlink()
    untouched = (part / "labels" / "celegans_0001.tif").stat().st_mtime_ns
    status, printed, _ = command(*words, "--num", 3, "--out", part)
    assert status == 0 and "1 of 3 are finished already" in printed
    assert contents(part) == contents(tmp_path / "whole") and len(contents(part)) == 6
    assert (part / "labels" / "celegans_0001.tif").stat().st_mtime_ns == untouched
    assert json.loads((part / "manifest.json").read_text())["files"]["celegans_0001"]["num_placed"] == 5


def test_other_settings_do_not_mix_in_one_folder(command, tmp_path):
    words = ("--recipe", "nuclei", "--num", 1, "--shape", "64,72", "--cells", 6, "--out", tmp_path / "out")
    assert command(*words)[0] == 0
    status, _, error = command(*words, "--seed", 1)
    assert status == 2 and "was made with seed 0, not 1" in error


def test_own_labels_with_images_keep_each_cells_mean(command, own):
    status, _, error = command("--labels", own / "masks", "--images", own / "real", "--background_label", 1,
                               "--normalization", "minmax_shifted", "--out", own / "out")  # fmt: skip
    assert status == 0, error
    used = intensity_of(own / "out")
    assert used.method == "minmax_shifted"
    for name in ("f0", "f1", "f2"):
        given = tifffile.imread(own / "masks" / f"{name}.tif")
        labels = tifffile.imread(own / "out" / "labels" / f"{name}.tif")
        np.testing.assert_array_equal(labels, np.where(given == 1, 0, given))
        image = intensity.normalise(tifffile.imread(own / "real" / f"{name}.tif"), used)
        drawn = tifffile.imread(own / "out" / "sketches" / f"{name}.tif")
        for label in (0, 7, 1000, 60000):
            np.testing.assert_allclose(drawn[labels == label], image[labels == label].mean(), atol=1e-5)
        assert volumes.spacing_um(own / "out" / "labels" / f"{name}.tif") == pytest.approx((0.3, 0.2))


def test_own_labels_without_images_get_random_greys(command, own):
    assert command("--labels", own / "masks", "--background_label", 1, "--out", own / "out")[0] == 0
    drawn = [tifffile.imread(own / "out" / "sketches" / f"f{index}.tif") for index in range(2)]
    for sketch in drawn:
        assert len(np.unique(sketch)) == 4 and sketch[0, 0] == -1 and np.sort(np.unique(sketch))[1] >= -0.5
    assert (drawn[0] != drawn[1]).any()


def test_own_labels_as_membranes(command, tmp_path):
    """Two touching cells, voxels of 0.5 x 0.25 um: walls of 1 um take half of it, 0.5 um, from each cell."""
    labels = np.zeros((40, 60), np.uint16)
    labels[10:30, 10:30], labels[10:30, 30:50] = 1, 2
    volumes.write(tmp_path / "masks" / "a.tif", labels)
    words = ("--labels", tmp_path / "masks", "--spacing", "0.5,0.25", "--membranes", 1.0)
    status, _, error = command(*words, "--out", tmp_path / "out")
    assert status == 0, error
    drawn = tifffile.imread(tmp_path / "out" / "sketches" / "a.tif")
    inside = np.zeros_like(labels, bool)
    inside[11:29, 12:28] = inside[11:29, 32:48] = True
    np.testing.assert_array_equal(drawn > drawn[0, 0], (labels > 0) & ~inside)
    image = np.where(labels == 1, 200, np.where(labels == 2, 100, 10)).astype(np.uint8)
    volumes.write(tmp_path / "real" / "a.tif", image)
    status, _, error = command(*words, "--images", tmp_path / "real", "--out", tmp_path / "again")
    assert status == 0, error
    bright = tifffile.imread(tmp_path / "again" / "sketches" / "a.tif")
    assert bright[10, 15] > bright[10, 40] > bright[20, 20] == bright[0, 0]
    assert command("--recipe", "nuclei", "--num", 1, "--membranes", 1, "--out", tmp_path / "x")[0] == 2


def test_checkpoint_gives_the_sketches_its_levels(command, own, tmp_path):
    fitted = intensity.fit([tifffile.imread(own / "real" / f"f{index}.tif") for index in range(3)], "asinh")
    state = TrainState(jnp.int32(3), {"w": jnp.zeros(2)}, {"w": jnp.zeros(2)}, {})
    with checkpoint.open_manager(tmp_path / "run") as manager:
        checkpoint.save(manager, state, {"intensity": fitted.to_dict()}, 0.5)
    words = ("--labels", own / "masks", "--background_label", 1, "--checkpoint", tmp_path / "run")
    status, _, error = command(*words, "--out", own / "out")
    assert status == 0, error
    drawn = tifffile.imread(own / "out" / "sketches" / "f0.tif")
    background, dim, bright = fitted.levels
    assert drawn[0, 0] == pytest.approx(background)
    assert dim <= np.sort(np.unique(drawn))[1] and drawn.max() <= bright
    volumes.write(own / "real" / "f0.tif", np.zeros((48, 56), np.uint8))
    status, _, error = command(*words, "--images", own / "real", "--out", own / "other")
    assert status == 2 and "f0.tif: expected uint16, as the checkpoint was trained on; got uint8" in error


def test_real_labels(command, real_data, tmp_path):
    for file in sorted((real_data / "gowt1" / "masks").iterdir())[:2]:
        shutil.copy(file, tmp_path / "masks")
    for name in sorted(file.name for file in (tmp_path / "masks").iterdir()):
        shutil.copy(real_data / "gowt1" / "images" / name, tmp_path / "real")
    status, _, error = command("--labels", tmp_path / "masks", "--images", tmp_path / "real", "--out", tmp_path / "out")
    assert status == 0, error
    used = intensity_of(tmp_path / "out")
    for file in (tmp_path / "masks").iterdir():
        drawn = tifffile.imread(tmp_path / "out" / "sketches" / file.name)
        image = intensity.normalise(volumes.read(tmp_path / "real" / file.name), used).astype(np.float64)
        labels = volumes.read_labels(file)
        for label in np.unique(labels):
            np.testing.assert_allclose(drawn[labels == label], image[labels == label].mean(), atol=1e-4)


# Every recipe at its smallest: shape, and what else to give.
SMALL = {
    "nuclei": ("--shape", "64,72", "--cells", 6),
    "gowt1": ("--shape", "64,72", "--cells", 2, "--spacing", "0.8,0.8"),
    "hela": ("--shape", "64,72", "--cells", 2),
    "celegans": ("--shape", "8,32,40", "--cells", 5),
    "tribolium": ("--shape", "5,60,48", "--cells", 60),
    "danio": ("--shape", "8,32,40", "--cells", 5),
    "harmonics": ("--shape", "8,32,40", "--cells", 5),
    "embryo_elongated": ("--shape", "16,16,48", "--cells", 12),
    "arabidopsis": ("--shape", "20,44,44", "--spacing", "0.5,0.5,0.5"),
    "drosophila": ("--shape", "16,24,24", "--spacing", "1.6,1.6,1.6"),
}


def test_every_recipe_is_tested_and_told_of():
    assert set(SMALL) == set(RECIPES)
    told = simulate.__doc__.split("Recipes:")[1]
    assert all(re.search(rf"\b{name}\b", told) for name in RECIPES)


@pytest.mark.parametrize("recipe", sorted(SMALL))
def test_every_recipe(command, tmp_path, recipe):
    out = tmp_path / "out"
    # The cost is compilation, so all views of three kinds only: 2D, 3D, membranes.
    full = recipe in ("hela", "celegans", "arabidopsis")
    more = ("--maps", "boundary,distance", "--render", "--preview") if full else ()
    more += ("--merge", 0.4) if recipe == "arabidopsis" else ()
    status, _, error = command("--recipe", recipe, "--num", 1, *SMALL[recipe], *more, "--out", out)
    assert status == 0, error
    name = f"{recipe}_0000.tif"
    shape = tuple(map(int, SMALL[recipe][1].split(",")))
    read = {folder.name: tifffile.imread(folder / name).reshape(shape) for folder in out.iterdir() if folder.is_dir()}
    entry = json.loads((out / "manifest.json").read_text())["files"][name[:-4]]
    labels, drawn, image = read.get("labels_true", read["labels"]), read["sketches"], read.get("images")
    assert labels.dtype == np.uint16 and drawn.dtype == np.float32
    assert labels.max() > 0 and len(np.unique(labels)) - 1 <= entry["num_placed"] <= entry["num_asked"]
    assert drawn.min() == -1 and drawn.max() <= 1
    if recipe in ("arabidopsis", "drosophila"):
        nuclei, membrane = read["nuclei"], read["membrane"] > 0
        assert read["membrane"].dtype == np.uint8 and membrane.any() and not (membrane & (labels > 0)).any()
        assert (nuclei[nuclei > 0] == labels[nuclei > 0]).all() and nuclei.any()
        np.testing.assert_array_equal(drawn > -1, membrane)
        np.testing.assert_array_equal(read["sketches_nuclei"] > -1, nuclei > 0)
        bright = membrane
    else:
        assert set(read) == {"labels", "sketches", *(("images", "boundary", "distance") if full else ())}
        np.testing.assert_array_equal(drawn > -1, labels > 0)
        bright = labels > 0
    if full:
        assert image.dtype == np.uint16 and image[bright].mean() > image[~bright].mean()
        np.testing.assert_array_equal(read["distance"] > 0, labels > 0)
        assert read["boundary"].dtype == np.uint8 and set(np.unique(read["boundary"])) == {0, 1}
        picture = iio.imread(out / "preview.png")
        assert picture.ndim == 3 and min(picture.shape[:2]) > 100 and picture[..., :3].std() > 10
    if "labels_true" in read:
        check_merged_across_membranes(read["labels"], labels, membrane)


def check_merged_across_membranes(merged, true, membrane):
    names = {label: np.unique(merged[true == label]) for label in np.unique(true[true > 0])}
    assert all(len(found) == 1 for found in names.values())
    joined = {int(found[0]) for found in names.values()}
    assert joined < set(names) and not neighbours(true)
    # Walls within joined cells are filled, others stay.
    filled = (merged > 0) & (true == 0)
    assert filled.any() and membrane[filled].all() and not neighbours(merged)
    grew = set(np.unique(merged[filled]).tolist())
    assert grew <= {name for name in joined if sum(int(found[0]) == name for found in names.values()) > 1}


def test_maps(command, tmp_path):
    words = ("--recipe", "nuclei", *SMALL["nuclei"], "--num", 1, "--spacing", "0.5,0.5")
    out = tmp_path / "out"
    assert command(*words, "--out", out)[0] == 0
    # Maps are added to what is there; their scale is a setting from then on.
    maps = ("--maps", "boundary,distance,seeds,position", "--alpha", 10, "--beta", 40)
    status, _, error = command(*words, *maps, "--out", out)
    assert status == 0, error
    read = {folder.name: tifffile.imread(folder / "nuclei_0000.tif") for folder in out.iterdir() if folder.is_dir()}
    labels, inside = read["labels"], read["labels"] > 0
    depth = np.zeros(labels.shape)
    for label in np.unique(labels):
        depth += ndimage.distance_transform_edt(labels == label, sampling=0.5)
    np.testing.assert_allclose(read["distance"], np.where(inside, depth, -depth), rtol=1e-5)
    ids, counts = np.unique(read["seeds"], return_counts=True)
    np.testing.assert_array_equal(ids, np.unique(labels))
    assert (counts[1:] == 1).all()
    for label, row in zip(ids[1:], np.argwhere(read["seeds"]), strict=True):
        assert depth[tuple(row)] == depth[labels == labels[tuple(row)]].max() and label in labels
    body = np.asarray(extent.closed(labels, (0.5, 0.5)))
    assert (body | ~inside).all()
    to_body = [ndimage.distance_transform_edt(mask, sampling=0.5) for mask in (body, ~body)]
    expected = np.where(body, np.tanh(to_body[0] / 5), np.tanh(-to_body[1] / 20))
    np.testing.assert_allclose(read["position"], expected, atol=1e-5)
    padded = np.pad(labels, 1, mode="edge")
    faces = [padded[1:-1, 2:], padded[1:-1, :-2], padded[2:, 1:-1], padded[:-2, 1:-1]]
    np.testing.assert_array_equal(read["boundary"], inside & np.any([face != labels for face in faces], axis=0))
    status, _, error = command(*words, "--maps", "position", "--out", out)
    assert status == 2 and "was made with alpha 10.0, not 100.0" in error


def test_workers_make_what_one_run_makes(command, tmp_path):
    """Two workers, each in a process of its own, the folder then finished by a third, plain run."""
    words = list(map(str, ("--recipe", "nuclei", *SMALL["nuclei"], "--num", 5)))
    assert command(*words, "--out", tmp_path / "one")[0] == 0
    shared = tmp_path / "shared"
    run = [sys.executable, "-m", "jaxsynth.simulate", *words, "--out", str(shared), "--worker"]
    processes = [subprocess.Popen([*run, f"{i}/2"], stdout=subprocess.PIPE, text=True) for i in (1, 2)]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(text.count("/3") + text.count("/2  ") for text in printed)[0] > 0
    assert contents(shared) == contents(tmp_path / "one")
    assert (shared / "manifest.json").read_text() == (tmp_path / "one" / "manifest.json").read_text()
    assert any("5 specimen(s) in" in text for text in printed)
    assert "5 of 5 are finished already" in command(*words, "--out", shared)[1]


def test_one_of_several_workers_alone(command, tmp_path):
    words = ("--recipe", "nuclei", *SMALL["nuclei"], "--num", 3, "--out", tmp_path / "out")
    status, printed, _ = command(*words, "--worker", "2/2", "--preview")
    assert status == 0 and "others are not yet" in printed
    assert sorted(file.name for file in (tmp_path / "out" / "labels").iterdir()) == ["nuclei_0001.tif"]
    assert not (tmp_path / "out" / "preview.png").exists()
    status, _, error = command(*words, "--worker", "1/2", "--seed", 3)
    assert status == 2 and "was made with seed 0, not 3" in error
    # Whoever comes next, and divides the work otherwise, knows what is there.
    status, printed, _ = command(*words)
    assert status == 0 and "1 of 3 are finished already" in printed
    assert all(
        len(entry) == 3 for entry in json.loads((tmp_path / "out" / "manifest.json").read_text())["files"].values()
    )


def neighbours(labels):
    """Pairs of labels that share a face."""
    pairs = set()
    for axis in range(labels.ndim):
        one, other = np.moveaxis(labels, axis, 0)[1:], np.moveaxis(labels, axis, 0)[:-1]
        touch = (one != other) & (one > 0) & (other > 0)
        pairs |= {frozenset(map(int, pair)) for pair in zip(one[touch], other[touch], strict=True)}
    return pairs


@pytest.fixture
def touching(tmp_path):
    """A file of six cells in a row that touch, with sparse ids, and one apart."""
    labels = np.zeros((24, 60), np.uint16)
    for index, label in enumerate((7, 300, 12, 5000, 90, 41)):
        labels[4:12, 3 + 9 * index : 12 + 9 * index] = label
    labels[16:22, 20:30] = 60000
    volumes.write(tmp_path / "masks" / "row.tif", labels, spacing_um=(0.5, 0.5))
    return labels


def test_merged_labels(command, tmp_path, touching):
    words = ("--labels", tmp_path / "masks", "--maps", "seeds")
    assert command(*words, "--merge", 0.4, "--out", tmp_path / "out")[0] == 0
    merged, true, seeds = (tifffile.imread(tmp_path / "out" / kind / "row.tif")
                           for kind in ("labels", "labels_true", "seeds"))  # fmt: skip
    np.testing.assert_array_equal(true, touching)
    np.testing.assert_array_equal(np.unique(seeds), np.unique(touching))
    assert all(touching[place] == seeds[place] for place in zip(*np.nonzero(seeds), strict=True))
    name_of = {}
    for label in np.unique(touching):
        names = np.unique(merged[touching == label])
        assert len(names) == 1 and names[0] in touching
        name_of[int(label)] = int(names[0])
    assert name_of[0] == 0 and name_of[60000] == 60000
    assert 2 <= len(set(name_of.values())) < 8
    for name in set(name_of.values()) - {0}:
        assert ndimage.label(merged == name)[1] == 1
    assert command(*words, "--merge", 0, "--out", tmp_path / "none")[0] == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "none" / "labels" / "row.tif"), touching)


def test_overlapping_cells_are_a_stack(command, tmp_path):
    out = tmp_path / "out"
    status, _, error = command("--recipe", "nuclei", "--num", 1, "--shape", "64,72", "--cells", 20, "--overlap", 0.7,
                               "--preview", "--out", out)  # fmt: skip
    assert status == 0, error
    stack, drawn = (tifffile.imread(out / kind / "nuclei_0000.tif") for kind in ("labels", "sketches"))
    assert stack.shape == (4, 64, 72) and drawn.shape == (64, 72)
    assert (stack[1] > 0).any() and ((stack[1] == 0) | (stack[0] > 0)).all()
    assert ((stack[0] != stack[1]) | (stack[1] == 0)).all()
    np.testing.assert_array_equal(drawn > -1, stack[0] > 0)
    # A cell is whole in the planes together: without holes, and no smaller than its share of the first.
    cells = [np.any(stack == label, axis=0) for label in np.unique(stack[stack > 0])]
    assert len(cells) > 12 and all((ndimage.binary_fill_holes(cell) == cell).all() for cell in cells)
    assert sum(cell.sum() for cell in cells) > 1.1 * (stack[0] > 0).sum()


def test_centres_of_label_images(command, tmp_path):
    """Cells lie at the centroids of the user's segmentation, in its shape and voxel size."""
    given = np.zeros((70, 90), np.uint16)
    rows, columns = np.ogrid[:70, :90]
    places = {9: (20, 22), 400: (48, 30), 77: (36, 66)}
    for label, (row, column) in places.items():
        given[(rows - row) ** 2 / 36 + (columns - column) ** 2 / 64 <= 1] = label
    for name in ("a", "b"):
        volumes.write(tmp_path / "masks" / f"{name}.tif", given, spacing_um=(0.8, 0.4))
    out = tmp_path / "out"
    status, printed, error = command("--recipe", "nuclei", "--centres", tmp_path / "masks", "--num", 1, "--out", out)
    assert status == 0 and "1 specimen(s)" in printed, error
    labels = tifffile.imread(out / "labels" / "a.tif")
    assert labels.shape == given.shape and volumes.spacing_um(out / "labels" / "a.tif") == pytest.approx((0.8, 0.4))
    found = ndimage.center_of_mass(labels > 0, labels, [1, 2, 3])
    for centre in found:
        nearest = min(np.hypot(0.8 * (centre[0] - row), 0.4 * (centre[1] - column)) for row, column in places.values())
        assert nearest < 1.2  # micrometres; cells are bent, and 4 to 6.5 in radius
    entry = json.loads((out / "manifest.json").read_text())["files"]["a"]
    assert entry["num_placed"] == 3 and entry["shape"] == [70, 90]


def test_centres_of_tables(command, tmp_path):
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "one.csv").write_text("id,z_um,y_um,x_um\n1,4.0,8.0,8.5\n2,4,8,26\n")
    (tmp_path / "points" / "two.tsv").write_text("# found by hand\n4\t8\t17\n4\t8\t100\n")
    words = ("--recipe", "danio", "--shape", "16,32,70", "--spacing", "0.5,0.5,0.5", "--out", tmp_path / "out")
    status, printed, error = command(*words, "--centres", tmp_path / "points")
    assert status == 0 and "two.tsv: 1 of 2 centres lie outside" in printed, error
    one, two = (tifffile.imread(tmp_path / "out" / "labels" / f"{name}.tif") for name in ("one", "two"))
    assert sorted(np.unique(one)) == [0, 1, 2] and sorted(np.unique(two)) == [0, 1]
    for labels, label, place in ((one, 1, (8, 16, 17)), (one, 2, (8, 16, 52)), (two, 1, (8, 16, 34))):
        assert labels[place] == label
    for text, said in (
        ("z,y,x\n1,2,three\n", "line 2: expected numbers"),
        ("a,b\n", "line 1: expected columns z,y,x"),
        ("400,800,900\n", "are they in micrometres?"),
        ("8,17\n", "expected 3 columns"),
        ("1,2,nan\n", "line 1: expected numbers"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        status, _, error = command(*words[:-1], tmp_path / "bad", "--centres", tmp_path / "bad.csv")
        assert status == 2 and "bad.csv" in error and said in error and not (tmp_path / "bad").exists()


def test_mask_and_shape_model_say_where_cells_may_be(command, tmp_path):
    mask = np.zeros((64, 72), np.uint8)
    mask[16:48, 36:64] = 1
    volumes.write(tmp_path / "masks" / "m.tif", mask, spacing_um=(0.5, 0.5))
    words = ("--recipe", "nuclei", "--num", 1, "--cells", 3, "--spacing", "0.5,0.5")
    status, _, error = command(*words, "--mask", tmp_path / "masks" / "m.tif", "--out", tmp_path / "in_mask")
    assert status == 0, error
    labels = tifffile.imread(tmp_path / "in_mask" / "labels" / "nuclei_0000.tif")
    assert labels.shape == mask.shape and len(np.unique(labels)) > 1
    for row, column in ndimage.center_of_mass(labels > 0, labels, np.unique(labels[labels > 0])):
        assert ndimage.binary_dilation(mask, iterations=2)[round(row), round(column)]
    # The model of one body draws that body, in the middle.
    fit = ("--labels", tmp_path / "masks", "--fit_shape", "organism", "--modes", 2)
    status, printed, error = command(*fit, "--out", tmp_path / "model.npz")
    assert status == 0 and "shape model in" in printed, error
    status, _, error = command(*words, "--shape", "64,72", "--shape_model", tmp_path / "model.npz",
                               "--out", tmp_path / "in_model")  # fmt: skip
    assert status == 0, error
    labels = tifffile.imread(tmp_path / "in_model" / "labels" / "nuclei_0000.tif")
    centres = ndimage.center_of_mass(labels > 0, labels, np.unique(labels[labels > 0]))
    assert all(16 - 2 <= row <= 48 + 2 and 22 - 2 <= column <= 50 + 2 for row, column in centres)
    status, _, error = command("--recipe", "celegans", "--num", 1, "--shape_model", tmp_path / "model.npz",
                               "--out", tmp_path / "other")  # fmt: skip
    assert status == 2 and "is 2D, the specimens 3D" in error


def test_brightness_of_the_users_images(command, own):
    status, _, error = command("--recipe", "nuclei", *SMALL["nuclei"], "--num", 1, "--normalization", "minmax_shifted",
                               "--brightness_images", own / "real", "--brightness_labels", own / "masks",
                               "--background_label", 1, "--out", own / "out")  # fmt: skip
    assert status == 0, error
    used = intensity_of(own / "out")
    means = []
    for index in range(3):
        labels = tifffile.imread(own / "masks" / f"f{index}.tif")
        image = intensity.normalise(tifffile.imread(own / "real" / f"f{index}.tif"), used)
        means += [image[labels == label].mean() for label in np.unique(labels)]
    drawn = tifffile.imread(own / "out" / "sketches" / "nuclei_0000.tif")
    greys = np.unique(drawn)
    assert len(greys) > 4 and min(means) - 1e-4 <= greys[0] and greys[-1] <= max(means) + 1e-4


def test_a_measured_psf_blurs(command, tmp_path):
    """A spot that is long along y blurs along y alone."""
    rows, columns = np.ogrid[-60:61, -20:21]
    bead = 1000 * np.exp(-(rows**2 / (2 * 16**2) + columns**2 / (2 * 1.2**2))) + 10
    volumes.write(tmp_path / "bead.tif", bead.astype(np.float32), spacing_um=(0.25, 0.25))
    status, _, error = command("--recipe", "nuclei", *SMALL["nuclei"], "--num", 1, "--render",
                               "--psf", tmp_path / "bead.tif", "--out", tmp_path / "out")  # fmt: skip
    assert status == 0, error
    image = tifffile.imread(tmp_path / "out" / "images" / "nuclei_0000.tif").astype(float)
    labels = tifffile.imread(tmp_path / "out" / "labels" / "nuclei_0000.tif")

    def steepness(picture):
        along_y, along_x = np.gradient(ndimage.gaussian_filter(picture, 1.5))
        return np.abs(along_y).max() / np.abs(along_x).max()

    assert steepness(image) < 0.5 < 0.8 < steepness((labels > 0).astype(float))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "either --recipe NAME or --labels DIR"),
        (("--recipe", "hela", "--labels", "x"), "either --recipe NAME or --labels DIR"),
        (("--recipe", "hela"), "--num: expected the number"),
        (("--recipe", "hela", "--num", 0), "--num: expected 1 or more; got 0"),
        (("--recipe", "hela", "--num", "few"), "argument --num: invalid int value: 'few'"),
        (("--recipe", "yeast", "--num", 1), "expected one of nuclei, gowt1, hela, celegans"),
        (("--recipe", "hela", "--num", 1, "--shape", "8,64,64"), "recipe hela is 2D"),
        (("--recipe", "hela", "--num", 1, "--shape", "64x64"), "expected whole numbers joined by commas"),
        (("--recipe", "hela", "--num", 1, "--shape", "64,-64"), "at least 1"),
        (("--recipe", "hela", "--num", 1, "--spacing_um", "1,nan"), "--spacing_um: expected positive numbers"),
        (("--recipe", "hela", "--num", 1, "--spacing_um", "1,1,1"), "expected 2 positive numbers"),
        (("--recipe", "hela", "--num", 1, "--cells", -3), "--cells: expected 0 or more; got -3"),
        (("--recipe", "hela", "--num", 1, "--images", "x"), "--images: goes with --labels"),
        (("--recipe", "hela", "--nums", 1), "unrecognized arguments: --nums"),
        (("--labels", "nowhere"), "nowhere"),
        (("--labels", "x", "--render"), "--render: goes with --recipe"),
        (("--labels", "x", "--normalization", "asinh"), "--normalization: goes with --images"),
        (("--labels", "x", "--overlap", 0.2), "--overlap: goes with --recipe"),
        (("--labels", "x", "--cells", 0), "--cells: goes with --recipe"),
        (("--labels", "x", "--fit_shape", "cell"), "--out: expected a file .npz"),
        (("--labels", "x", "--modes", 3), "--modes: goes with --fit_shape"),
        (("--recipe", "hela", "--num", 1, "--background_label", 0), "--background_label: goes with --labels"),
        (("--recipe", "hela", "--num", 1, "--psf", "x"), "--psf: goes with --render"),
        (("--recipe", "hela", "--num", 1, "--render", "--psf", "nowhere.tif"), "nowhere.tif: no such file"),
        (("--recipe", "hela", "--num", 1, "--maps", "seeds,depth"), "--maps: expected some of boundary, distance"),
        (("--recipe", "hela", "--num", 1, "--alpha", 5), "--alpha: goes with --maps position"),
        (("--recipe", "hela", "--num", 1, "--merge", 1.5), "--merge: expected a share of 0 to 1; got 1.5"),
        (("--recipe", "hela", "--num", 1, "--merge", 0.5, "--overlap", 0.5), "--merge: does not go with --overlap"),
        (("--recipe", "hela", "--num", 1, "--overlap", 1), "--overlap: expected a share"),
        (("--recipe", "celegans", "--num", 1, "--overlap", 0.5), "--overlap: goes with 2D fields of nuclei"),
        (("--recipe", "danio", "--num", 1, "--overlap", 0.5), "--overlap: goes with 2D fields of nuclei"),
        (("--recipe", "hela", "--num", 1, "--worker", "5/4"), "--worker: expected I/N with I from 1 to N"),
        (("--recipe", "hela", "--num", 1, "--worker", "half"), "--worker: expected I/N with I from 1 to N"),
        (("--recipe", "hela", "--num", 1, "--mask", "nowhere.tif"), "nowhere.tif"),
        (("--recipe", "hela", "--num", 1, "--shape_model", "nowhere.npz"), "nowhere.npz: no such file"),
        (("--recipe", "hela", "--num", 1, "--mask", "x", "--shape_model", "x"), "both say where cells may be"),
        (("--recipe", "hela", "--num", 1, "--brightness_images", "x"), "expected both or neither"),
        (("--recipe", "hela", "--centres", "nowhere.csv"), "--centres nowhere.csv: no such file"),
        (("--recipe", "hela", "--centres", "x", "--cells", 3), "--cells: does not go with --centres"),
        (("--recipe", "tribolium", "--centres", "x.csv"), "recipe tribolium is a map of a curved surface"),
        (("--recipe", "arabidopsis", "--num", 1, "--cells", 3), "fills its organism with cells of one size"),
        (("--recipe", "hela", "--num", 1, "--step_um", 3), "--step_um: goes with --frames"),
        (("--recipe", "hela", "--num", 1, "--frames", 3, "--merge", 0.5), "--merge: does not go with --frames"),
        (("--recipe", "hela", "--num", 1, "--frames", 0), "--frames: expected 1 to 10000"),
        (("--recipe", "hela", "--num", 100, "--frames", 3), "numbers sequences 01 to 99"),
        (("--recipe", "tribolium", "--num", 1, "--frames", 3), "goes with recipes of nuclei that are no map"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(command, tmp_path, words, text):
    status, _, error = command(*words, "--out", tmp_path / "out")
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert text in error
    assert not (tmp_path / "out").exists()


def test_mistakes_in_own_files_name_the_file(command, own):
    words = ("--labels", own / "masks", "--images", own / "real", "--out", own / "out")
    good = tifffile.imread(own / "real" / "f1.tif")

    def refused(text):
        status, _, error = command(*words)
        assert status == 2 and error.count("\n") == 1 and text in error, error
        assert not (own / "out").exists()

    (own / "real" / "f1.tif").unlink()
    refused("no image named f1")
    volumes.write(own / "real" / "f1.tif", good[:40])
    refused("f1.tif: expected the shape of its labels")
    volumes.write(own / "real" / "f1.tif", np.where(good > 200, np.nan, good).astype(np.float32))
    refused("f1.tif: holds NaN")
    volumes.write(own / "real" / "f1.tif", good)
    volumes.write(own / "masks" / "f2.tif", good + np.float32(0.5))
    refused("f2.tif: labels must be whole numbers")
