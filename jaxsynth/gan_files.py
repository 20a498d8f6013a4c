"""What a trained GAN makes images of: masks and position maps of label images, or of simulated specimens."""

import functools
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsynth import keys, specimens, trained
from jaxsynth.data import volumes
from jaxsynth.errors import InputError
from jaxsynth.image_files import ImageJob
from jaxsynth.records import Specimen
from jaxsynth.sim import brightness, population, sketch, tissues
from jaxsynth.tasks import gan_input


def labelled(
    model: trained.Trained,
    root: jax.Array,
    files: Iterable[Path],
    alpha_vox: float | None = None,
    beta_vox: float | None = None,
    background_label: int | None = None,
) -> list[ImageJob]:
    """Jobs of label images; cells of sketches get a brightness by chance, as in training and in
    `jaxsynth.simulate --labels`.

    Args:
      alpha_vox, beta_vox: scales of the position map (paper 003, eq. 1), voxels along x; None: as in training.
      background_label: what is 0 in the labels that are written; None: the training's.

    Raises:
      InputError: two files of one name, or one of another rank than the model.
    """

    own = model.config.gan
    ground = own.background_label if background_label is None else background_label

    def draw(name, file, device=None):
        labels = volumes.read_labels(file, dataset=own.dataset)
        labels = np.where(labels == ground, 0, labels).astype(np.int32)
        spacing_um = volumes.spacing_um(file, dataset=own.dataset) or model.metadata["spacing_um"]
        with jax.default_device(device):
            ranks, _, capacity = brightness.ranked(labels)
            own_key, seen = keys.stream(root, "simulate", name), model.intensity
            bright = brightness.of_ranks(own_key, capacity, seen.brightness, seen.backgrounds)
            made = Specimen(jnp.asarray(ranks), bright, *(0,) * 4)
            return labels, np.asarray(_maps(made, *_settings(model, spacing_um, alpha_vox, beta_vox))), spacing_um

    jobs = []
    for name, file in volumes.by_name(files, "--labels").items():
        shape = volumes.read_labels(file, dataset=own.dataset).shape
        if len(shape) != model.ndim:
            raise InputError(f"{file}: expected {model.ndim}D labels, as the model's images are; got {len(shape)}D")
        jobs.append(ImageJob(name, shape, functools.partial(draw, name, file)))
    return jobs


def sketched(model: trained.Trained, jobs: Iterable[ImageJob], alpha_vox: float, beta_vox: float) -> list[ImageJob]:
    """Jobs whose sketches and labels come from files, with these labels' position maps; scales as in `labelled`.

    Their background is even, at its median, and no darker and no brighter than in training: the generator has seen no
    other.
    """
    low, high = gan_input.background_range(model.config.gan, model.intensity)

    def draw(job, device=None):
        labels, drawn, spacing_um = job.draw(device)
        kind, step, alpha_um, beta_um, levels = _settings(model, spacing_um, alpha_vox, beta_vox)
        ground = drawn[labels == 0]
        grey = np.clip(np.median(ground), low, high) if ground.size else low
        drawn = np.where(labels == 0, np.float32(grey), drawn)
        with jax.default_device(device):
            made = Specimen(jnp.asarray(labels, jnp.int32), jnp.zeros(1), *(0,) * 4)
            maps = _position(made, step, _wanted(kind, alpha_um, beta_um, levels))
            return labels, np.asarray(_stacked(made.labels, jnp.asarray(drawn), maps, kind)), spacing_um

    return [ImageJob(job.name, job.shape, functools.partial(draw, job)) for job in jobs]


_position = jax.jit(specimens.maps, static_argnums=(1, 2))


def simulated(
    model: trained.Trained,
    root: jax.Array,
    recipe: specimens.Specimens,
    names: Iterable[str],
    alpha_vox: float | None = None,
    beta_vox: float | None = None,
) -> list[ImageJob]:
    """Jobs that simulate their cells; `alpha_vox`, `beta_vox`: as in `labelled`.

    Raises:
      InputError: sketches of membranes.
    """
    kind, _, *how = _settings(model, recipe.drawn_at_um, alpha_vox, beta_vox)
    gan_input.check_recipe(kind, tissues.find(recipe.recipe))
    drawer = specimens.drawer(recipe, _wanted(kind, *how))
    given = population.as_bright_as(model.intensity.brightness, model.intensity.backgrounds)

    def draw(name, device):
        with jax.default_device(device):
            made = drawer(root, name, given)
            both = jax.device_get((made.specimen.labels, _stacked(made.specimen.labels, made.sketch, made.maps, kind)))
        return *both, recipe.spacing_um

    return [ImageJob(name, tuple(recipe.shape), functools.partial(draw, name)) for name in names]


def _settings(model: trained.Trained, spacing_um, alpha_vox: float | None, beta_vox: float | None) -> tuple:
    """(kind of mask, voxel size, alpha, beta in micrometres, levels of sketches); None: as the model was trained.

    The voxel size is in units of its last axis where it is not known.
    """
    own = model.config.gan
    step = tuple(spacing_um or (1.0,) * model.ndim)
    alpha, beta = (own[f"{name}_vox"] if given is None else given
                   for name, given in (("alpha", alpha_vox), ("beta", beta_vox)))  # fmt: skip
    return own.mask, step, alpha * step[-1], beta * step[-1], gan_input.sketch_levels(own)


def _wanted(kind: str, alpha_um: float, beta_um: float, levels) -> specimens.Wanted:
    maps = ("walls", "position") if kind == "boundary" else ("position",)
    return specimens.Wanted(levels=levels, maps=maps, alpha_um=alpha_um, beta_um=beta_um)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _maps(made: Specimen, kind: str, spacing_um, alpha_um: float, beta_um: float, levels) -> jax.Array:
    maps = specimens.maps(made, spacing_um, _wanted(kind, alpha_um, beta_um, levels))
    return _stacked(made.labels, sketch.sketch(made.labels, made.brightness, levels=levels), maps, kind)


def _stacked(labels: jax.Array, drawn: jax.Array, maps: dict, kind: str) -> jax.Array:
    """float32 [*S, 2]: the mask of this kind, and the position map."""
    mask = {"boundary": lambda: maps["walls"], "cells": lambda: labels > 0, "sketch": lambda: (drawn + 1) / 2}[kind]()
    return jnp.stack([mask.astype(jnp.float32), maps["position"]], axis=-1)
