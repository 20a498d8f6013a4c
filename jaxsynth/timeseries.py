"""Time series in the Cell Tracking Challenge's layout: `jaxsynth.simulate --recipe NAME --frames T`.

The cells of a recipe's specimen live on (`sim.lineage`): they move, grow, divide and die. They are ellipsoids; where
the recipe bends its cells each gets a bend of its own, fixed in the axes of the image, and the rough outlines of
harmonics are left out.
"""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsynth import keys, outputs, recipe_files, specimens
from jaxsynth.data import tracks, volumes
from jaxsynth.errors import InputError
from jaxsynth.records import Cells, Specimen
from jaxsynth.sim import deform, ellipsoids, lineage, microscope, population, raster, tissues, views
from jaxsynth.sim.sketch import LEVELS

CYCLE_FRAMES, STEP = 20.0, 0.06  # STEP: motion per frame, relative to the typical radius


def make(args) -> None:
    """Makes the sequences that `args` (see `jaxsynth.simulate`) describes.

    Raises:
      InputError: unusable arguments or files, or more tracks than the layout has labels; of the first nothing has
        been written then.
    """
    recipe = tissues.find(args.recipe)
    if recipe.populate is None or recipe.extent == "map":
        raise InputError(f"--frames: goes with recipes of nuclei that are no map; not with {args.recipe}")
    if args.num > 99:
        raise InputError(f"--num: the layout numbers sequences 01 to 99; got {args.num}")
    metadata = outputs.metadata(args)
    plan = recipe_files.plan_of(args, metadata)
    intensity, brightness, told = recipe_files.fit_brightness(args, outputs.intensity(metadata))
    levels = tuple(brightness.levels if brightness else intensity.levels if intensity else LEVELS)
    given, model, settings = recipe_files.read_given(args, plan, brightness)
    psf, seen_through = recipe_files.read_psf(args, plan)
    rates = {
        "cycle_frames": CYCLE_FRAMES if args.cycle_frames is None else args.cycle_frames,
        "step_um": STEP * recipe.radius_um if args.step_um is None else args.step_um,
        "death_rate": args.death_rate or 0.0,
    }
    root, num_frames = keys.root(args.seed), args.frames
    sequences = {f"{number + 1:02d}": number for number in range(args.num)}
    folders = [folder for name in sequences for folder in _folders(name)]

    def names(out: Path, name: str) -> tracks.Names:
        return tracks.ctc_names(out, sequences[name] + 1, num_frames)

    def sketch_file(out: Path, name: str, frame: int) -> Path:
        return out / _folders(name)[-1] / names(out, name).image(frame).name

    def there(out: Path, name: str) -> bool:
        files = names(out, name)
        return files.table.is_file() and all(
            place.is_file()
            for frame in range(num_frames)
            for place in (
                files.image(frame),
                files.tracking(frame),
                files.segmentation(frame),
                sketch_file(out, name, frame),
            )
        )

    def make_one(out: Path, name: str) -> dict:
        key = keys.stream(root, outputs.STREAM, name)
        own, background = population.exposed(keys.stream(key, "cells"), given)
        life, site, asked = live(key, recipe, plan, num_frames, given=own, model=model, **rates)
        files = names(out, name)

        def labels_of(frame: int) -> jax.Array:
            nonlocal site
            while True:
                labels, crowded = _labels(key, life, frame, recipe=recipe, site=site)
                if not bool(crowded):
                    return labels
                site = tissues.more_room(site, True, False)

        # First what is seen where, as a track that is out of sight for a while takes another label; then the files.
        seen = [np.unique(labels_of(frame)) for frame in range(num_frames)]
        found = tracks.track_table(seen, np.asarray(life.parent))
        tracks.check_tracks(found.rows, (lookup[ids] for lookup, ids in zip(found.labels, seen, strict=True)))
        for frame in range(num_frames):
            labels = labels_of(frame)
            sketch, image = _views(key, labels, life, frame, background, psf, recipe=recipe, site=site, levels=levels)
            true = tracks.relabel(np.asarray(labels), found.labels[frame])
            for file, volume in (
                (files.image(frame), recipe_files.camera(image)),
                (files.tracking(frame), true),
                (files.segmentation(frame), true),
                (sketch_file(out, name, frame), np.asarray(sketch)),
            ):
                volumes.write(file, volume, spacing_um=plan.spacing_um)
        tracks.write_tracks(files.table, found.rows)
        placed = int(jnp.sum(life.cells.valid[0]))
        if placed < asked:
            print(f"{name}: no room for all cells in the first frame, placed {placed} of {asked}")
        return {"num_asked": asked, "num_placed": placed, "num_tracks": len(found.rows),
                "num_cells": [int(np.sum(ids > 0)) for ids in seen],
                "closest_um": round(float(jnp.max(life.overlap_um)), 3)}  # fmt: skip

    def preview(path: Path) -> None:
        _preview(path, names(path.parent, "01"), functools.partial(sketch_file, path.parent, "01"), num_frames)

    settings = {**recipe_files.plan_settings(args, plan), "levels": list(levels), "frames": num_frames,
                **{name: "inf" if value == math.inf else value for name, value in rates.items()},
                **settings, **told, **seen_through}  # fmt: skip
    outputs.make(args, settings, list(sequences), folders, make_one, what=f"sequence(s) of {num_frames} frames",
                 intensity=intensity, there=there, preview=preview)  # fmt: skip


def _folders(name: str) -> tuple[str, ...]:
    return name, f"{name}_GT/TRA", f"{name}_GT/SEG", f"{name}_sketches"


def live(
    key: jax.Array,
    recipe: tissues.Recipe,
    plan: specimens.Specimens,
    num_frames: int,
    *,
    given: tissues.Given = tissues.NOTHING,
    model=None,
    cycle_frames: float = CYCLE_FRAMES,
    step_um: float = 0.3,
    death_rate: float = 0.0,
) -> tuple[lineage.Lineage, tissues.Site, int]:
    """A population from the recipe's first frame on, with slots for all its cells; the site to draw it at; and how many
    cells the first frame was to have.

    Args:
      key: the specimen's.
      cycle_frames, step_um, death_rate: as `lineage.simulate_lineage` has them; the velocity has the step's spread.
    """
    num_range = plan.num_range or tissues.num_cells_range(recipe, plan.shape, plan.drawn_at_um)
    most = num_range[1] if plan.num_cells is None else plan.num_cells
    site = tissues.make_site(recipe, plan.shape, plan.drawn_at_um, most)
    growth = 2 ** (1 + num_frames / max(cycle_frames, 1.0)) - 1
    capacity = 64 * math.ceil(max(site.max_cells, min(1.2 * most * growth, 2 * tracks.MOST)) / 64)
    count = jnp.int32(-1 if plan.num_cells is None else plan.num_cells)
    rates = jnp.asarray([cycle_frames, step_um, death_rate], jnp.float32)
    while True:
        life, asked = _live(key, count, given, model, rates, recipe=recipe, site=site, num_range=num_range,
                     num_frames=num_frames, capacity=capacity)  # fmt: skip
        if not bool(life.overflow):
            return life, site, int(asked)
        if capacity > tracks.MOST:
            raise InputError(f"--frames: more than {tracks.MOST} cells; fewer frames, or a longer --cycle_frames")
        capacity *= 2


@functools.partial(jax.jit, static_argnames=("recipe", "site", "num_range", "num_frames", "capacity"))
def _live(key, num_cells, given, model, rates, *, recipe, site, num_range, num_frames, capacity) -> tuple:
    number = jax.random.randint(keys.stream(key, "num_cells"), (), num_range[0], num_range[1] + 1)
    number = jnp.where(num_cells < 0, number, num_cells)
    given = specimens.with_organism(key, given, model)
    first = recipe.populate(keys.stream(key, "cells"), number, site, given)
    # In a field cells leave over the edge; an organism, or what the user marks, holds them.
    region = population.region(site, given, first.foreground if recipe.extent == "organism" else None)
    contains = None if region is None else lambda points_um: region.contains(tuple(points_um.T))
    cycle_frames, step_um, death_rate = rates
    life = lineage.simulate_lineage(
        keys.stream(key, "life"), first.cells, site.size_um, num_frames, capacity, contains=contains,
        cycle_frames=cycle_frames, step_um=step_um, speed_um=step_um, death_rate=death_rate,
    )  # fmt: skip
    return life, number


@functools.partial(jax.jit, static_argnames=("recipe", "site"))
def _labels(key, life, frame, *, recipe, site) -> tuple[jax.Array, jax.Array]:
    """Labels int32 [*S] of one frame, and whether some block of voxels was too crowded."""
    cells = lineage.frame(life, frame)
    value, reach_um = ellipsoids.value(cells), ellipsoids.extent_um(cells)
    if recipe.bend:
        control = deform.cell_bend(keys.stream(key, "bend"), *cells.centre_um.shape, recipe.bend)
        value, reach_um = deform.bent_value(value, reach_um, control)
    return raster.owners(value, cells.centre_um, reach_um, cells.valid, site.shape,
                         jnp.asarray(site.spacing_um, jnp.float32), per_block=site.per_block)  # fmt: skip


@functools.partial(jax.jit, static_argnames=("recipe", "site", "levels"))
def _views(key, labels, life, frame, background, psf, *, recipe, site, levels) -> tuple[jax.Array, jax.Array]:
    """Sketch and camera counts of one frame, float32 [*S]. Grains and nucleoli stay where they are, noise does not."""
    cells: Cells = lineage.frame(life, frame)
    nothing = jnp.zeros((), bool)
    made = Specimen(labels, jnp.concatenate([background[None], cells.brightness]), 0, 0, nothing, nothing, cells=cells)
    sketch = views.sketch(keys.stream(key, "sketch"), made, site.spacing_um, nucleoli=recipe.nucleoli, levels=levels)
    image = microscope.image(
        keys.stream(key, "render", frame),
        views.light(keys.stream(key, "render"), made, site.spacing_um),
        site.spacing_um,
        psf_sigma_um=recipe.psf_sigma_um[-len(site.shape) :],
        psf=psf,
        shading=0.0,  # it would be another one in every frame
    )
    return sketch, image


def _preview(path: Path, files: tracks.Names, sketch_file, num_frames: int) -> None:
    """The first sequence's frames from first to last."""
    from jaxsynth import figures

    shown = sorted({round(i * (num_frames - 1) / 3) for i in range(4)})
    spacing = volumes.spacing_um(files.image(0))
    columns = {"labels": [volumes.read_labels(files.tracking(frame)) for frame in shown],
               "sketch": [volumes.read(sketch_file(frame)) for frame in shown],
               "image": [volumes.read(files.image(frame)) for frame in shown]}  # fmt: skip
    aspect = spacing[0] / spacing[-1] if spacing is not None and len(spacing) == 3 else 1.0
    figures.specimens(path, columns, names=[f"frame {frame}" for frame in shown], aspect=aspect)
