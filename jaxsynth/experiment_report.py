"""What `jaxsynth.experiment` tells: scores per set and arm, how sure they are, comparisons of arms, and pictures."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxsynth import figures, figures_segmentation, segment_totals
from jaxsynth import manifest as manifests
from jaxsynth.data import volumes
from jaxsynth.errors import InputError
from jaxsynth.experiment_plan import arm_folder
from jaxsynth.metrics import inference, overlap

MEASURES = ("seg", "ap50", "dice")
MARGIN = 0.05  # scores that differ by less are taken for equal: chosen before the first run
RATIO = 0.95  # of the real arm's score, that the simulated arm is to reach
SHOWN = 3  # test images per sheet
METHOD = (
    f"Scores are of all test images' cells together, [95 % interval] by bootstrap over test images, all seeds of an "
    f"image together. Seeds' sd, ratios and comparisons are of the images' mean scores, seeds averaged, images paired. "
    f"Equivalent: two one-sided t-tests (TOST) at 5 % reject a difference of {MARGIN} or more, a margin set beforehand."
)


def report(
    out: Path,
    sets: Sequence[str],
    arms: Sequence[str],
    sweep: Mapping[str, str] | None = None,
    title: str | None = None,
) -> dict:
    """Writes OUT/table.md, table.json, violins_SET.png, sheet_SET.png and overlays/; of a sweep OUT/sweep_TITLE.*.

    What has not been run is left empty.

    Args:
      out: the folder of the experiment.
      sets, arms: to tell of.
      sweep: value -> arm, of a sweep.
      title: its name.

    Returns:
      What the JSON file holds.

    Raises:
      InputError: there are no scores at all, or seeds or arms were scored on different images.
    """
    rows = {name: {arm: found for arm in arms if (found := read_scores(out / name / arm_folder(arm)))} for name in sets}
    gold = {
        name: {arm: read_scores(out / name / arm_folder(arm), "scores_gold") for arm in rows[name]} for name in sets
    }
    if not any(rows.values()):
        raise InputError(f"{out}: no scores of {', '.join(arms)} yet, so there is nothing to report")
    result = {"method": METHOD, "margin": MARGIN, "sets": {}}
    for name in sets:
        if not rows[name]:
            continue
        entry = {"arms": {arm: tell(found, rows[name].get("real")) for arm, found in rows[name].items()}}
        for arm, found in gold[name].items():
            if found:
                entry["arms"][arm]["gold"] = segment_totals.totals(found, partial=True)["seg"]
        result["sets"][name] = entry | {} if sweep else entry | {"comparisons": compare(rows[name])}
    stem = f"sweep_{title}" if sweep else "table"
    lines = [_sweep_table(result, sweep, title)] if sweep else [_table(name, result, arms) for name in result["sets"]]
    content = _finite(result)
    manifests.write_json(out / f"{stem}.json", content)
    _write(out / f"{stem}.md", "\n\n".join([*lines, METHOD]) + "\n")
    if sweep:
        _draw_sweep(out / f"{stem}.png", result, sweep, title)
    else:
        for name in result["sets"]:
            _draw(out, name, rows[name])
    print("\n\n".join(lines))
    print(f"\nwritten: {out / stem}.md, {out / stem}.json and pictures")
    return content


def read_scores(folder: Path, which: str = "scores") -> list[list[dict]]:
    """The rows of every seed's scores.json below an arm's folder, [] where there is none.

    Raises:
      InputError: the seeds' images differ.
    """
    files = sorted(folder.glob(f"[0-9]*/{which}/scores.json"), key=lambda file: int(file.parent.parent.name))
    seeds = [
        [{key: math.nan if value is None else value for key, value in row.items()} for row in content["images"]]
        for content in (json.loads(file.read_text()) for file in files)
    ]
    if any([row["name"] for row in seed] != [row["name"] for row in seeds[0]] for seed in seeds):
        raise InputError(f"{folder}: seeds were scored on different images; start the experiment again")
    return seeds


def tell(seeds: list[list[dict]], real: list[list[dict]] | None) -> dict:
    """An arm's scores with intervals, the seeds' spread, and the ratio to the real arm's where there is that."""
    found = segment_totals.totals(seeds)
    told = {"images": found["num_images"], "seeds": len(seeds), "cells": found["num_reference"]}
    for measure in MEASURES:
        told[measure] = dict(found[measure])
        each = [np.nanmean([row[measure] for row in seed]) for seed in seeds]
        told[measure]["sd_seeds"] = float(np.std(each, ddof=1)) if len(each) > 1 else None
        if real:
            told[measure]["ratio"] = _interval(
                inference.bootstrap_interval(_paired(seeds, real, measure), inference.ratio)
            )
    return told


def compare(arms: Mapping[str, list[list[dict]]]) -> dict:
    """Simulated against real (equivalence and ratio), both against real, simulated against microscope.

    Args:
      arms: name -> rows of every seed.

    Returns:
      name of the comparison -> measure -> numbers; "met" tells whether the aim is reached. Without those arms that have
      not been run, or that share fewer than two images with cells.
    """
    result = {}
    for title, (a, b) in {"simulated as real": ("simulated", "real"), "both above real": ("both", "real"),
                          "simulated above microscope": ("simulated", "microscope")}.items():  # fmt: skip
        if a not in arms or b not in arms:
            continue
        for measure in MEASURES:
            values = _paired(arms[a], arms[b], measure)
            if values.shape[1] < 2:
                continue
            if title == "simulated as real":
                test = dataclasses.asdict(inference.equivalence(*values, MARGIN))
                told = {"ratio": _interval(inference.bootstrap_interval(values, inference.ratio)), "equivalence": test}
                told["met"] = told["ratio"]["value"] >= RATIO
                # Not only of these images: better than RATIO of the other by a one-sided test.
                told["shown"] = inference.noninferiority(values[0], RATIO * values[1], 0.0).shown
            else:
                told = {"difference": _interval(inference.paired_difference(*values))}
                told["met"] = told["difference"]["low"] > 0
            result.setdefault(title, {})[measure] = told
    return result


def _paired(a: list[list[dict]], b: list[list[dict]], measure: str) -> np.ndarray:
    """[2, N]: the seeds' mean score of every image that has one in both."""
    if [row["name"] for row in a[0]] != [row["name"] for row in b[0]]:
        raise InputError("arms were scored on different images; start the experiment again")
    values = np.array([_means(a, measure), _means(b, measure)])
    return values[:, np.isfinite(values).all(0)]


def _means(seeds: list[list[dict]], measure: str) -> np.ndarray:
    return np.mean([[row[measure] for row in seed] for seed in seeds], axis=0)


def _interval(found: inference.Interval) -> dict:
    return {"value": found.estimate, "low": found.low, "high": found.high}


def _finite(content):
    """With None for what is not a finite number, as JSON has none."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _text(found: dict | None, digits: int = 3) -> str:
    """value [low, high]; empty where there is none."""
    if not found or found["value"] is None or not math.isfinite(found["value"]):
        return ""
    ends = (found["low"], found["high"])
    told = (
        f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"
        if all(e is not None and math.isfinite(e) for e in ends)
        else ""
    )
    return f"{found['value']:.{digits}f}{told}"


def _markdown(rows: list[list[str]]) -> str:
    rows = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _table(name: str, result: dict, arms: Sequence[str]) -> str:
    """A set in Markdown: a row per arm, then a line per comparison."""
    entry, titles = result["sets"][name], segment_totals.TITLES
    heads = ["arm", "seeds", *(titles[m] for m in MEASURES), "SEG / real", "AP@0.5 / real", "SEG sd", "SEG, gold truth"]
    rows = [[f"`{name}`", *heads[1:]]]
    for arm in arms:
        told = entry["arms"].get(arm)
        if told is None:
            rows.append([arm, *[""] * (len(heads) - 1)])
            continue
        spread = told["seg"]["sd_seeds"]
        rows.append([
            arm, str(told["seeds"]), *(_text(told[measure]) for measure in MEASURES),
            *(_text(told[measure].get("ratio")) for measure in ("seg", "ap50")),
            "" if spread is None else f"{spread:.3f}", _text(told.get("gold")),
        ])  # fmt: skip
    lines = [_markdown(rows), ""]
    for title, measures in entry["comparisons"].items():
        for measure, told in measures.items():
            aim = f"ratio {RATIO} or more" if "ratio" in told else "interval above 0"
            text = f"ratio {_text(told['ratio'])}" if "ratio" in told else f"difference {_text(told['difference'])}"
            if "equivalence" in told:
                test = told["equivalence"]
                shown = "equivalent" if test["shown"] else "equivalence not shown"
                text += f"; {shown} (difference {test['difference']:+.3f}, 90 % interval {test['low']:+.3f} to "
                text += f"{test['high']:+.3f}, p {test['p_value']:.2g})"
            lines.append(f"- {title}, {titles[measure]}: {text}. Aim, {aim}: {'met' if told['met'] else 'missed'}.")
    return "\n".join(lines)


def _sweep_table(result: dict, sweep: Mapping[str, str], title: str) -> str:
    rows = [["set", title, "seeds", *(segment_totals.TITLES[m] for m in MEASURES)]]
    for name, entry in result["sets"].items():
        for value, arm in sweep.items():
            told = entry["arms"].get(arm)
            rows.append([f"`{name}`", value] + (
                [str(told["seeds"]), *(_text(told[m]) for m in MEASURES)] if told else [""] * (1 + len(MEASURES))
            ))  # fmt: skip
    return _markdown(rows)


def _draw(out: Path, name: str, arms: Mapping[str, list[list[dict]]]) -> None:
    """Violins of all arms, the first seed's labels beside each other, and their outlines on one image."""
    panels = {segment_totals.TITLES[m]: {arm: _means(seeds, m) for arm, seeds in arms.items()} for m in MEASURES}
    figures_segmentation.violins(out / f"violins_{name}.png", panels)
    test = out / name / "test"
    stems = [row["name"] for row in next(iter(arms.values()))[0]]
    stems = [stems[round(i)] for i in np.linspace(0, len(stems) - 1, min(SHOWN, len(stems)))]
    made = {arm: sorted((out / name / arm_folder(arm)).glob("[0-9]*/segmentation/labels"))[:1] for arm in arms}
    columns = {"image": [], "reference": []} | {arm: [] for arm, folders in made.items() if folders}
    if not test.is_dir():
        return
    (out / "overlays").mkdir(exist_ok=True)
    for stem in stems:
        image, reference = (
            volumes.read(test / "images" / f"{stem}.tif"),
            volumes.read_labels(test / "labels" / f"{stem}.tif"),
        )
        columns["image"].append(image)
        columns["reference"].append(reference)
        for arm, folders in made.items():
            if not folders:
                continue
            labels = volumes.read_labels(folders[0] / f"{stem}.tif")
            columns[arm].append(labels)
            if stem == stems[len(stems) // 2]:
                figures_segmentation.overlays(
                    out / "overlays" / f"{name}_{arm}.png", image, reference, labels,
                    overlap.matches(reference, labels), heading=f"{name} {stem}, trained on {arm}",
                )  # fmt: skip
    spacing = volumes.spacing_um(test / "images" / f"{stems[0]}.tif")
    aspect = spacing[0] / spacing[-1] if spacing and len(spacing) == 3 else 1.0
    masks = [title for title in columns if title != "image"]
    figures.specimens(out / f"sheet_{name}.png", columns, names=stems, aspect=aspect, labels=masks, heading=name)


def _draw_sweep(path: Path, result: dict, sweep: Mapping[str, str], title: str) -> None:
    panels = []
    for measure in MEASURES:
        lines = {}
        for name, entry in result["sets"].items():
            found = (entry["arms"].get(arm, {}).get(measure, {}).get("value", np.nan) for arm in sweep.values())
            lines[name] = np.array(list(found))
        places = np.arange(len(sweep))
        panels.append({"title": segment_totals.TITLES[measure], "x": places, "ticks": (places, list(sweep)),
                       "xlabel": "synthetic images per real one" if title == "ratio" else title,
                       "ylabel": "score on test images", "lines": lines})  # fmt: skip
    figures.curves(path, panels)


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
