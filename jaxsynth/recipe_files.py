"""Files of simulated specimens: `jaxsynth.simulate --recipe`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from jaxsynth import centre_files, outputs, specimens
from jaxsynth.errors import InputError


@dataclasses.dataclass(frozen=True)
class Job:
    """One specimen to make: its name, how it is drawn, and the user's centres, float [M, D] in micrometres, or None."""

    name: str
    plan: specimens.Specimens
    centres_um: object = None


def make(args) -> None:
    """Makes the specimens that `args` (see `jaxsynth.simulate`) describes.

    Raises:
      InputError: unusable arguments or files; nothing has been written then.
    """
    import jax.numpy as jnp
    import numpy as np

    from jaxsynth import keys
    from jaxsynth.data import volumes
    from jaxsynth.sim import tissues
    from jaxsynth.sim.sketch import LEVELS

    metadata = outputs.metadata(args)
    jobs = _jobs(args, metadata)
    recipe = tissues.find(args.recipe)
    intensity, brightness, told = fit_brightness(args, outputs.intensity(metadata))
    levels = brightness.levels if brightness else tuple(intensity.levels) if intensity else LEVELS
    step = jobs[0].plan.drawn_at_um[-1]
    alpha = 100.0 if args.alpha is None else args.alpha
    beta = alpha if args.beta is None else args.beta
    wanted = specimens.Wanted(
        levels=tuple(levels), maps=tuple(dict.fromkeys(args.maps or ())), alpha_um=alpha * step, beta_um=beta * step,
        render=args.render, merge=args.merge or 0.0,
    )  # fmt: skip
    given, model, settings = read_given(args, jobs[0].plan, brightness)
    psf, seen_through = read_psf(args, jobs[0].plan)
    settings |= told | seen_through
    settings |= {"alpha": alpha, "beta": beta, "organism": "closed"} if "position" in wanted.maps else {}
    drawers = {job.plan: None for job in jobs}
    for plan in drawers:
        drawers[plan] = specimens.drawer(plan, wanted, psf=psf, model=model)
    folders = ["labels", "sketches"]
    folders += ["labels_true"] if wanted.merge else []
    folders += ["nuclei", "membrane", "sketches_nuclei"] if recipe.populate is None else []
    folders += ["images"] * args.render + list(wanted.maps)
    by_name, root = {job.name: job for job in jobs}, keys.root(args.seed)

    def make_one(out: Path, name: str) -> Callable[[], dict]:
        job = by_name[name]
        own, count = given, None
        if job.centres_um is not None:
            # Few different numbers of slots, so that few programs are compiled.
            count = len(job.centres_um)
            slots = 64 * max(1, -(-count // 64))
            padded = np.pad(job.centres_um, ((0, slots - count), (0, 0)))
            own = own._replace(centres_um=jnp.asarray(padded, jnp.float32))
        drawn = drawers[job.plan](root, name, own, count)
        made = drawn.specimen
        results = {"labels": made.labels, "sketches": drawn.sketch, "nuclei": made.nuclei, "membrane": made.membrane,
                   "sketches_nuclei": drawn.nuclei_sketch, "images": drawn.image, **drawn.maps}  # fmt: skip
        if wanted.merge:
            results |= {"labels": drawn.merged, "labels_true": made.labels}

        def write() -> dict:
            for folder in folders:
                volume = np.asarray(results[folder])
                spacing = job.plan.spacing_um
                if folder == "images":
                    volume = camera(volume)
                if spacing is not None and volume.ndim > len(spacing):
                    spacing = (1.0, *spacing)  # planes of overlapping cells lie at no distance
                volumes.write(out / folder / f"{name}.tif", volume, spacing_um=spacing)
            entry = {"num_asked": int(made.num_asked), "num_placed": int(made.num_placed)}
            if args.centres:
                entry |= {"shape": job.plan.shape, "spacing_um": job.plan.spacing_um}
            return entry

        return write  # while the device makes the next

    settings = {**plan_settings(args, jobs[0].plan), "levels": list(levels), "merge": wanted.merge, **settings}
    outputs.make(args, settings, list(by_name), folders, make_one, what="specimen(s)", intensity=intensity)


def camera(counts):
    """Counts as a camera stores them, uint16."""
    import numpy as np

    return np.clip(np.rint(counts), 0, 65535).astype(np.uint16)


def plan_settings(args, plan: specimens.Specimens) -> dict:
    """What of the plan every file depends on; specimens at given centres have their own shapes."""
    if args.centres:
        return {"recipe": args.recipe, "centres": args.centres, "shape": args.shape, "spacing_um": args.spacing_um,
                "background_label": args.background_label, "overlap": plan.overlap}  # fmt: skip
    return dataclasses.asdict(plan)


def plan_of(args, metadata: dict | None) -> specimens.Specimens:
    """How all of `args.num` specimens are drawn; they differ in their draws alone."""
    from jaxsynth.data import volumes

    shape, spacing = args.shape, args.spacing_um
    if args.mask:
        seen = volumes.read_labels(args.mask).shape
        if shape is not None and shape != seen:
            raise InputError(f"--mask {args.mask}: expected the shape {shape}; got {seen}")
        shape, spacing = seen, spacing or volumes.spacing_um(args.mask)
    return specimens.plan(args.recipe, shape, spacing, args.cells, metadata, args.overlap or 0.0)


def _jobs(args, metadata: dict | None) -> list[Job]:
    if args.centres:
        return _jobs_from_centres(args, metadata)
    plan = plan_of(args, metadata)
    return [Job(f"{args.recipe}_{index:04d}", plan) for index in range(args.num)]


def read_given(args, plan: specimens.Specimens, brightness=None):
    """What --mask, --shape_model, --clustering and `fit_brightness` bring: (Given, model or None, what the manifest
    tells of the first three)."""
    from jaxsynth.data import shapes, volumes
    from jaxsynth.sim import tissues

    found = tissues.find(plan.recipe)
    if (args.mask or args.shape_model) and found.extent == "map":
        flag = "--mask" if args.mask else "--shape_model"
        raise InputError(f"{flag}: recipe {plan.recipe} is a map of a surface of its own")
    if args.clustering is not None and not found.clusters:
        raise InputError(f"--clustering: recipe {plan.recipe} has a way of its own to place its cells")
    given = tissues.NOTHING._replace(clustering=args.clustering)
    if brightness:
        given = given._replace(brightness=brightness.table, backgrounds=brightness.backgrounds)
    told = {"mask": None, "shape_model": None, "clustering": args.clustering}
    if args.mask:
        mask = volumes.read_labels(args.mask)
        mask = (mask != args.background_label) & (mask > 0)
        if not mask.any():
            raise InputError(f"--mask {args.mask}: is 0 everywhere, so no cell may lie anywhere")
        return given._replace(mask=mask), None, told | {"mask": outputs.fingerprint(args.mask)}
    if args.shape_model:
        model = shapes.load(args.shape_model)
        if model.ndim != len(plan.shape):
            raise InputError(f"--shape_model {args.shape_model}: is {model.ndim}D, the specimens {len(plan.shape)}D")
        return given, model, told | {"shape_model": outputs.fingerprint(args.shape_model)}
    return given, None, told


def read_psf(args, plan: specimens.Specimens):
    """(PSF float32 [*P] or None, what the manifest tells of it where pictures are taken)."""
    if not args.psf:
        return None, {"psf": None} if args.render or args.frames else {}
    from jaxsynth.data import psf

    return psf.read_psf(args.psf, plan.spacing_um or plan.drawn_at_um), {"psf": outputs.fingerprint(args.psf)}


def fit_brightness(args, intensity):
    """The brightness of the cells in the user's images.

    Returns:
      (intensity, `sim.brightness.Brightness` or None, what the manifest tells); the normalisation is fitted where no
      checkpoint has one. Without such images the brightness is the checkpoint's, where it knows that.
    """
    from jaxsynth.sim import brightness, population

    if not args.brightness_images:
        found = None
        if intensity is not None and intensity.brightness:
            seen = population.as_bright_as(intensity.brightness, intensity.backgrounds)
            found = brightness.Brightness(seen.brightness, tuple(intensity.levels), seen.backgrounds)
        return intensity, found, {"brightness_images": None}
    from jaxsynth.data import intensity as intensities
    from jaxsynth.data import volumes

    images = volumes.by_name(volumes.find_files(args.brightness_images), "--brightness_images")
    labels = volumes.by_name(volumes.find_files(args.brightness_labels), "--brightness_labels")
    both = [name for name in images if name in labels]
    if not both:
        raise InputError(f"--brightness_labels {args.brightness_labels}: no file has the name of one of the "
                         f"{len(images)} images of --brightness_images")  # fmt: skip
    for name in both:
        pair = volumes.read(images[name]), centre_files.labels_of(args, labels[name])
        if pair[0].shape != pair[1].shape:
            raise InputError(f"{labels[name]}: expected the shape of its image, {pair[0].shape}; got {pair[1].shape}")
        if intensity is not None and pair[0].dtype.name != intensity.dtype:
            raise InputError(f"{images[name]}: expected {intensity.dtype}, as the checkpoint was trained on; "
                             f"got {pair[0].dtype}")  # fmt: skip
    if intensity is None:
        intensity = intensities.fit(
            lambda: (volumes.read(images[name]) for name in both), args.normalization or "asinh"
        )
    fitted = brightness.fit_images(
        (centre_files.labels_of(args, labels[name]), intensities.normalise(volumes.read(images[name]), intensity))
        for name in both
    )
    return intensity, fitted, {"brightness_images": args.brightness_images, "brightness_labels": args.brightness_labels}


def _jobs_from_centres(args, metadata: dict | None) -> list[Job]:
    """One specimen per file of centres."""
    import numpy as np

    from jaxsynth.data import volumes
    from jaxsynth.sim import tissues

    found = tissues.find(args.recipe)
    if found.extent == "map":
        raise InputError(f"--centres: recipe {args.recipe} is a map of a curved surface; take another one")
    jobs = []
    for name, file in volumes.by_name(centre_files.find(args.centres), "--centres").items():
        if file.suffix.lower() in centre_files.TABLES:
            centres, shape, spacing = centre_files.read_table(file), args.shape, args.spacing_um
        else:
            labels = centre_files.labels_of(args, file)
            spacing = args.spacing_um or volumes.spacing_um(file)
            if spacing is None:
                raise InputError(f"{file}: states no voxel size; give --spacing")
            if len(spacing) != labels.ndim:
                raise InputError(
                    f"--spacing: expected {labels.ndim} numbers, as {file} is {labels.ndim}D; got {spacing}"
                )
            shape, centres = args.shape or labels.shape, centre_files.centroids(labels, spacing)
        plan = specimens.plan(args.recipe, shape, spacing, None, metadata, args.overlap or 0.0)
        if centres.size and centres.shape[1] != len(plan.shape):
            raise InputError(f"{file}: expected {len(plan.shape)} columns, as the specimen is {len(plan.shape)}D; "
                             f"got {centres.shape[1]}")  # fmt: skip
        if plan.spacing_um is not None:
            # A recipe fitted to a checkpoint is drawn as if its voxels had another size than they have.
            centres = centres / np.asarray(plan.spacing_um) * np.asarray(plan.drawn_at_um) if centres.size else centres
        size = np.multiply(plan.shape, plan.drawn_at_um)
        inside = ((centres >= 0) & (centres <= size)).all(axis=1) if centres.size else np.zeros(0, bool)
        if len(centres) and not inside.any():
            raise InputError(f"{file}: none of the {len(centres)} centres lies in the volume of "
                             f"{' x '.join(f'{n:.4g}' for n in size)} um; are they in micrometres?")  # fmt: skip
        if not inside.all():
            print(f"{file.name}: {np.sum(~inside)} of {len(centres)} centres lie outside the volume")
        jobs.append(Job(name, plan, centres.reshape(-1, len(plan.shape))))
        if len(jobs) == args.num:
            break
    return jobs
