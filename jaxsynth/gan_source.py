"""Where a GAN's batches come from: real images, and masks of label images or of specimens simulated where it trains."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxsynth import gan_measure, keys, specimens, train_source, train_start
from jaxsynth.data import intensity as intensities
from jaxsynth.data import pairs, stream, survey, unpaired, volumes
from jaxsynth.errors import InputError
from jaxsynth.sim import brightness, population, sketch, tissues
from jaxsynth.tasks import gan, gan_input
from jaxsynth.train_source import VAL_PATCHES, Placing, Source

IMAGE_PARTS, PARTS = ("image", "image_position", "image_mask"), ("mask", "position")


@dataclasses.dataclass(frozen=True)
class Masks:
    """Masks to be drawn from.

    Attributes:
      num_voxels, num_bytes: of what is kept on the device.
      summary: what they are.
      begin: Placing -> (key, first step, symmetries) -> endless (masks, position maps), float32 [B, *patch, 1] each.
    """

    num_voxels: int
    num_bytes: int
    summary: str
    begin: Callable[[Placing], Callable[[jax.Array, int, bool], Iterator]]


def open_source(config, saved: dict | None, inherited: dict | None = None) -> Source:
    """Patches of real images and of masks, drawn independently of each other; fills in what is open: data.patch, and
    what `gan_measure.measure` tells.

    A batch is "image" in [-1, 1] with its "image_position", "mask" in {0, 1} (sketches: in [0, 1]) with its "position"
    (paper 003, eq. 1), and where the critic is to see masks "image_mask": float32 [B, *patch, 1] each. Batch i depends
    on the key and i alone.

    Args:
      saved: metadata of the run's checkpoint. inherited: of another run that it starts from. Their scale of brightness
        is kept.

    Raises:
      InputError: unusable files or numbers, neither labels nor a recipe, or more than the device is to hold.
    """
    own, data = config.gan, config.data
    if own.mask not in unpaired.MASKS:
        raise InputError(f"unknown gan.mask {own.mask!r}: expected one of {', '.join(unpaired.MASKS)}")
    for name in ("alpha_vox", "beta_vox"):
        if not 0 < own[name] < math.inf:
            raise InputError(f"gan.{name}: expected a positive number of voxels, got {own[name]}")
    gan.build(config)  # says what makes no sense before minutes of reading
    for before in (saved, inherited):
        gan.check_version(before["config"].get("gan", {}) if before else {})
    if (own.grain or own.grain_correlation) and not config.model.noise_channel:
        raise InputError("gan.grain and its correlation are of the noise of model.noise_channel: set that, too")
    if own.labels and (own.shape or own.spacing_um):
        raise InputError("gan.shape and gan.spacing_um are those of specimens: they go with gan.recipe, not gan.labels")
    if bool(own.labels) == bool(own.recipe):
        raise InputError("expected either label images, gan.labels, or a recipe, gan.recipe, to make masks of")
    if own.critic_mask and not own.image_labels:
        raise InputError("gan.critic_mask: the critic sees the masks of real images, too: set gan.image_labels")
    train_set, val_set = train_start.open_images(config)
    if len(own.grain_correlation) not in (0, train_set.ndim):
        raise InputError(f"gan.grain_correlation: expected {train_set.ndim} numbers, got {own.grain_correlation}")
    known = train_source.known_intensity(config, train_set, saved or inherited)
    scale = known or intensities.fit(lambda: volumes.each(train_set), data.normalization)
    of_train, of_val = _label_files(config, train_set, val_set)
    labels_of = of_train and (lambda index, image: _labels_of(config, of_train[index], image))
    _keep_measured(own, saved)
    scale = gan_measure.measure(config, train_set, scale, labels_of)
    if own.mask == "sketch":  # what `sample` and `simulate --checkpoint` draw is as bright, too
        scale = dataclasses.replace(scale, levels=gan_input.sketch_levels(own))
    if own.recipe:
        masks = _from_recipe(config, train_set, scale, saved)
    else:
        masks = _from_files(config, train_set.spacing_um, scale)
    real = _images(config, train_set, scale, of_train)
    held_out = _images(config, val_set, scale, of_val) if val_set else real
    parts = (real, held_out, masks) if val_set else (real, masks)
    num_bytes = sum(part.num_bytes for part in parts)
    if num_bytes > data.device_limit_gib * 2**30 or max(part.num_voxels for part in parts) > stream.INT32_LIMIT:
        raise InputError(
            f"{data.path}: {num_bytes / 2**30:.1f} GiB of images, masks and distances are more than "
            f"data.device_limit_gib={data.device_limit_gib} (or 2^31 voxels); raise it, or train on fewer files"
        )
    patch, batch_size = tuple(data.patch), data.batch_size
    num_val = -(-VAL_PATCHES // batch_size)
    scales_vox = (own.alpha_vox, own.beta_vox)

    def begin(key, first, placing):
        cut = {"patch": patch, "batch_size": batch_size, "scales_vox": scales_vox, "split": placing.split}
        draw = masks.begin(placing)
        on_device = unpaired.place(real, placing.replicated)

        def batches(own_key, domain, first, symmetries):
            images = unpaired.batches(
                domain, keys.stream(own_key, "images"), lambda x, _: intensities.normalise(x, scale),
                first_step=first, symmetries=symmetries, **cut,
            )  # fmt: skip
            drawn = draw(keys.stream(own_key, "masks"), first, symmetries)
            with contextlib.closing(images), contextlib.closing(drawn):
                for of_image, of_mask in zip(images, drawn, strict=True):
                    yield dict(zip(IMAGE_PARTS, of_image, strict=False)) | dict(zip(PARTS, of_mask, strict=True))

        fixed_on = unpaired.place(held_out, placing.replicated) if val_set else on_device
        fixed = batches(keys.stream(key, "held out"), fixed_on, 0, False)
        several = list(itertools.islice(fixed, num_val))
        fixed.close()
        # As one batch: what is compared is how often grey values and frequencies are, over all patches.
        join = jax.jit(lambda *parts: jnp.concatenate(parts), out_shardings=placing.split)
        val_batches = [jax.tree.map(join, *several)]
        coming = batches(keys.stream(key, "patches"), on_device, first, data.symmetries)
        return coming, val_batches, lambda: train_source.metadata(train_set, scale, saved)

    return Source(
        batch=_batch(config, batch_size),
        held_out_batch=_batch(config, num_val * batch_size),
        held_bytes=num_bytes,
        summary=f"{len(train_set.paths)} training and {len(val_set.paths) if val_set else 0} held-out images "
        f"({train_set.ndim}D, {train_set.dtype}), where they show the organism told by "
        f"{'their labels' if of_train else 'their brightness'}; {masks.summary}",
        held_out=val_set is not None,
        begin=begin,
    )


def _labels_of(config, file, image: np.ndarray) -> np.ndarray:
    labels = _read_labels(config, file)
    if labels.shape != image.shape:
        raise InputError(f"{file}: labels {labels.shape} and image {image.shape} differ in shape")
    return labels


def _batch(config, size: int) -> dict:
    names = (*IMAGE_PARTS[: 2 + config.gan.critic_mask], *PARTS)
    return {name: jax.ShapeDtypeStruct((size, *config.data.patch, 1), "float32") for name in names}


def _keep_measured(own, saved: dict | None) -> None:
    """Fills in what is open of config.gan and was measured when the run began, which goes on from there."""
    before = saved["config"].get("gan", {}) if saved else {}
    for name in gan_measure.MEASURED:
        if not own[name] and isinstance(before.get(name), list):  # a number is of an earlier version
            own[name] = _tuples(before[name])


def _tuples(rows):
    return tuple(map(_tuples, rows)) if isinstance(rows, list) else rows


def _label_files(config, train_set, val_set) -> tuple[list | None, list | None]:
    """The label files of the images trained on and held out; None where the images have none."""
    own, data = config.gan, config.data
    if own.val_image_labels and not data.val_path:
        raise InputError("gan.val_image_labels: there is no data.val_path whose labels these would be")
    if not own.image_labels:
        if own.val_image_labels:
            raise InputError("gan.val_image_labels: give gan.image_labels, too")
        return None, None
    matched = pairs.match(data.path, own.image_labels)
    if data.val_path:
        if not own.val_image_labels:
            raise InputError("held-out images have no labels: set --config.gan.val_image_labels=FOLDER")
        matched |= pairs.match(data.val_path, own.val_image_labels)
    return tuple([matched[path] for path in some.paths] if some else [] for some in (train_set, val_set))


def _read_labels(config, file) -> np.ndarray:
    labels = volumes.read_labels(file, dataset=config.gan.dataset)
    return np.where(labels == config.gan.background_label, 0, labels).astype(np.int32)


def _images(config, opened: volumes.VolumeSet, scale, files: list | None) -> unpaired.Domain:
    """Images as their files have them, and how far from the organism's boundary their voxels are."""
    values, distances, masks = [], [], []
    for index, image in enumerate(volumes.each(opened)):
        values.append(image)
        if files is None:
            distances.append(unpaired.of_image(np.asarray(intensities.normalise(image, scale)), opened.spacing_um))
            continue
        labels = _labels_of(config, files[index], image)
        distances.append(unpaired.distances(labels, opened.spacing_um))
        if config.gan.critic_mask and config.gan.mask == "sketch":
            grey = (np.asarray(intensities.normalise(image, scale)) + 1) / 2
            background = None if scale.backgrounds else gan_input.levels_of(config.gan)[0]
            masks.append(gan_measure.sketch_of(labels, grey, background))
        elif config.gan.critic_mask:
            masks.append(unpaired.mask(labels, opened.spacing_um, config.gan.mask))
    return unpaired.Domain(tuple(values), tuple(distances), tuple(masks))


def _from_files(config, image_spacing_um, scale) -> Masks:
    """Masks of label images; their voxel size is data.spacing_um, else their own, else that of the images."""
    own, data, patch = config.gan, config.data, tuple(config.data.patch)
    files = volumes.find_files(pairs.places(own.labels))
    values, distances, num_cells = [], [], 0
    for file in files:
        labels = _read_labels(config, file)
        if labels.ndim != len(patch):
            raise InputError(f"{file}: expected {len(patch)}D labels, as the images are; got {labels.ndim}D")
        if not data.allow_padding and any(np.less(labels.shape, patch)):
            raise InputError(f"{file}: labels {labels.shape} are smaller than the patch {patch} and padding is refused")
        spacing_um = tuple(data.spacing_um) or volumes.spacing_um(file, dataset=own.dataset) or image_spacing_um
        mask, far = unpaired.of_labels(labels, spacing_um, own.mask)
        values.append(mask)
        distances.append(far)
        num_cells += len(np.unique(labels[labels > 0]))
    if not num_cells:
        raise InputError(f"{own.labels}: no label image has a cell")
    domain = unpaired.Domain(tuple(values), tuple(distances))
    most = max(int(ranks.max()) for ranks in values)

    def finish(drawn, key):
        if own.mask != "sketch":
            return drawn.astype(jnp.float32)
        return jax.vmap(draw_one)(drawn, jax.random.split(key, len(drawn)))

    def draw_one(ranks, key):
        # Cells and background are of another brightness in every patch.
        bright = brightness.of_ranks(key, most, scale.brightness, scale.backgrounds)
        drawn = sketch.sketch(ranks.astype(jnp.int32), bright, levels=gan_input.sketch_levels(own))
        return (drawn + 1) / 2

    cut = {"patch": patch, "batch_size": data.batch_size, "scales_vox": (own.alpha_vox, own.beta_vox)}

    def begin(placing):
        held = unpaired.place(domain, placing.replicated)

        def draw(key, first, symmetries):
            options = cut | {"first_step": first, "symmetries": symmetries, "split": placing.split}
            return unpaired.batches(held, key, finish, **options)

        return draw

    return Masks(domain.num_voxels, domain.num_bytes, f"masks of {len(files)} label images, {num_cells} cells", begin)


def _from_recipe(config, train_set: volumes.VolumeSet, scale, saved: dict | None) -> Masks:
    """Masks of specimens, drawn as `jaxsynth.sample` draws them for this run."""
    own, data, patch = config.gan, config.data, tuple(config.data.patch)
    batch_size = data.batch_size
    if own.reuse < 1:
        raise InputError(f"gan.reuse must be at least 1, got {own.reuse}")
    found = tissues.find(own.recipe)
    gan_input.check_recipe(own.mask, found)
    cells = saved["cells"] if saved else None
    if not saved and own.recipe == "nuclei":  # the only one whose cells get the size of those in the images
        seen = survey.survey(train_set, scale)
        cells = seen and dataclasses.asdict(seen)
    metadata = {"config": {"data": {"patch": patch}}, "spacing_um": train_set.spacing_um, "cells": cells}
    plan = specimens.plan(own.recipe, tuple(own.shape) or None, tuple(own.spacing_um) or None, None, metadata)
    if not data.allow_padding and any(np.less(plan.shape, patch)):
        raise InputError(f"gan.shape: {plan.shape} is smaller than the patch {patch} and padding is refused")
    num_range = plan.num_range or tissues.num_cells_range(found, plan.shape, plan.drawn_at_um)
    levels = gan_input.sketch_levels(own)
    given = population.as_bright_as(scale.brightness, scale.backgrounds)

    def begin(placing):
        # Specimens are split over devices by rows alone, patches also along y.
        rows = NamedSharding(placing.split.mesh, PartitionSpec(placing.split.spec[0]))

        def draw(key, first, symmetries):
            def batch(mask, position, step):
                at = stream.draw(keys.stream(key, "patch", step), np.asarray([plan.shape]), patch, batch_size)

                def one(mask, position, start, symmetry):
                    both = (mask.ravel(), position.ravel())
                    shape = jnp.asarray(plan.shape, jnp.int32)
                    return unpaired.cut_one(both, jnp.int32(0), shape, start, symmetry, patch, symmetries)

                cut = jax.vmap(one)(mask, position, at.start, at.symmetry)
                return tuple(part[..., None].astype(jnp.float32) for part in cut)

            batch = jax.jit(batch, out_shardings=placing.split)
            number, step = divmod(first, own.reuse)
            simulated = stream.simulated(
                found, key, shape=plan.shape, batch_size=batch_size, spacing_um=plan.drawn_at_um,
                num_range=num_range if found.num_cells else None, maps=("walls", "position"), levels=levels,
                given=given, scales_vox=(own.alpha_vox, own.beta_vox), first_step=number, split=rows,
            )  # fmt: skip
            for made in simulated:
                shown = {"boundary": made.maps["walls"], "cells": made.labels > 0, "sketch": (made.sketch + 1) / 2}
                mask = shown[own.mask]
                for again in range(step, own.reuse):
                    yield batch(mask, made.maps["position"], number * own.reuse + again)
                number, step = number + 1, 0

        return draw

    return Masks(0, 0, f"masks of specimens of {plan.recipe}, {plan.shape} voxels, {own.reuse} steps each", begin)
