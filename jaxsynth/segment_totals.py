"""Scores of segmentations as rows of a table, and of many images together with what they leave uncertain."""

import math
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from jaxsynth.errors import InputError
from jaxsynth.metrics import inference, overlap

TITLES = {"seg": "SEG", "det": "DET", "ap50": "AP@0.5", "ap75": "AP@0.75", "ap": "AP .5:.95", "dice": "Dice"}
CLASSES = {"iou_background": "Background", "iou_membrane": "Membrane", "iou_centroid": "Centroid"}
PARTIAL = ("seg", "dice")  # what is defined where not every cell is annotated


def row(name: str, scores, classes: Mapping[str, tuple[int, int]] | None = None, partial: bool = False) -> dict:
    """What scores.json and scores.csv tell of an image: its scores, and the counts they are pooled from.

    Args:
      scores: `overlap.Scores`.
      classes: `tolerance.class_counts`, or None.
      partial: not every cell is annotated.
    """
    at = {threshold: i for i, threshold in enumerate(scores.thresholds)}
    dice = scores.best_dice
    found = {
        "name": name,
        "num_reference": scores.num_reference,
        "seg": scores.seg,
        "dice": float(dice.mean()) if dice.size else math.nan,
        "dice_sd": float(dice.std()) if dice.size else math.nan,
    }
    if partial:
        return found
    precision = scores.average_precision
    ious = {}
    for kind, (met, union) in (classes or {}).items():
        ious |= {f"iou_{kind}": met / union if union else math.nan, f"{kind}_voxels": union}
    return found | {
        "num_segmented": scores.num_segmented,
        "det": scores.det,
        "ap50": float(precision[at[0.5]]),
        "ap75": float(precision[at[0.75]]),
        "ap": float(np.mean(precision)),
        "tp": int(scores.tp[at[0.5]]),
        "fp": int(scores.fp[at[0.5]]),
        "fn": int(scores.fn[at[0.5]]),
        "splits": scores.splits,
        "missed": scores.missed,
        "spurious": scores.spurious,
        "tp_by_threshold": scores.tp.tolist(),
        **ious,
    }


def totals(rows: list[dict] | list[list[dict]], partial: bool = False) -> dict:
    """Scores of all images together, each {"value", "low", "high"}: a 95 % bootstrap interval over images.

    Args:
      rows: of `row`, one per image; or a list of these per seed, of the same images in the same order: images are
        drawn, all seeds of one together, and the seeds' scores averaged.

    Returns:
      {score: interval} and "dice_sd", the deviation over all cells, "num_images", "num_seeds", and sums of the counts;
      with IoU of classes, of the voxels of all images together, where the rows have it.

    Raises:
      InputError: seeds of different images.
    """
    seeds = [rows] if isinstance(rows[0], dict) else rows
    names = [r["name"] for r in seeds[0]]
    if any([r["name"] for r in one] != names for one in seeds):
        raise InputError("rows: expected the same images in the same order for every seed")

    def column(name):
        """float64 [K, N]; undefined values are 0, as they are weighted by no cells."""
        return np.nan_to_num(np.array([[r[name] for r in one] for one in seeds], np.float64))

    cells = column("num_reference")
    terms = {"seg": (column("seg") * cells, cells), "dice": (column("dice") * cells, cells)}
    if not partial:
        cost = overlap.SPLIT * column("splits") + overlap.MISSED * column("missed") + overlap.FALSE * column("spurious")
        terms["det"] = (cost, overlap.MISSED * cells)
        tp = np.array([[r["tp_by_threshold"] for r in one] for one in seeds]).transpose(2, 0, 1)  # [T, K, N]
        union = cells + column("num_segmented") - tp
        terms["ap50"], terms["ap75"] = ((tp[i], union[i]) for i in (0, 5))
        terms["ap"] = (tp, union)
    for name in CLASSES.keys() & seeds[0][0].keys():
        voxels = column(f"{name.removeprefix('iou_')}_voxels")
        terms[name] = (column(name) * voxels, voxels)

    def estimate(name):
        # Seeds and thresholds are averaged, images pooled.
        above, below = (part.reshape(-1, len(names)) for part in terms[name])
        # Images in which there was nothing to find and nothing found tell nothing, and resamples of these alone less.
        told = (below + above).any(0)
        if not told.any():
            return {"value": math.nan, "low": math.nan, "high": math.nan}
        above, below = above[:, told], below[:, told]
        half = len(above)

        def statistic(values, axis):
            scores = inference.ratio((values[:half], values[half:]), axis)
            if name == "det":
                # Nothing to detect: the worst that can be.
                nothing = np.sum(values[half:], -1) == 0
                scores = 1 - np.minimum(np.where(nothing, 1.0, scores), 1.0)
            return scores.mean(0)

        found = inference.bootstrap_interval(np.concatenate([above, below]), statistic)
        return {"value": found.estimate, "low": found.low, "high": found.high}

    result = {name: estimate(name) for name in TITLES | CLASSES if name in terms}
    mean = column("dice")
    second = ((column("dice_sd") ** 2 + mean**2) * cells).sum() / cells.sum()
    result["dice_sd"] = math.sqrt(max(second - ((mean * cells).sum() / cells.sum()) ** 2, 0.0))
    counts = ("num_reference",) if partial else ("num_reference", "num_segmented", "tp", "fp", "fn")
    return (
        result
        | {"num_images": len(names), "num_seeds": len(seeds)}
        | {name: int(column(name).sum()) for name in counts}
    )


def compare(rows: list[dict], other: list[dict], names: tuple[str, ...], margin: float) -> dict:
    """Tests whether the images' scores are the same within a margin, {score: `inference.Comparison` of rows - other}.

    "noninferior" and its p-value are added: rows are not worse by more than the margin.

    Args:
      rows, other: of `row`, of the same images in the same order.
      names: scores.
      margin: > 0, chosen beforehand.

    Raises:
      InputError: fewer than two images have a score in both.
    """
    result = {}
    for name in names:
        values = np.array([[one[name] for one in rows], [one[name] for one in other]])
        values = values[:, np.isfinite(values).all(0)]
        if values.shape[1] < 2:
            raise InputError(f"--compare: needs two or more images with cells in both, got {values.shape[1]}")
        found = asdict(inference.equivalence(*values, margin))
        better = inference.noninferiority(*values, margin)
        result[name] = found | {"noninferior": better.shown, "noninferior_p_value": better.p_value}
    return result
