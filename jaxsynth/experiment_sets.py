"""The data sets of `jaxsynth.experiment`: how each is split, simulated and learned, and the splits themselves."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxsynth.errors import InputError

_SMALL_GAN = (
    "--config.model.features=8", "--config.gan.critic_features=32", "--config.gan.critic_mask=True",
    "--config.optim.ema_decay=0.995", "--config.train.val_every=200", "--config.train.checkpoint_every=400",
    "--config.train.preview_every=400",
)  # fmt: skip
GAN_2D = (
    *_SMALL_GAN, "--config.data.patch=(128,128)", "--config.data.batch_size=2", "--config.gan.r1=0.01",
    "--config.gan.critic_rate=1.0", "--config.train.num_steps=1000", "--config.model.norm=none",
    "--config.gan.smooth_doublings=True", "--config.gan.critic_shift=3",
)  # fmt: skip
# Where clouds came out as blotches the size of cells, in which dim ones went under.
GAN_2D_CLEAR = (*GAN_2D, "--config.gan.clouds_vox=0")
GAN_3D = (
    *_SMALL_GAN, "--config.data.patch=(24,32,32)", "--config.data.val_fraction=0.125", "--config.train.num_steps=700",
)  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """One annotated set, a folder with images/ and masks/ of equal names (and masks_gold/, partly annotated).

    Attributes:
      kind: how it is split: "sequence" (frames of one film), "organisms" (NAME_TIME files) or "groups" (pictures of
        unknown origin).
      spacing_um: micrometres per voxel; () where unknown.
      config: file of configs/ for the diffusion model.
      model: overrides of it.
      gan: overrides of configs/gan_nuclei.py for the GAN.
      recipe: of the simulated cells.
      parts: flags of `jaxsynth.simulate`; each part makes an equal share of the images.
      shape: of the simulated images, voxels; (): that of the training images.
      segment: overrides of configs/flowseg.py.
      share: of the frames or organisms that are trained on.
      test_first: a film's earlier frames are the test, not the later ones.
      train_right: a film's right part is trained on, not the left one.
    """

    kind: str
    spacing_um: tuple[float, ...]
    config: str
    model: tuple[str, ...]
    recipe: str
    parts: tuple[tuple[str, ...], ...] = ((),)
    shape: tuple[int, ...] = ()
    segment: tuple[str, ...] = ()
    gan: tuple[str, ...] = GAN_2D
    share: float = 0.5
    test_first: bool = False
    train_right: bool = False


SETS = {
    # Gold truth is of the film's first half, so that half is the test.
    "gowt1": DataSet("sequence", (0.24, 0.24), "ddpm_gowt1.py", (), "gowt1",
                     segment=("--config.data.batch_size=4",), gan=GAN_2D_CLEAR, test_first=True),
    "hela": DataSet("sequence", (0.645, 0.645), "ddpm_gowt1.py", (), "hela",
                    segment=("--config.data.batch_size=4",), gan=GAN_2D_CLEAR, share=0.6),
    # Sizes and numbers of nuclei at a glance: small ones, fibroblasts, dense round ones. Their voxel sizes are
    # inventions that make the recipe's nuclei as large, so none is passed on to the segmentation.
    "dsb2018": DataSet(
        "groups", (), "ddpm_dsb2018.py", (), "nuclei",
        parts=(
            ("--spacing=0.9,0.9", "--cells=40", "--clustering=0.3"),
            ("--spacing=0.7,0.7", "--cells=20"),
            ("--spacing=0.45,0.45", "--cells=35", "--clustering=0.6"),
        ),
        segment=("--config.data.spacing_um=(1.0,1.0)", "--config.data.batch_size=4"),
    ),
    # A ball of nuclei, after the fourth and about the fifth division. The recipe's embryo takes up 0.6 of the image,
    # the real ones 0.7 of theirs.
    "embryo3d": DataSet(
        "organisms", (1.75, 0.8, 0.8), "ddpm_embryo3d.py", (), "celegans",
        parts=(("--cells=14",), ("--cells=34",)), shape=(60, 150, 150),
        segment=("--config.data.batch_size=1",), gan=GAN_3D, share=0.73,
    ),
}  # fmt: skip
NUM_GROUPS = 4
ALIKE = 0.1  # logarithms that vary by less tell no groups apart
LEAST_SHARE = 0.1  # of the images, in a group that is held out
GAP = 1.0  # between the parts of a film, in cell diameters, at least
NOTE = "split.json"


def make(name: str, data: Path, out: Path, settings: DataSet, limit: int | None = None) -> dict:
    """Splits the set DATA/NAME into OUT/{train,test}/{images,labels}, and test/gold where there is gold truth.

    Images keep their dtype; voxel sizes are stated in the files; labels are numbered 1 to N in every file. All is
    written aside and renamed, OUT/split.json last.

    Args:
      limit: at most so many images for training and for testing, evenly picked.

    Returns:
      What split.json holds: counts of images and cells, the training images' median shape, and how it was split.

    Raises:
      InputError: files are missing, or the set cannot be split so that no cell is in both parts.
    """
    from jaxsynth.data import volumes

    folder = data / name
    files = {file.stem: file for file in volumes.find_files(folder / "images")}
    masks = {file.stem: file for file in volumes.find_files(folder / "masks")}
    missing = sorted(set(files) ^ set(masks))
    if missing:
        raise InputError(f"{folder}: {missing[0]} is in one of images/ and masks/ only")
    gold = folder / "masks_gold"
    gold = {file.stem: file for file in volumes.find_files(gold)} if gold.is_dir() else {}
    parts, columns, told = _SPLITS[settings.kind](files, masks, settings)
    if not all(parts.values()):
        raise InputError(f"{folder}: too few images to split, {len(files)}")

    aside = out / ".split.part"
    shutil.rmtree(aside, ignore_errors=True)
    result = {"set": name, "kind": settings.kind, **told}
    for part, names in parts.items():
        window = (Ellipsis, columns[part])
        names = [names[i] for i in _spread(len(names), limit)]
        count = {"images": 0, "cells": 0, "gold_images": 0, "gold_cells": 0}
        for kind in ("images", "labels", *(["gold"] if part == "test" else [])):
            (aside / part / kind).mkdir(parents=True)
        shapes = []
        for stem in names:
            image, labels = volumes.read(files[stem])[window], _numbered(volumes.read_labels(masks[stem])[window])
            spacing = settings.spacing_um or None
            volumes.write(aside / part / "images" / f"{stem}.tif", image, spacing_um=spacing)
            volumes.write(aside / part / "labels" / f"{stem}.tif", labels, spacing_um=spacing)
            count["images"] += 1
            count["cells"] += int(labels.max())
            shapes.append(image.shape)
            truth = volumes.read_labels(gold[stem])[window] if part == "test" and stem in gold else np.zeros(1, int)
            if truth.any():
                truth = _numbered(truth)
                volumes.write(aside / part / "gold" / f"{stem}.tif", truth, spacing_um=spacing)
                count["gold_images"] += 1
                count["gold_cells"] += int(truth.max())
        result[part] = count | {"shape": [int(size) for size in np.median(shapes, axis=0)], "names": names}
    for part in parts:
        shutil.rmtree(out / part, ignore_errors=True)
        os.replace(aside / part, out / part)
    result = json.loads(json.dumps(result))
    (aside / NOTE).write_text(json.dumps(result, indent=1) + "\n")
    os.replace(aside / NOTE, out / NOTE)
    aside.rmdir()
    return result


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Labels 1 to N in the order of the ids in the file."""
    ids, ranks = np.unique(labels, return_inverse=True)
    return ranks.reshape(labels.shape).astype(np.int32) + int(ids[0] != 0)


def _spread(count: int, limit: int | None) -> list[int]:
    """At most `limit` of the indices below `count`, evenly spread."""
    chosen = min(count, limit or count)
    return [round(i) for i in np.linspace(0, count - 1, chosen)]


def _sequence(files, masks, settings):
    """A film: one side of some frames for training, the other side of the others for testing, nothing from between.

    Ids of the Cell Tracking Challenge's truth follow a cell through the film, so where the seam lies is asked of them.
    """
    from jaxsynth.data import volumes

    names = sorted(files)
    cut = round(len(names) * ((1 - settings.share) if settings.test_first else settings.share))
    earlier, later = names[:cut], names[cut:]
    train, test = (later, earlier) if settings.test_first else (earlier, later)
    tracks = {stem: _extents(volumes.read_labels(masks[stem])) for stem in names}
    width = volumes.read_labels(masks[names[0]]).shape[-1]
    diameter = np.median([size for track in tracks.values() for _, _, size in track.values()])
    if settings.train_right:  # mirrored, so that the part to train on is the left one
        tracks = {n: {i: (width - 1 - high, width - 1 - low, size) for i, (low, high, size) in track.items()}
                  for n, track in tracks.items()}  # fmt: skip
    left, right = seam([tracks[n] for n in train], [tracks[n] for n in test], width, int(np.ceil(GAP * diameter)))
    seen = {"train": {i for n in train for i, (low, _, _) in tracks[n].items() if low < left},
            "test": {i for n in test for i, (_, high, _) in tracks[n].items() if high >= right}}  # fmt: skip
    columns = {"train": (0, left), "test": (right, width)}
    if settings.train_right:
        columns = {part: (width - end, width - start) for part, (start, end) in columns.items()}
    told = {"columns": columns, "gap_vox": right - left, "cell_diameter_vox": round(float(diameter), 1),
            "tracks": {part: len(ids) for part, ids in seen.items()},
            "cells_in_both": len(seen["train"] & seen["test"])}  # fmt: skip
    return {"train": train, "test": test}, {part: slice(*ends) for part, ends in columns.items()}, told


def _extents(labels: np.ndarray) -> dict[int, tuple[int, int, float]]:
    """Of every id (first column, last column, diameter of the disc of equal area)."""
    from scipy import ndimage

    areas = np.bincount(labels.ravel())
    return {i: (box[-1].start, box[-1].stop - 1, 2 * np.sqrt(areas[i] / np.pi))
            for i, box in enumerate(ndimage.find_objects(labels), 1) if box is not None}  # fmt: skip


def seam(train: Sequence[dict], test: Sequence[dict], width: int, gap: int) -> tuple[int, int]:
    """Where to cut a film in two so that no cell lies in both parts: columns [0, left) and [right, width).

    Args:
      train, test: of every frame of a part, id -> (first column, last column, ...) of each cell.
      width: columns of a frame.
      gap: columns between the parts, at least.

    Returns:
      (left, right), with the greatest width of the narrower part; of equals the leftmost.

    Raises:
      InputError: none is left for one of them.
    """
    first, last = {}, {}
    for frame in train:
        for i, (low, *_) in frame.items():
            first[i] = min(first.get(i, width), low)
    for frame in test:
        for i, (_, high, *_) in frame.items():
            last[i] = max(last.get(i, -1), high)
    best = (0, 0, 0)
    for left in range(1, width):
        # Cells that training sees, however little of them, must be nowhere in the test.
        right = max([left + gap, *(last[i] + 1 for i, low in first.items() if low < left and i in last)])
        best = max(best, (min(left, width - right), -left, right))
    if best[0] <= 0:
        raise InputError(f"no seam leaves room for training and testing: every cut of {width} columns shares cells")
    return -best[1], best[2]


def _organisms(files, masks, settings):
    """Files NAME_TIME: the first organisms for training, all times of each in one part."""
    names = sorted(files)
    organisms = sorted({stem.rsplit("_", 1)[0] for stem in names})
    kept = set(organisms[: round(len(organisms) * settings.share)])
    parts = {"train": [stem for stem in names if stem.rsplit("_", 1)[0] in kept]}
    parts["test"] = [stem for stem in names if stem not in parts["train"]]
    told = {"organisms": {"train": sorted(kept), "test": [name for name in organisms if name not in kept]}}
    return parts, {"train": slice(None), "test": slice(None)}, told


def _groups(files, masks, settings):
    """Pictures of unknown origin: groups that look alike, the smallest held out whole."""
    from scipy.cluster import hierarchy

    names = sorted(files)
    table = np.array(list(_looks(files, masks, names)))
    scaled = (table - table.mean(0)) / np.maximum(table.std(0), ALIKE)
    group = hierarchy.fcluster(hierarchy.linkage(scaled, "ward"), NUM_GROUPS, "maxclust")
    sizes = {int(g): int((group == g).sum()) for g in np.unique(group)}
    large = {g: size for g, size in sizes.items() if size >= LEAST_SHARE * len(names)}
    held = min(large, key=lambda g: (large[g], g))
    parts = {"train": [n for n, g in zip(names, group, strict=True) if g != held],
             "test": [n for n, g in zip(names, group, strict=True) if g == held]}  # fmt: skip
    told = {"groups": [
        {"images": size, "held_out": g == held, "median": dict(zip(_LOOKS, (
            round(float(np.exp(np.median(column))) - shift, 2)
            for column, shift in zip(table[group == g].T, (1, 0.2, 0, 0), strict=True)), strict=True))}
        for g, size in sizes.items()]}  # fmt: skip
    return parts, {"train": slice(None), "test": slice(None)}, told


_LOOKS = ("background", "noise", "cell_area_vox", "contrast")


def _looks(files, masks, names) -> Iterator[tuple[float, ...]]:
    """Of every picture the logarithms of `_LOOKS`: medians of background, of its noise, of cells' areas and greys."""
    from scipy import ndimage

    from jaxsynth.data import volumes

    for stem in names:
        image, labels = volumes.read(files[stem]).astype(np.float32), volumes.read_labels(masks[stem])
        empty = ndimage.binary_erosion(labels == 0, iterations=3)
        if not (empty.any() and labels.any()):
            raise InputError(f"{masks[stem]}: expected cells and background to tell pictures apart by")
        background = np.median(image[empty])
        grain = np.median(np.abs(image - ndimage.uniform_filter(image, 3))[empty])
        areas = np.bincount(labels.ravel())[1:]
        contrast = np.median(image[labels > 0]) - background
        yield (np.log1p(background), np.log(1.4826 * grain + 0.2), np.log(np.median(areas[areas > 0])),
               np.log(max(contrast, 1)))  # fmt: skip


_SPLITS = {"sequence": _sequence, "organisms": _organisms, "groups": _groups}
