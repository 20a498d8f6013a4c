"""What `sample` makes images of: files of sketches or labels, or simulated specimens."""

import dataclasses
import functools
from pathlib import Path

import jax

from jaxsynth import gan_files, image_files, sketch_files, specimens
from jaxsynth.data import volumes
from jaxsynth.errors import InputError


def find(args, model, root: jax.Array) -> tuple[list[image_files.ImageJob], dict]:
    """The jobs that the arguments of `sample` name, and what tells of them in the manifest.

    Raises:
      InputError: files that are missing, or do not go together or with the model.
    """
    return (_simulated if args.recipe else _given if args.sketches else _labelled)(args, model, root)


def _given(args, model, root) -> tuple[list, dict]:
    """Jobs from sketch files and the label images of the same names, and what tells of them in the manifest."""
    mapped = args.scratch is not None
    files = volumes.find_files(args.sketches)[: args.num]
    folder = Path(args.labels) if args.labels else files[0].parent.parent / "labels"
    sketch_files.check_scale(files[0].parent, model.metadata)
    labelled = {file.stem: file for file in volumes.find_files(folder)} if folder.is_dir() else {}

    def draw(sketch_file, label_file, device=None):
        sketch = sketch_files.read(sketch_file, model.ndim, mapped=mapped)
        labels = volumes.read_labels(label_file, mapped=mapped)
        if labels.shape != sketch.shape:
            raise InputError(f"{label_file}: labels {labels.shape} and sketch {sketch.shape} differ in shape")
        return labels, sketch, volumes.spacing_um(sketch_file) or model.metadata["spacing_um"]

    jobs = []
    for file in files:
        if file.stem not in labelled:
            raise InputError(f"{folder} has no label image for {file.name}")
        if jobs and jobs[-1].name == file.stem:
            raise InputError(f"{args.sketches}: two sketches are named {file.stem}")
        shape = draw(file, labelled[file.stem])[0].shape  # what is wrong is said before anything is written
        own = functools.partial(draw, file, labelled[file.stem])
        jobs.append(image_files.ImageJob(file.stem, shape, own, read=True))
    if model.config.task == "gan":
        jobs = gan_files.sketched(model, jobs, args.alpha, args.beta)
    return jobs, {"sketches": args.sketches, "labels": str(folder)}


def _labelled(args, model, root) -> tuple[list, dict]:
    """Jobs of a GAN from label images, and what tells of them in the manifest."""
    files = volumes.find_files(args.labels)[: args.num]
    jobs = gan_files.labelled(model, root, files, args.alpha, args.beta, args.background_label)
    return jobs, {"labels": args.labels, "background_label": args.background_label}


def _simulated(args, model, root) -> tuple[list, dict]:
    """Jobs that simulate their cells, and what tells of them in the manifest."""
    plan = specimens.plan(args.recipe, args.shape, args.spacing_um, args.cells, model.metadata)
    names = [f"{args.recipe}_{i:04d}" for i in range(args.num or 10)]
    if model.config.task == "gan":
        jobs = gan_files.simulated(model, root, plan, names, args.alpha, args.beta)
    else:
        jobs = image_files.simulated(root, plan, model.intensity.levels, names)
    return jobs, dataclasses.asdict(plan)
