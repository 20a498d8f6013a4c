"""Scores segmentations against reference label images, file by file: `jaxsynth.segment score`."""

import csv
import json
import math
import os
from pathlib import Path

from jaxsynth import manifest as manifests
from jaxsynth.errors import InputError

SCORES, TABLE = "scores.json", "scores.csv"


def add_arguments(parser) -> None:
    """Adds the arguments of `score`."""
    parser.add_argument("--reference", required=True, help="label images: folder, glob or data set with labels/")
    parser.add_argument(
        "--segmentation", required=True, help="label images of the same names, or a data set with labels/"
    )
    parser.add_argument("--out", help="folder of the results (default: the segmentation's data set)")
    parser.add_argument("--images", help="images of the same names: outlines are drawn on them")
    parser.add_argument("--channel", type=int, help="channel of images with several")
    parser.add_argument("--dataset", help="data set of the labels inside HDF5 files (default: data/image, which is the "
                        "images' in any case)")  # fmt: skip
    parser.add_argument("--classes", action="store_true", help="also the IoU of background, membranes and centroids, "
                        "with tolerances of 1, 1 and 5 voxels")  # fmt: skip
    parser.add_argument("--partial", action="store_true",
                        help="not every cell is annotated: SEG and Dice of those that are, nothing else")  # fmt: skip
    parser.add_argument(
        "--compare", metavar="DIR", help="results of another segmentation of the same images: are both equal?"
    )
    parser.add_argument("--margin", type=float, help="with --compare: largest difference of scores that counts as "
                        "equal, to be chosen beforehand")  # fmt: skip


def score(args) -> dict:
    """Writes scores.json, scores.csv, violins.png and, with images, overlays/; returns the content of scores.json.

    Every score is one of all images together, over cells as the published scores are (`overlap.pool`), with a
    bootstrap interval over images.

    Args:
      args: of `add_arguments`.

    Raises:
      InputError: files without counterpart, of different shape, or unusable; no result has been written then.
    """
    from jaxsynth import __version__, figures_segmentation, segment_pairs, segment_totals
    from jaxsynth.compare_images import finite
    from jaxsynth.metrics import overlap

    _check(args)
    out = _out(args)
    pairs, unused = segment_pairs.find_pairs(args.reference, args.segmentation, args.images)
    titles = segment_totals.TITLES | (segment_totals.CLASSES if args.classes else {})
    names = segment_totals.PARTIAL if args.partial else tuple(titles)
    other = _read_other(Path(args.compare), [pair.name for pair in pairs], names) if args.compare else None
    measured = [_measure(pair, args) for pair in pairs]
    if not any(one.num_reference for one, _ in measured):
        raise InputError(f"--reference {args.reference}: no cells in any of {len(pairs)} label image(s)")
    rows = [segment_totals.row(pair.name, *one, args.partial) for pair, one in zip(pairs, measured, strict=True)]
    result = {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "versions": {"jaxsynth": __version__},
        "thresholds": list(overlap.THRESHOLDS),
        "totals": segment_totals.totals(rows, args.partial),
        "images": rows,
    }
    groups = {name: {"": [r[name] for r in rows]} for name in names}
    if other is not None:
        result["comparison"] = segment_totals.compare(rows, other, names, args.margin)
        groups = {name: {"this": [r[name] for r in rows], "other": [r[name] for r in other]} for name in names}

    manifests.make_folders(out, ("", "overlays") if args.images else ("",))
    figures_segmentation.violins(out / "violins.png", {titles[name]: sets for name, sets in groups.items()})
    for pair in pairs if args.images else ():
        _overlay(out / "overlays" / f"{pair.name}.png", pair, args)
    _write_table(out / TABLE, rows)
    result = finite(result)
    manifests.write_json(out / SCORES, result)
    _report(result, {name: titles[name] for name in names})
    if unused:
        print(f"{len(unused)} segmentation(s) without a reference left out, the first {unused[0]}")
    print(
        f"written: {out / SCORES}, {out / TABLE}, {out / 'violins.png'}"
        + (f", {out / 'overlays'}" if args.images else "")
    )
    return result


def _measure(pair, args) -> tuple:
    """A pair's scores (`overlap.Scores`) and, of classes, counts; all is checked that drawing needs, too."""
    from jaxsynth import segment_pairs
    from jaxsynth.data import volumes
    from jaxsynth.metrics import overlap, tolerance

    segmentation = volumes.read_labels(pair.segmentation, dataset=args.dataset)
    if pair.image is not None:
        shape = volumes.read(pair.image, channel=args.channel).shape
        if shape != segmentation.shape:
            raise InputError(f"{pair.segmentation}: is {segmentation.shape}, but {pair.image} is {shape}")
    scores, counts = [], []
    for parts in segment_pairs.parts(pair, segmentation, args.dataset):
        scores.append(overlap.measure(*parts))
        counts += [tolerance.class_counts(*parts)] * args.classes
    return overlap.pool(scores), tolerance.pool(counts) if counts else None


def _check(args) -> None:
    if args.compare and args.margin is None:
        raise InputError("--margin: needed with --compare; say how much scores may differ before looking at them")
    if args.margin is not None and not (args.compare and 0 < args.margin < math.inf):
        raise InputError(f"--margin: expected a positive number, with --compare; got {args.margin}")
    if args.channel is not None and not args.images:
        raise InputError("--channel: goes with --images")
    if args.classes and args.partial:
        raise InputError("--classes: needs every cell to be annotated, so it does not go with --partial")


def _out(args) -> Path:
    """The folder of the results; never that of the label images, where a picture would pass for one."""
    place = Path(args.segmentation)
    if args.out:
        out = Path(args.out)
    elif (place / "labels").is_dir():
        out = place
    elif place.is_dir():
        place = place.resolve()
        out = place.parent if place.name == "labels" else place.with_name(f"{place.name}_scores")
    else:
        raise InputError("--out: needed where --segmentation is no folder")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder")
    return out


def _read_other(place: Path, names: list[str], scores: tuple[str, ...]) -> list[dict]:
    """The rows of another result, in the order of `names`."""
    file = place / SCORES if place.is_dir() else place
    try:
        rows = {entry["name"]: entry for entry in json.loads(file.read_text())["images"]}
    except FileNotFoundError:
        raise InputError(f"--compare: no such file: {file}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise InputError(f"--compare {file}: not a result of this command") from None
    lone = next((name for name in (*names, *rows) if name not in rows or name not in names), None)
    if lone is not None:
        raise InputError(f"--compare {file}: expected the same images, but {lone} is only in one of both")
    missing = next((score for score in scores if score not in rows[names[0]]), None)
    if missing:
        why = "without --classes; leave it out" if missing.startswith("iou_") else "with --partial; give it here, too"
        raise InputError(f"--compare {file}: has no {missing}, as it was made {why}")
    return [{key: math.nan if value is None else value for key, value in rows[name].items()} for name in names]


def _overlay(path: Path, pair, args) -> None:
    import numpy as np

    from jaxsynth import figures_segmentation, segment_pairs
    from jaxsynth.data import volumes
    from jaxsynth.metrics import overlap

    image = volumes.read(pair.image, channel=args.channel)
    segmentation = volumes.read_labels(pair.segmentation, dataset=args.dataset)
    parts = list(segment_pairs.parts(pair, segmentation, args.dataset))
    planes = [plane for plane in pair.references.values() if plane is not None]
    if planes:
        image = image[planes]
        # A label of one annotated plane has nothing to do with the same label of another.
        step = 1 + max(int(labels.max()) for part in parts for labels in part)
        parts = [[np.where(labels, labels + k * step, 0) for labels in part] for k, part in enumerate(parts)]
        reference, segmentation = map(np.stack, zip(*parts, strict=True))
    else:
        reference, segmentation = parts[0]
    figures_segmentation.overlays(
        path, image, reference, segmentation, overlap.matches(reference, segmentation),
        partial=args.partial, planes=planes, heading=pair.name,
    )  # fmt: skip


def _write_table(file: Path, rows: list[dict]) -> None:
    """scores.csv: an image per row, empty where a score is undefined."""
    columns = [name for name in rows[0] if name != "tp_by_threshold"]
    part = file.with_name(file.name + ".part")
    with part.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(columns)
        for one in rows:
            values = (one[name] for name in columns)
            table.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in values])
    os.replace(part, file)


def _report(result: dict, titles: dict[str, str]) -> None:
    found = result["totals"]
    told = f"{found['num_images']} images, {found['num_reference']} cells"
    if "tp" in found:
        told += f", {found['num_segmented']} segments: {found['tp']} matched, {found['fn']} missed, {found['fp']} false"
    print(told)
    print(f"{'':<12} {'score':>7}  95 % interval over images")
    for name, title in titles.items():
        one = found[name]
        ends = "-" if one["low"] is None else f"{one['low']:.3f} .. {one['high']:.3f}"
        sd = f"   sd {found['dice_sd']:.3f} over cells" if name == "dice" else ""
        print(f"{title:<12} {one['value']:7.3f}  {ends}{sd}")
    for name, one in result.get("comparison", {}).items():
        verdict, p_value = "equivalence not shown", one["p_value"]
        if one["shown"]:
            verdict = "equivalent"
        elif one["noninferior"]:
            verdict, p_value = "no worse", one["noninferior_p_value"]
        print(f"{titles[name]:<12} {one['difference']:+7.3f}  {one['low']:+.3f} .. {one['high']:+.3f}   this - other, "
              f"margin {one['margin']:g}: {verdict} (p {p_value:.2g})")  # fmt: skip
