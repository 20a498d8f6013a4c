"""`jaxsynth.segment score` on files: pairing, totals with intervals, comparison, pictures and refusals."""

import argparse
import csv
import json

import h5py
import numpy as np
import pytest

from jaxsynth import segment_pairs, segment_scores, segment_totals
from jaxsynth.data import volumes
from jaxsynth.errors import InputError
from jaxsynth.metrics import inference, overlap, tolerance


def boxes(seed, shape=(40, 60), count=8):
    """Label images (reference, segmentation) of boxes: shifted, some missed, one invented."""
    rng = np.random.default_rng(seed)
    reference, segmentation = np.zeros(shape, np.uint16), np.zeros(shape, np.uint16)
    places = [(y, x) for y in range(1, shape[-2] - 10, 10) for x in range(1, shape[-1] - 10, 12)]
    for i, place in enumerate(rng.permutation(len(places))[:count]):
        y, x = places[place]
        off = int(rng.integers(0, 4))
        reference[..., y : y + 8, x : x + 8] = i + 1
        if rng.uniform() < 0.8:
            segmentation[..., y : y + 8, x + off : x + off + 8] = 50 + i
    segmentation[..., -2:, -9:] = 999
    return reference, segmentation


def files(folder, count=4, name="{}", **options):
    """A reference folder and a data set of segmentations, 0.tif, 1.tif, ..."""
    pairs = [boxes(i, **options) for i in range(count)]
    for i, pair in enumerate(pairs):
        for part, labels in zip(("reference", "made/labels"), pair, strict=True):
            (folder / part).mkdir(parents=True, exist_ok=True)
            volumes.write(folder / part / f"{name.format(i)}.tif", labels)
    return pairs


def score(*args):
    parser = argparse.ArgumentParser()
    segment_scores.add_arguments(parser)
    return segment_scores.score(parser.parse_args(list(map(str, args))))


def read(folder):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads((folder / "scores.json").read_text(), parse_constant=refuse)


def test_scores_are_those_of_the_kernels_pooled_over_cells(tmp_path, capsys):
    pairs = files(tmp_path, name="cells_{}")
    result = score("--reference", tmp_path / "reference", "--segmentation", tmp_path / "made")
    assert read(tmp_path / "made") == result
    pooled = overlap.pool(overlap.measure(*pair) for pair in pairs)
    totals = result["totals"]
    precision = pooled.average_precision
    expected = {"seg": pooled.seg, "det": pooled.det, "dice": pooled.best_dice.mean()}
    expected |= {"ap": precision.mean(), "ap50": precision[0], "ap75": precision[5]}
    assert {name: totals[name]["value"] for name in expected} == pytest.approx(expected)
    assert all(totals[name]["low"] <= totals[name]["value"] <= totals[name]["high"] for name in expected)
    assert totals["dice_sd"] == pytest.approx(pooled.best_dice.std())
    assert (totals["num_images"], totals["num_reference"], totals["num_segmented"]) == (4, 32, pooled.num_segmented)
    assert (totals["tp"], totals["fp"], totals["fn"]) == (pooled.tp[0], pooled.fp[0], pooled.fn[0])
    for row, pair in zip(result["images"], pairs, strict=True):
        assert row["seg"] == overlap.seg(*pair) and row["det"] == overlap.det(*pair)
        assert row["tp"] + row["fn"] == row["num_reference"] and row["tp"] + row["fp"] == row["num_segmented"]
    with (tmp_path / "made" / "scores.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [row["name"] for row in table] == [f"cells_{i}" for i in range(4)]
    assert float(table[2]["seg"]) == result["images"][2]["seg"]
    assert "violins.png" in {path.name for path in (tmp_path / "made").iterdir()}
    told = capsys.readouterr().out
    assert f"SEG            {pooled.seg:.3f}" in told and "4 images, 32 cells" in told


def test_undefined_scores_are_empty_not_nought(tmp_path):
    files(tmp_path, 3)
    for part in ("reference", "made/labels"):
        volumes.write(tmp_path / part / "empty.tif", np.zeros((40, 60), np.uint16))
    result = score("--reference", tmp_path / "reference", "--segmentation", tmp_path / "made/labels")
    assert {row["name"]: row for row in result["images"]}["empty"]["seg"] is None
    with (tmp_path / "made" / "scores.csv").open() as stream:
        assert {row["name"]: row["ap50"] for row in csv.DictReader(stream)}["empty"] == ""
    kept = [boxes(i) for i in range(3)]
    assert result["totals"]["seg"]["value"] == pytest.approx(overlap.pool(overlap.measure(*p) for p in kept).seg)


def test_seeds_are_averaged_and_images_drawn():
    seeds = [[segment_totals.row(str(i), overlap.measure(*boxes(10 * k + i))) for i in range(6)] for k in range(3)]
    found = segment_totals.totals(seeds)
    each = [segment_totals.totals(rows) for rows in seeds]
    for name in segment_totals.TITLES:
        assert found[name]["value"] == pytest.approx(np.mean([one[name]["value"] for one in each]))
    assert (found["num_images"], found["num_seeds"]) == (6, 3)
    same = segment_totals.totals([seeds[0]] * 3)
    for end in ("low", "high"):
        assert same["seg"][end] == pytest.approx(each[0]["seg"][end])  # seeds are no further images
    assert each[0]["seg"]["value"] == pytest.approx(np.mean([row["seg"] for row in seeds[0]]))  # 8 cells each
    direct = inference.bootstrap_interval([row["seg"] for row in seeds[0]])
    assert (each[0]["seg"]["low"], each[0]["seg"]["high"]) == pytest.approx((direct.low, direct.high))
    with pytest.raises(InputError, match="same images"):
        segment_totals.totals([seeds[0], seeds[1][::-1]])


def test_names_of_the_cell_tracking_challenge_pair_by_number(tmp_path):
    for folder, names in (("gold", ("man_seg000", "man_seg007")), ("res", ("mask000", "mask003", "mask007")),
                          ("raw", ("t000", "t003", "t007"))):  # fmt: skip
        (tmp_path / folder).mkdir()
        for name in names:
            volumes.write(tmp_path / folder / f"{name}.tif", boxes(0)[0])
    pairs, unused = segment_pairs.find_pairs(tmp_path / "gold", tmp_path / "res", tmp_path / "raw")
    found = [(pair.name, [file.name for file in pair.references], pair.image.name) for pair in pairs]
    assert found == [("mask000", ["man_seg000.tif"], "t000.tif"), ("mask007", ["man_seg007.tif"], "t007.tif")]
    assert [file.name for file in unused] == ["mask003.tif"]
    # Equal names go first, and other numbers are no frames.
    (tmp_path / "res" / "man_seg007.tif").write_bytes((tmp_path / "res" / "mask007.tif").read_bytes())
    assert [pair.name for pair in segment_pairs.find_pairs(tmp_path / "gold", tmp_path / "res")[0]] == [
        "man_seg007",
        "mask000",
    ]
    with pytest.raises(InputError, match=r"no file belongs to .*mask003\.tif"):
        segment_pairs.find_pairs(tmp_path / "res", tmp_path / "gold")


def test_annotated_planes_of_a_volume_count_each_object_once(tmp_path):
    (tmp_path / "gold").mkdir()
    (tmp_path / "res").mkdir()
    expected = []
    for frame, planes in ((0, (2, 5, 7)), (4, (1,))):
        reference, segmentation = boxes(frame, (9, 40, 60))
        segmentation[5] = np.roll(segmentation[5], 1, 0)
        volumes.write(tmp_path / "res" / f"mask{frame:03}.tif", segmentation)
        for z in planes:
            annotated = np.where(reference[z] <= 3 + z, reference[z], 0)  # not every cell, and ids that recur
            volumes.write(tmp_path / "gold" / f"man_seg_{frame:03}_{z:03}.tif", annotated)
            expected.append(overlap.measure(annotated, segmentation[z]))
    images = ["--images", tmp_path / "res"]
    result = score("--reference", tmp_path / "gold", "--segmentation", tmp_path / "res", "--partial", *images)
    assert result["totals"]["seg"]["value"] == pytest.approx(overlap.pool(expected).seg)
    assert [row["num_reference"] for row in result["images"]] == [sum(e.num_reference for e in expected[:3]),
                                                                  expected[3].num_reference]  # fmt: skip
    # What needs every cell is left out; pictures do not go among the label images.
    assert set(result["totals"]) == {"seg", "dice", "dice_sd", "num_images", "num_seeds", "num_reference"}
    assert "det" not in result["images"][0]
    made = tmp_path / "res_scores"
    assert sorted(p.name for p in made.iterdir()) == ["overlays", "scores.csv", "scores.json", "violins.png"]
    assert sorted(p.name for p in (made / "overlays").iterdir()) == ["mask000.png", "mask004.png"]
    volumes.write(tmp_path / "gold" / "man_seg_004_009.tif", boxes(0)[0])
    with pytest.raises(InputError, match=r"man_seg_004_009\.tif: annotates plane 9"):
        score("--reference", tmp_path / "gold", "--segmentation", tmp_path / "res", "--partial")


def test_compares_with_another_segmentation_of_the_same_images(tmp_path, capsys):
    pairs = files(tmp_path, 6)
    (tmp_path / "other/labels").mkdir(parents=True)
    for i, (reference, _) in enumerate(pairs):
        volumes.write(tmp_path / f"other/labels/{i}.tif", reference)
    reference = ("--reference", tmp_path / "reference")
    score(*reference, "--segmentation", tmp_path / "other")
    again = score(*reference, "--segmentation", tmp_path / "other", "--compare", tmp_path / "other", "--margin", "0.01")
    assert all(one["shown"] and one["difference"] == 0 for one in again["comparison"].values())
    capsys.readouterr()
    result = score(*reference, "--segmentation", tmp_path / "made", "--compare", tmp_path / "other", "--margin", "0.05")
    values = np.array([row["seg"] for row in result["images"]])
    direct = inference.equivalence(values, np.ones(6), 0.05)
    assert result["comparison"]["seg"]["p_value"] == pytest.approx(direct.p_value) and not direct.shown
    assert "equivalence not shown" in capsys.readouterr().out
    back = score(*reference, "--segmentation", tmp_path / "other", "--compare", tmp_path / "made", "--margin", "0.05")
    assert back["comparison"]["seg"]["noninferior"] and not back["comparison"]["seg"]["shown"]
    assert "no worse" in capsys.readouterr().out
    (tmp_path / "made/labels/5.tif").unlink()
    (tmp_path / "reference/5.tif").unlink()
    with pytest.raises(InputError, match="5 is only in one"):
        score(*reference, "--segmentation", tmp_path / "made", "--compare", tmp_path / "other", "--margin", "0.05")


def test_overlays_are_drawn_on_images(tmp_path):
    files(tmp_path, 2)
    (tmp_path / "images").mkdir()
    for i in range(2):
        volumes.write(
            tmp_path / f"images/{i}.tif", np.random.default_rng(i).integers(0, 99, (40, 60)).astype(np.uint16)
        )
    pictures = ("--images", tmp_path / "images", "--out", tmp_path / "out")
    score("--reference", tmp_path / "reference", "--segmentation", tmp_path / "made", *pictures)
    assert sorted(path.name for path in (tmp_path / "out/overlays").iterdir()) == ["0.png", "1.png"]
    volumes.write(tmp_path / "images/1.tif", np.zeros((40, 61), np.uint16))
    with pytest.raises(InputError, match=r"labels/1\.tif: is \(40, 60\), but .*images/1\.tif is \(40, 61\)"):
        score(
            "--reference",
            tmp_path / "reference",
            "--segmentation",
            tmp_path / "made",
            *pictures[:2],
            "--out",
            tmp_path / "no",
        )
    assert not (tmp_path / "no").exists()


def test_classes_are_scored_with_tolerances_where_asked(tmp_path, capsys):
    pairs = files(tmp_path)
    place = ("--reference", tmp_path / "reference", "--segmentation", tmp_path / "made")
    plain = score(*place, "--out", tmp_path / "plain")
    assert not any(name.startswith("iou_") for name in (*plain["totals"], *plain["images"][0]))
    result = score(*place, "--classes", "--out", tmp_path / "classes")
    told = capsys.readouterr().out
    pooled = tolerance.pool([tolerance.class_counts(*pair) for pair in pairs])
    for kind, (met, union) in pooled.items():
        total = result["totals"][f"iou_{kind}"]
        assert total["value"] == pytest.approx(met / union) and total["low"] <= total["value"] <= total["high"]
        assert total["low"] < total["high"]
        assert f"{kind.capitalize():<12}   {met / union:.3f}  {total['low']:.3f}" in told
    for row, before, pair in zip(result["images"], plain["images"], pairs, strict=True):
        assert {kind: row[f"iou_{kind}"] for kind in pooled} == tolerance.class_iou(*pair)
        assert {name: row[name] for name in before} == before
    with (tmp_path / "classes" / "scores.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [float(row["iou_membrane"]) for row in table] == [row["iou_membrane"] for row in result["images"]]
    again = score(*place, "--classes", "--compare", tmp_path / "classes", "--margin", "0.01")
    assert again["comparison"]["iou_centroid"]["shown"]
    assert "iou_centroid" not in score(*place, "--compare", tmp_path / "classes", "--margin", "0.01")["comparison"]
    with pytest.raises(InputError, match="has no iou_background, as it was made without --classes"):
        score(*place, "--classes", "--compare", tmp_path / "plain", "--margin", "0.01")
    with pytest.raises(InputError, match="--classes: needs every cell"):
        score(*place, "--classes", "--partial")


def test_classes_of_annotated_planes_and_of_empty_images(tmp_path):
    (tmp_path / "gold").mkdir()
    (tmp_path / "res").mkdir()
    reference, segmentation = boxes(0, (3, 40, 60))
    volumes.write(tmp_path / "res" / "mask000.tif", segmentation)
    for z in (0, 2):
        reference[z] = np.roll(reference[z], z, 0)
        volumes.write(tmp_path / "gold" / f"man_seg_000_{z:03}.tif", reference[z])
    for folder, name in (("gold", "man_seg001"), ("res", "mask001")):
        volumes.write(tmp_path / folder / f"{name}.tif", np.zeros((40, 60), np.uint16))
    result = score("--reference", tmp_path / "gold", "--segmentation", tmp_path / "res", "--classes")
    counts = [tolerance.class_counts(reference[z], segmentation[z]) for z in (0, 2)]
    of = {row["name"]: row for row in result["images"]}
    for kind, (met, union) in tolerance.pool(counts).items():
        assert of["mask000"][f"iou_{kind}"] == met / union
    assert (of["mask001"]["iou_background"], of["mask001"]["iou_membrane"]) == (1.0, None)
    # An empty image is background alone.
    assert result["totals"]["iou_membrane"]["value"] == pytest.approx(of["mask000"]["iou_membrane"])
    assert result["totals"]["iou_background"]["value"] > of["mask000"]["iou_background"]


def test_labels_in_hdf5_files_are_those_of_the_data_set_asked_for(tmp_path):
    pairs = files(tmp_path, 2)
    as_tiff = score("--reference", tmp_path / "reference", "--segmentation", tmp_path / "made")
    for folder, part in (("gold", 0), ("found", 1)):
        (tmp_path / folder).mkdir()
        for i, pair in enumerate(pairs):
            with h5py.File(tmp_path / folder / f"{i}.h5", "w") as file:
                file["data/image"] = np.random.default_rng(i).normal(size=pair[part].shape).astype(np.float32)
                file["data/instance"] = pair[part]
    place = ("--reference", tmp_path / "gold", "--segmentation", tmp_path / "found", "--out", tmp_path / "out")
    result = score(*place, "--dataset", "data/instance", "--images", tmp_path / "gold")
    assert result["totals"] == as_tiff["totals"] and result["images"] == as_tiff["images"]
    assert len(list((tmp_path / "out/overlays").iterdir())) == 2
    # Files of other kinds have one data set alone.
    mixed = ("--reference", tmp_path / "gold", "--segmentation", tmp_path / "made", "--dataset", "data/instance")
    assert score(*mixed)["totals"] == as_tiff["totals"]
    with pytest.raises(InputError, match=r"0\.h5: no data set 'labels', the file holds data/image, data/instance"):
        score(*place, "--dataset", "labels")
    with pytest.raises(InputError, match=r"0\.h5: labels must be whole numbers"):
        score(*place)


def test_mistakes_are_named_and_nothing_is_written(tmp_path):
    files(tmp_path, 2)
    made = tmp_path / "made"
    place = ("--reference", tmp_path / "reference", "--segmentation", made)

    def refused(match, *args):
        with pytest.raises(InputError, match=match):
            score(*(args or place))
        assert [path.name for path in made.iterdir()] == ["labels"]

    refused("--margin: needed", *place, "--compare", tmp_path)
    refused("--margin: expected a positive", *place, "--margin", "0.1")
    refused("--channel: goes with --images", *place, "--channel", "1")
    refused("--out: needed", *place[:3], made / "labels" / "*.tif")
    refused("no such file: .*scores.json", *place, "--compare", tmp_path, "--margin", "0.1")
    (tmp_path / "scores.json").write_text("[]")
    refused("not a result of this command", *place, "--compare", tmp_path, "--margin", "0.1")
    refused("is a file", *place, "--out", tmp_path / "scores.json")
    volumes.write(tmp_path / "reference" / "2.tif", boxes(0)[0])
    refused(r"--segmentation: no file belongs to .*reference/2\.tif")
    volumes.write(made / "labels" / "2.tif", boxes(0)[0][1:])
    refused(r"labels/2\.tif: expected the shape \(40, 60\) of .*reference/2\.tif, got \(39, 60\)")
    for i in range(3):
        volumes.write(tmp_path / "reference" / f"{i}.tif", np.zeros_like(boxes(0)[0]))
    volumes.write(made / "labels" / "2.tif", boxes(0)[0])
    refused("no cells in any of 3")


def test_silver_truth_scores_its_gold(tmp_path, real_data):
    gold, silver = (real_data / "gowt1" / name for name in ("masks_gold", "masks"))
    frames = sorted(file.name for file in gold.iterdir())[:4]
    for name in frames:
        for folder, source in (("gold", gold), ("silver", silver)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).symlink_to(source / name)
    found = score("--reference", tmp_path / "gold", "--segmentation", tmp_path / "silver", "--partial")["totals"]
    assert 0.7 < found["seg"]["low"] <= found["seg"]["value"] < 1.0 and found["num_reference"] > 4
