"""Judges a generated data set by its own labels: `jaxsynth.evaluate --fidelity`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxsynth import manifest as manifests
from jaxsynth.errors import InputError

SHOWN = 6  # images in the picture
WIDTH = 560  # pixels of an image there, at most
GREEN, ORANGE, MAGENTA = (0.1, 0.6, 0.2), (1.0, 0.55, 0.0), (1.0, 0.1, 1.0)
LEGEND = {"labels": GREEN, "vanished": ORANGE, "phantoms": MAGENTA}


def report(args) -> dict:
    """Judges and writes fidelity.json and fidelity.png; returns what the first holds.

    Args:
      args: synthetic, detections, real, real_labels, real_detections, channel, num, out, as `jaxsynth.evaluate`
        explains them.

    Raises:
      InputError: unusable files, or labels that cannot be judged; nothing has been written then.
    """
    from jaxsynth import __version__

    folder = Path(args.synthetic)
    for name in ("images", "labels"):
        if not (folder / name).is_dir():
            raise InputError(f"--synthetic {folder}: expected a data set with images/ and labels/; has no {name}/")
    out = Path(args.out) if args.out else folder
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder")
    sets = {"synthetic": _triples(folder / "images", folder / "labels", args.detections, None, args.num)}
    if args.real is not None:
        sets["real"] = _triples(args.real, args.real_labels, args.real_detections, args.channel, args.num)
    images = {name: [_entry(triple) for triple in triples] for name, triples in sets.items()}
    result = {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "versions": {"jaxsynth": __version__, "numpy": np.__version__},
        "detector": "given segmentation" if args.detections else "built in",
        "total": {name: total(entries) for name, entries in images.items()},
        "images": images,
    }
    order = sorted(range(len(sets["synthetic"])), key=lambda i: -_num_faults(images["synthetic"][i]))
    pictures = [_picture(sets["synthetic"][i]) for i in order[:SHOWN]]
    manifests.make_folders(out, ("",))
    manifests.write_json(out / "fidelity.json", result)
    _draw(out / "fidelity.png", pictures)
    for line in _table(result["total"]):
        print(line)
    print(f"written: {out / 'fidelity.json'}, {out / 'fidelity.png'}")
    return result


def total(entries: Sequence[dict]) -> dict:
    """Sums over images; rates are per judged cell, None where there is none."""
    cells, too_small = sum(entry["num_cells"] for entry in entries), sum(len(entry["too_small"]) for entry in entries)
    row = {"num_images": len(entries), "num_faulty_images": sum(_num_faults(entry) > 0 for entry in entries)}
    row |= {"num_cells": cells, "judged": cells - too_small, "too_small": too_small}
    row |= {"at_edge": sum(entry["at_edge"] for entry in entries)}
    for name in ("vanished", "phantoms"):
        row[name] = sum(len(entry[name]) for entry in entries)
        row[f"{name}_rate"] = row[name] / row["judged"] if row["judged"] else None
    return row


def _num_faults(entry: dict) -> int:
    return len(entry["vanished"]) + len(entry["phantoms"])


def _triples(images, labels, detections, channel, num) -> list[tuple]:
    """(image, label, detection or None, channel) files of equal names."""
    from jaxsynth.compare_labels import spread
    from jaxsynth.data import volumes

    files = volumes.find_files(images)
    files = [files[i] for i in spread(len(files), num)] if num else files
    places = [Path(labels)]
    if detections is not None:
        inside = Path(detections) / "labels"
        places.append(inside if inside.is_dir() else Path(detections))
    beside = [volumes.by_name(volumes.find_files(place), str(place)) for place in places]
    for place, named in zip(places, beside, strict=True):
        missing = next((file for file in files if file.stem not in named), None)
        if missing is not None:
            raise InputError(f"{place}: has no label image for {missing}")
    return [(file, *(named[file.stem] for named in beside), *[None] * (2 - len(beside)), channel) for file in files]


def _judge(triple) -> tuple:
    """(image, labels, Fidelity or None where there is no cell)."""
    from jaxsynth.data import volumes
    from jaxsynth.metrics import fidelity

    file, label_file, detection_file, channel = triple
    image, labels = volumes.read(file, channel=channel), volumes.read_labels(label_file)
    seen = None if detection_file is None else fidelity.given(volumes.read_labels(detection_file))
    if image.shape != labels.shape:
        raise InputError(f"{label_file}: labels {labels.shape} and image {image.shape} differ in shape")
    if not labels.any():
        return image, labels, None
    try:
        return image, labels, fidelity.fidelity(labels, image, detections=seen)
    except InputError as error:
        raise InputError(f"{label_file}: {error} (--detections)") from None


def _entry(triple) -> dict:
    """What fidelity.json tells of an image."""
    _, _, found = _judge(triple)
    if found is None:
        return {"name": triple[0].name, "num_cells": 0, "too_small": [], "vanished": [], "phantoms": [], "at_edge": 0}
    seen = found.detections
    phantoms = [
        {
            "centre": [round(float(x), 1) for x in seen.centre[i]],
            "size": int(seen.size[i]),
            "contrast": round(float(seen.contrast[i]), 2) if np.isfinite(seen.contrast[i]) else None,
        }
        for i in found.phantoms
    ]
    return {
        "name": triple[0].name,
        "num_cells": found.num_cells,
        "too_small": found.too_small.tolist(),
        "vanished": found.vanished.tolist(),
        "phantoms": phantoms,
        "at_edge": found.at_edge,
    }


def _picture(triple) -> list[tuple[np.ndarray, str]]:
    """The image, and with outlines, of a volume the plane with most faults: [(float32 [H, W, 3], caption)]."""
    from skimage.segmentation import find_boundaries
    from skimage.transform import downscale_local_mean

    from jaxsynth import panels

    image, labels, found = _judge(triple)
    told, tone = "no cells", panels.fit_tone([image])
    vanished = phantoms = np.zeros_like(labels)
    if found is not None:
        vanished = np.where(np.isin(labels, found.vanished), labels, 0)
        phantoms = np.where(np.isin(found.detections.segments, found.phantoms + 1), found.detections.segments, 0)
        told = f"{len(found.vanished)} vanished, {len(found.phantoms)} phantoms, {found.num_cells} cells"
    if image.ndim == 3:
        weight = 1e6 * ((vanished > 0) | (phantoms > 0)) + (labels > 0)
        plane = int(weight.sum(axis=(1, 2)).argmax())
        image, labels, vanished, phantoms = (volume[plane] for volume in (image, labels, vanished, phantoms))
        told += f", z {plane}"
    factor, zoom = -(-max(image.shape) // WIDTH), max(1, WIDTH // max(image.shape))
    grey = tone(downscale_local_mean(image, (factor, factor)))[..., None].repeat(3, -1).astype(np.float32)
    grey = grey.repeat(zoom, 0).repeat(zoom, 1)
    judged = grey.copy()
    for part, colour in ((labels, GREEN), (phantoms, MAGENTA), (vanished, ORANGE)):
        small = part[::factor, ::factor].repeat(zoom, 0).repeat(zoom, 1)
        judged[find_boundaries(small, mode="inner", background=0)] = colour
    return [(grey, triple[0].name), (judged, told)]


def _draw(path: Path, pictures: list) -> None:
    from jaxsynth import figures

    figures.sheet(path, pictures, ("image", "judged"), "", LEGEND)


def _table(totals: dict) -> list[str]:
    heads = ("images", "cells", "judged", "vanished", "phantoms", "not judged: too small", "at the edge")
    lines = [" ".join([f"{'':<10}", *(f"{head:>{max(16, len(head))}}" for head in heads)])]
    for name, row in totals.items():
        values = [row["num_images"], row["num_cells"], row["judged"]]
        for what in ("vanished", "phantoms"):
            rate = row[f"{what}_rate"]
            values.append(f"{row[what]}" if rate is None else f"{row[what]} ({rate:.2%})")
        values += [row["too_small"], row["at_edge"]]
        cells = (f"{value!s:>{max(16, len(head))}}" for head, value in zip(heads, values, strict=True))
        lines.append(" ".join([f"{name:<10}", *cells]))
    return lines
