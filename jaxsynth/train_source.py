"""Where the batches of a training run come from: what `train` asks of a source, and the source of unlabelled images.

A task names its source as SOURCE, a module with `open_source(config, saved, inherited)`; without it, this one.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import NamedSharding, Sharding

from jaxsynth import keys, train_start
from jaxsynth.data import intensity as intensities
from jaxsynth.data import stream, survey, volumes
from jaxsynth.errors import InputError

VAL_PATCHES = 16  # at least so many held-out patches, whatever the batch


@dataclasses.dataclass(frozen=True)
class Placing:
    """Where batches and what they are cut from lie on the devices: `split` is the batches', `replicated` the rest's."""

    split: NamedSharding
    replicated: Sharding


@dataclasses.dataclass(frozen=True)
class Source:
    """A run's batches, checked but not begun.

    Attributes:
      batch: a batch as shapes and dtypes, a pytree of jax.ShapeDtypeStruct with a leading axis B.
      held_bytes: what the source keeps in the device's memory.
      summary: what there is to train on, for the first line.
      held_out: whether validation has images of its own.
      begin: (key, first step, Placing) -> (endless batches from that step on, batches to validate on, a function that
        gives what of the run's metadata the source knows). A generator, so that `close` ends its threads.
      held_out_batch: the same of a batch to validate on, None where it is alike.
    """

    batch: Any
    held_bytes: int
    summary: str
    held_out: bool
    begin: Callable[[jax.Array, int, Placing], tuple[Iterator, list, Callable[[], dict]]]
    held_out_batch: Any = None


def open_source(config, saved: dict | None, inherited: dict | None = None) -> Source:
    """Patches of unlabelled images, see `data.stream.batches`; fills in config.data.patch where it is open.

    Args:
      saved: metadata of the run's checkpoint. inherited: of another run that it starts from. Their scale of brightness
        is kept.

    Raises:
      InputError: unusable images, or of another kind than before.
    """
    train_set, val_set = train_start.open_images(config)
    patch, batch_size = tuple(config.data.patch), config.data.batch_size  # the patch is filled in now
    intensity = known_intensity(config, train_set, saved or inherited)
    resident = stream.fits_on_device(train_set, config.data.device_limit_gib * 2**30)

    def begin(key, first, placing):
        scale = intensity or intensities.fit(lambda: volumes.each(train_set), config.data.normalization)
        options = {"patch": patch, "batch_size": batch_size}
        options |= {"split": placing.split, "replicated": placing.replicated}
        drawn = (train_set, scale, keys.stream(key, "patches"))
        symmetries = config.data.symmetries
        batches = stream.batches(*drawn, resident=resident, first_step=first, symmetries=symmetries, **options)
        held_out = (val_set or train_set, scale, keys.stream(key, "held out"))
        held_out = stream.batches(*held_out, resident=False, symmetries=False, **options)
        val_batches = list(itertools.islice(held_out, -(-VAL_PATCHES // batch_size)))
        held_out.close()

        return batches, val_batches, lambda: metadata(train_set, scale, saved)

    return Source(
        batch=jax.ShapeDtypeStruct((batch_size, *patch, 1), "float32"),
        held_bytes=resident * train_set.num_voxels * train_set.dtype.itemsize,
        summary=f"{len(train_set.paths)} training and {len(val_set.paths) if val_set else 0} held-out images "
        f"({train_set.ndim}D, {train_set.dtype}), "
        f"{'kept on the device' if resident else 'read from disk by background threads'}",
        held_out=val_set is not None,
        begin=begin,
    )


def known_intensity(config, train_set: volumes.VolumeSet, before: dict | None) -> intensities.Intensity | None:
    """The scale of brightness that metadata `before` holds; None without.

    Raises:
      InputError: it is of images of another dtype.
    """
    if not before:
        return None
    intensity = intensities.Intensity.from_dict(before["intensity"])
    if intensity.dtype != train_set.dtype.name:
        raise InputError(f"trained so far on {intensity.dtype} images, {config.data.path} is {train_set.dtype}")
    return intensity


def metadata(train_set: volumes.VolumeSet, scale: intensities.Intensity, saved: dict | None) -> dict:
    """What a checkpoint says of the images; of a run continued, the survey that `saved` holds."""
    lead = jax.process_index() == 0
    seen = survey.survey(train_set, scale) if lead and saved is None else None
    return {
        "intensity": scale.to_dict(),
        "spacing_um": train_set.spacing_um,
        "num_files": len(train_set.paths),
        "cells": saved["cells"] if saved else seen and dataclasses.asdict(seen),
    }
