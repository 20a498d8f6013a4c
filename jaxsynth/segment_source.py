"""Where a segmentation network's batches come from: annotated files, or specimens simulated where it trains."""

import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsynth import devices, keys, specimens, train_start, trained
from jaxsynth.data import intensity as intensities
from jaxsynth.data import pairs, stream, volumes
from jaxsynth.errors import InputError
from jaxsynth.sim import tissues
from jaxsynth.sim.sketch import LEVELS
from jaxsynth.tasks import flowseg
from jaxsynth.train_source import VAL_PATCHES, Source

ROOM = 1.5  # edge of a specimen over that of a patch


def open_source(config, saved: dict | None, inherited: None = None) -> Source:
    """Batches as `data.pairs.batches` describes them; fills in data.patch, seg.scale and seg.capacity where open.

    Args:
      saved: metadata of the run's checkpoint, whose scale is kept. inherited: not used.

    Raises:
      InputError: unusable files or numbers, or neither files nor a recipe.
    """
    if saved and not config.seg.scale:  # the task is the same, or it would not have come so far
        config.seg.scale = tuple(saved["config"]["seg"]["scale"])
    if bool(config.data.path) == bool(config.seg.recipe):
        raise InputError("expected either images, data.path with seg.labels, or a recipe, seg.recipe, to train on")
    return _from_recipe(config) if config.seg.recipe else _from_files(config)


def _from_files(config) -> Source:
    data, select = config.data, _select(config)
    if not config.seg.labels:
        raise InputError("no labels given: set --labels FOLDER (--config.seg.labels)")
    opened, files = pairs.open_pairs(data.path, config.seg.labels, **select)
    labels = pairs.read_label_files(opened, files, config.seg.dataset)
    if data.val_path:
        if not config.seg.val_labels:
            raise InputError("held-out images have no labels: set --val_labels FOLDER (--config.seg.val_labels)")
        held_set, held_files = pairs.open_pairs(data.val_path, config.seg.val_labels, **select)
        if held_set.ndim != opened.ndim:
            raise InputError(f"data.val_path holds {held_set.ndim}D images, data.path {opened.ndim}D")
        held_labels = pairs.read_label_files(held_set, held_files, config.seg.dataset)
    else:
        held = _last_of_each_folder(opened, data.val_fraction)
        held_set, held_labels = volumes.subset(opened, held), [labels[i] for i in held]
        left = [i for i in range(len(labels)) if i not in set(held)]
        opened, labels = volumes.subset(opened, left), [labels[i] for i in left]
    extent = pairs.cell_extent(labels)
    if extent is None:
        raise InputError(f"{config.seg.labels}: no image has a cell")
    _fill_in(config, opened.ndim, extent)
    train_set = pairs.prepare(opened, labels, config.seg.scale, data.normalization)
    held_out = pairs.prepare(held_set, held_labels, config.seg.scale, data.normalization) if held_labels else train_set
    most = max(train_set.most_cells, held_out.most_cells)
    if 0 < config.seg.capacity < most:
        raise InputError(f"seg.capacity={config.seg.capacity}: there are images of {most} cells; leave it at 0")
    config.seg.capacity = config.seg.capacity or most
    limit = data.device_limit_gib * 2**30
    if train_set.num_bytes > limit:
        raise InputError(
            f"{data.path}: {train_set.num_bytes / 2**30:.1f} GiB of images and labels are more than "
            f"data.device_limit_gib={data.device_limit_gib}; raise it, or train on fewer images"
        )
    augmentation = flowseg.augmentation(config)
    patch, batch_size = tuple(data.patch), data.batch_size

    def begin(key, first, placing):
        options = {"patch": patch, "batch_size": batch_size, "split": placing.split, "replicated": placing.replicated}
        own = keys.stream(key, "patches")
        batches = pairs.batches(train_set, own, first_step=first, augmentation=augmentation, **options)
        own = keys.stream(key, "held out")
        fixed = pairs.batches(held_out, own, augmentation=None, **options)
        val_batches = list(itertools.islice(fixed, -(-VAL_PATCHES // batch_size)))
        return batches, val_batches, lambda: _metadata(opened.spacing_um, len(opened.paths), extent)

    num_cells = sum(len(np.unique(own[own > 0])) for own in labels)
    return Source(
        batch=_batch(batch_size, patch),
        held_bytes=train_set.num_bytes,
        summary=f"{len(labels)} training and {len(held_labels)} held-out images ({opened.ndim}D, {opened.dtype}), "
        f"{num_cells} cells to learn from, {_sizes(extent)} voxels{_shrunk(config)}",
        held_out=bool(held_labels),
        begin=begin,
    )


def _from_recipe(config) -> Source:
    seg, data = config.seg, config.data
    mesh = devices.mesh_for(data.batch_size, config.optim.accumulate, config.parallel.space)
    model = trained.open_trained(seg.checkpoint, mesh=mesh) if seg.checkpoint else None
    metadata = model and model.metadata
    shape, spacing = tuple(seg.shape) or None, tuple(seg.spacing_um) or None
    plan = specimens.plan(seg.recipe, shape, spacing, None, metadata)
    found = tissues.find(plan.recipe)
    ndim = len(plan.shape)
    drawn = tissues.simulate(keys.root(config.seed), found, plan.shape, spacing_um=plan.drawn_at_um)
    extent = pairs.cell_extent([np.asarray(drawn.labels)])
    if extent is None:
        raise InputError(f"seg.recipe {seg.recipe}: a specimen of {plan.shape} voxels has no cell")
    _fill_in(config, ndim, extent)
    scale, patch, batch_size = tuple(seg.scale), tuple(data.patch), data.batch_size
    if not shape and found.extent == "field":
        # A piece of the field somewhat larger than a patch: more of it would be rendered and not seen.
        needed = [math.ceil(ROOM * n / factor / 8) * 8 for n, factor in zip(patch, scale, strict=True)]
        plan = specimens.plan(seg.recipe, tuple(needed), spacing, None, metadata)
    low, high = plan.num_range or tissues.num_cells_range(found, plan.shape, plan.drawn_at_um)
    site = tissues.make_site(found, plan.shape, plan.drawn_at_um, high)
    seg.capacity = seg.capacity or 4 * site.max_cells  # twice as many slots are taken where cells found none, and again
    if seg.reuse < 1:
        raise InputError(f"seg.reuse must be at least 1, got {seg.reuse}")
    sampling = model and trained.make_plan(model, min(seg.t_start, model.t_max), None, seg.num_evaluations)
    render = trained.batch_generator(model) if model else None
    levels = model.intensity.levels if model else LEVELS
    small = pairs.shrunk_shape(plan.shape, scale)
    small_labels = [
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1) for n, m in zip(small, plan.shape, strict=True)
    ]

    @jax.jit
    def finish(images, labels):
        def one(image, own):
            image = intensities.in_units(image, model.intensity) if model else image
            image = pairs.scaled(image, data.normalization)
            image = jax.image.resize(image, small, "linear", antialias=True) if small != plan.shape else image
            return image, own[jnp.ix_(*small_labels)]

        return jax.vmap(one)(images, labels)

    def generations(key, first, split):
        """Specimens as the network gets them: (images float32 [B, *S], labels int32 [B, *S]) without end."""
        simulated = stream.simulated(
            found, key, shape=plan.shape, batch_size=batch_size, spacing_um=plan.drawn_at_um,
            num_range=(low, high) if found.num_cells else None, levels=tuple(levels),
            maps=() if model else ("image",), first_step=first, split=split,
        )  # fmt: skip
        for number in itertools.count(first):
            made = next(simulated)
            if model is None:
                yield finish(made.maps["image"], made.labels)
                continue
            own = jax.vmap(lambda row, number=number: keys.stream(key, "image", number, row))(jnp.arange(batch_size))
            yield finish(render(own, made.sketch, sampling, sigma=1.0), made.labels)

    def batches_of(key, augmentation, first, placing, reuse):
        cut = pairs.cutter(patch, augmentation)

        def batch(images, labels, step):
            def one(image, own, row):
                key_of = keys.stream(key, "patch", step, row)
                return cut(key_of, image.ravel(), own.ravel(), jnp.int32(0), jnp.asarray(small, jnp.int32))

            return jax.vmap(one)(images, labels, jnp.arange(batch_size))

        batch = jax.jit(batch, out_shardings={"image": placing.split, "labels": placing.split})
        number, step = divmod(first, reuse)
        # Specimens are split over devices by rows alone, patches also along y.
        rows = jax.sharding.NamedSharding(placing.split.mesh, jax.sharding.PartitionSpec(placing.split.spec[0]))
        for images, labels in generations(key, number, rows):
            for own in range(step, reuse):
                yield batch(images, labels, number * reuse + own)
            number, step = number + 1, 0

    augmentation = flowseg.augmentation(config)

    def begin(key, first, placing):
        batches = batches_of(keys.stream(key, "patches"), augmentation, first, placing, seg.reuse)
        fixed = batches_of(keys.stream(key, "held out"), None, 0, placing, 1)
        val_batches = list(itertools.islice(fixed, -(-VAL_PATCHES // batch_size)))
        fixed.close()
        return batches, val_batches, lambda: _metadata(plan.spacing_um, 0, extent)

    by = f"rendered by {Path(seg.checkpoint)}" if model else "under the embedded microscope"
    return Source(
        batch=_batch(batch_size, patch),
        held_bytes=0,
        summary=f"specimens of {plan.recipe}, {plan.shape} voxels, {by}, {seg.reuse} steps each; cells of "
        f"{_sizes(extent)} voxels{_shrunk(config)}",
        held_out=True,
        begin=begin,
    )


def _select(config) -> dict:
    data = config.data
    channel = None if data.channel < 0 else data.channel
    return {"channel": channel, "dataset": data.dataset, "spacing_um": tuple(data.spacing_um) or None}


def _last_of_each_folder(opened: volumes.VolumeSet, fraction: float) -> list[int]:
    """Which images are held out: the last of every folder, as neighbouring frames of a series are nearly the same."""
    if not 0 <= fraction < 1:
        raise InputError(f"data.val_fraction must lie in [0, 1), got {fraction}")
    folders: dict[Path, list[int]] = {}
    for index, path in enumerate(opened.paths):
        folders.setdefault(path.parent, []).append(index)
    held = []
    for own in folders.values():
        count = min(max(round(fraction * len(own)), 1 if fraction else 0), len(own) - 1)
        held += own[len(own) - count :] if count else []
    return sorted(held)


def _fill_in(config, ndim: int, extent) -> None:
    """Sets data.patch and seg.scale where they are open, and checks both."""
    data, seg = config.data, config.seg
    if data.normalization not in pairs.PERCENTILES:
        told = ", ".join(pairs.PERCENTILES)
        raise InputError(f"data.normalization: segmentation knows {told}; got {data.normalization!r}")
    if not seg.diameter_vox >= 0:
        raise InputError(f"seg.diameter_vox must be 0 or more, got {seg.diameter_vox}")
    data.patch = tuple(data.patch) or train_start.PATCHES[ndim]
    if len(data.patch) != ndim or any(size < 8 for size in data.patch):
        raise InputError(f"data.patch must have {ndim} sizes of 8 or more for {ndim}D images, got {tuple(data.patch)}")
    seg.scale = tuple(round(float(s), 4) for s in seg.scale or pairs.choose_scale(extent, seg.diameter_vox))
    if len(seg.scale) != ndim or not all(0 < factor <= 1 for factor in seg.scale):
        raise InputError(f"seg.scale must have {ndim} numbers in (0, 1], got {tuple(seg.scale)}")


def _batch(batch_size: int, patch: tuple[int, ...]) -> dict:
    return {
        "image": jax.ShapeDtypeStruct((batch_size, *patch, 1), "float32"),
        "labels": jax.ShapeDtypeStruct((batch_size, *patch), "int32"),
    }


def _metadata(spacing_um, num_files: int, extent) -> dict:
    return {"intensity": None, "spacing_um": spacing_um, "num_files": num_files, "cells": {"extent_vox": extent}}


def _sizes(extent) -> str:
    return " x ".join(f"{size:.0f}" for size in extent)


def _shrunk(config) -> str:
    scale = tuple(config.seg.scale)
    return "" if min(scale) == 1 else f", seen at {', '.join(f'{factor:.2f}' for factor in scale)} of their size"
