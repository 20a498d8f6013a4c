"""Sketches, maps and shape models from the user's own label images: `jaxsynth.simulate --labels`."""

import functools
from pathlib import Path

from jaxsynth import outputs, specimens
from jaxsynth.errors import InputError


def make(args) -> None:
    """Makes sketches for the label images that `args` (see `jaxsynth.simulate`) describes.

    Raises:
      InputError: unusable arguments or files; nothing has been written then.
    """
    import numpy as np

    from jaxsynth.data import volumes

    files = volumes.by_name(volumes.find_files(args.labels), "--labels")
    images = volumes.by_name(volumes.find_files(args.images), "--images") if args.images else {}
    missing = [name for name in files if name not in images] if args.images else []
    if missing:
        raise InputError(f"{args.images}: no image named {missing[0]}, as {files[missing[0]]} is "
                         f"({len(missing)} of {len(files)} missing)")  # fmt: skip
    intensity = outputs.intensity(outputs.metadata(args))
    for name, file in files.items():
        _check_pair(args, file, images.get(name), intensity)
    if args.images and intensity is None:
        from jaxsynth.data import intensity as intensities

        used = [images[name] for name in files]
        intensity = intensities.fit(lambda: map(volumes.read, used), args.normalization or "asinh")

    import jax

    from jaxsynth import keys
    from jaxsynth.data import intensity as intensities
    from jaxsynth.records import Specimen
    from jaxsynth.sim import brightness, membranes, sketch

    levels = tuple(intensity.levels) if intensity else sketch.LEVELS
    alpha = 100.0 if args.alpha is None else args.alpha
    beta = alpha if args.beta is None else args.beta
    maps = tuple(dict.fromkeys(args.maps or ()))
    from_brightness = jax.jit(functools.partial(sketch.sketch, levels=levels))
    from_image = jax.jit(sketch.sketch_from_image, static_argnums=2)
    merge = jax.jit(membranes.merge_neighbours, static_argnums=3)

    @functools.partial(jax.jit, static_argnums=1)
    def rim(labels, spacing_um, thickness_um):
        """The cells' share of their walls: labels there, 0 elsewhere."""
        depth = membranes.signed_distance_um(labels, spacing_um)  # between centres of voxels, so half a voxel too long
        within = (depth <= (thickness_um + min(spacing_um)) / 2) | membranes.boundary(labels)
        return jax.numpy.where(within, labels, 0)

    def draw(ranks, drawn, image, capacity, step):
        if args.membranes is not None:
            ranks = rim(ranks, step, args.membranes)
            if image is None:
                return sketch.membrane_sketch(ranks > 0, levels=levels)
        return from_brightness(ranks, drawn) if image is None else from_image(ranks, image, capacity)

    @functools.partial(jax.jit, static_argnums=(2, 3))
    def draw_maps(labels, drawn, spacing_um, wanted):
        made = Specimen(labels, drawn, *(0,) * 4)
        return specimens.maps(made, spacing_um, wanted)

    folders = ["labels", "sketches"] + ["labels_true"] * bool(args.merge) + list(maps)

    def make_one(out: Path, name: str) -> dict:
        labels = volumes.read_labels(files[name])
        labels = np.where(labels == args.background_label, 0, labels)
        ranks, id_of, capacity = brightness.ranked(labels)
        key = keys.stream(keys.root(args.seed), outputs.STREAM, name)
        measured = (intensity.brightness, intensity.backgrounds) if intensity else ()
        drawn = brightness.of_ranks(key, capacity, *measured)
        image = intensities.normalise(volumes.read(images[name]), intensity) if args.images else None
        spacing_um = args.spacing_um or volumes.spacing_um(files[name])
        # Without a voxel size distances are in voxels.
        step = tuple(spacing_um or (1.0,) * labels.ndim)
        results = {"labels": labels, "sketches": draw(ranks, drawn, image, capacity, step)}
        if args.merge:
            merged, _ = merge(keys.stream(key, "merge"), ranks, args.merge, capacity)
            results |= {"labels": id_of[np.asarray(merged)], "labels_true": labels}
        if maps:
            wanted = specimens.Wanted(maps=maps, alpha_um=alpha * step[-1], beta_um=beta * step[-1])
            results |= draw_maps(ranks, drawn, step, wanted)
            if "seeds" in maps:
                results["seeds"] = id_of[np.asarray(results["seeds"])]
        for folder in folders:
            volumes.write(out / folder / f"{name}.tif", np.asarray(results[folder]), spacing_um=spacing_um)
        return {"num_cells": len(id_of) - 1, "spacing_um": list(spacing_um) if spacing_um else None}

    settings = {"labels": str(args.labels), "images": args.images, "background_label": args.background_label,
                "spacing_um": args.spacing_um, "levels": list(levels), "merge": args.merge or 0.0}  # fmt: skip
    settings |= {} if args.membranes is None else {"membranes": args.membranes}
    settings |= {"alpha": alpha, "beta": beta, "organism": "closed"} if "position" in maps else {}
    outputs.make(args, settings, list(files), folders, make_one, what="label images and sketches", intensity=intensity)


def _check_pair(args, file: Path, image_file: Path | None, intensity) -> None:
    """What would stop the run half-way is said before anything is written."""
    import numpy as np

    from jaxsynth.data import volumes

    shape = volumes.read_labels(file).shape
    if args.spacing_um is not None and len(args.spacing_um) != len(shape):
        raise InputError(f"--spacing: expected {len(shape)} numbers, as {file} is {len(shape)}D; "
                         f"got {args.spacing_um}")  # fmt: skip
    if image_file is not None:
        image = volumes.read(image_file)
        if image.shape != shape:
            raise InputError(f"{image_file}: expected the shape of its labels {file}, {shape}; got {image.shape}")
        if not np.isfinite(image).all():
            raise InputError(f"{image_file}: holds NaN or infinite values")
        if intensity is not None and image.dtype.name != intensity.dtype:
            raise InputError(f"{image_file}: expected {intensity.dtype}, as the checkpoint was trained on; "
                             f"got {image.dtype}")  # fmt: skip


def fit_shape(args) -> None:
    """Writes the statistical shape model of label images (paper 003, 3.2) to the file `args.out`.

    Raises:
      InputError: as `data.shapes.fit_files`.
    """
    import numpy as np

    from jaxsynth import manifest as manifests
    from jaxsynth.data import shapes

    num_modes = 10 if args.modes is None else args.modes
    model = shapes.fit_files(
        args.labels, args.fit_shape, num_modes, background_label=args.background_label, spacing_um=args.spacing_um
    )
    manifests.make_folders(Path(args.out).parent, ("",))
    shapes.save(args.out, model)
    used = int(np.sum(np.asarray(model.sd) > 0))
    print(f"{args.fit_shape} of mean radius {float(np.mean(model.mean)):.4g} um, {used} modes that vary by "
          f"{', '.join(f'{sd:.3g}' for sd in np.asarray(model.sd)[:min(used, 3)]) or 'nothing'} um ...")  # fmt: skip
    print(f"shape model in {args.out}")
