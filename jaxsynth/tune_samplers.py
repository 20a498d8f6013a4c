"""Which sampler, in how many network evaluations, is as good as very many steps: `jaxsynth.tune --samplers`.

The reference is DDPM in many steps (400), run twice with noise of its own. Every sampler at every number of evaluations
is measured as the reference is: PSNR, SSIM and ZNCC against the real image of the same cells, and over all images KLD,
Bhattacharyya and Frechet distance from the real ones.

Within the noise of the reference, the rule: a metric of the whole set is worse than the mean of the two reference runs
by at most 2 standard errors of that difference (jackknife over images: for a mean over images, the standard error of
the paired differences), or by at most the difference between the two runs, whichever is larger. With a single image
the second alone holds. This says that no loss is shown, not that there is none: with few images the standard errors
are wide, so look at the differences too. Recommended is the setting of fewest evaluations, then of least time, that
is within the noise in all six; those of them that are undefined, such as the Frechet distance of images with too few
patches, decide nothing, and are named beside the recommendation.

A distilled model is measured against its teacher: the sampler "consistency" runs the student, all else the teacher.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxsynth import checkpoint, cli, compare_images, keys, samplers_report, tune_pairs
from jaxsynth import manifest as manifests
from jaxsynth.data import intensity as intensities
from jaxsynth.data import volumes
from jaxsynth.diffusion import samplers
from jaxsynth.errors import InputError
from jaxsynth.sim.sketch import blur
from jaxsynth.trained import Trained, generator, grid_for, make_plan, open_trained

NAME = "samplers.json"
REFERENCES = ("reference_1", "reference_2")
# Metric -> 1 where more is better, -1 where less is.
JUDGED = {"psnr": 1, "ssim": 1, "zncc": 1, "kld": -1, "bhattacharyya": -1, "frechet": -1}
LINE_S = 5.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to make the images: its folder's name, sampler, plan and network."""

    name: str
    sampler: str
    plan: samplers.Plan
    trained: Trained

    @property
    def evaluations(self) -> int:
        """Of the network, per image."""
        return self.plan.num_evaluations

    @property
    def spacing(self) -> str:
        """Of the noise levels."""
        return samplers.SAMPLERS[self.sampler]


def compare(args) -> dict:
    """Makes and measures what `args` of jaxsynth.tune describe; returns what samplers.json holds.

    A second run goes on where the first stopped, and may ask for more images, samplers or evaluations; on another
    device it is refused, as its seconds would not compare.

    Raises:
      InputError: unusable arguments or files; nothing has been written then.
    """
    trained = open_trained(args.checkpoint, args.step)
    settings = _settings(args, trained)
    images = tune_pairs.read(args, trained)
    if not images.paired:
        raise InputError(f"--sketches {args.sketches}: no sketch is named as a real image in {args.real}")
    if min(min(image.shape) for image in images.real) < 7:
        raise InputError("SSIM needs images of at least 7 voxels along every axis")
    for model in {id(setting.trained): setting.trained for setting in settings}.values():
        for image in images.real:
            grid_for(model, image.shape, args.tile)  # refuses what cannot be
    out = Path(args.out)
    result = manifests.open_result(out, NAME, {
        "checkpoint_sha256": checkpoint.fingerprint(trained.params),
        "teacher_sha256": checkpoint.fingerprint(settings[0].trained.params),
        "real": args.real,
        "sketches": args.sketches,
        "crop": args.crop,
        "seed": args.seed,
        "tile": args.tile,
        "t_start": int(settings[0].plan.t[0]) + 1,
        "sigma": args.sigma,
        "reference": settings[0].evaluations,
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
    }, "made")  # fmt: skip
    result["images"] = list(images.names)

    # The scale is the whole real set's; a crop may hold nothing but cell.
    whole = tune_pairs.open_real(args.real, trained)
    ruler = compare_images.fit(lambda: volumes.each(whole), lambda: iter(images.real), [i.shape for i in images.real])
    real = [compare_images.measure(image, ruler) for image in images.real]

    def measured(volumes):
        return [compare_images.measure(image, ruler) | {"pair": compare_images.pair(image_real, image, ruler)}
                for image_real, image in zip(images.real, volumes, strict=True)]  # fmt: skip

    manifests.make_folders(out, [f"images/{setting.name}" for setting in settings])
    make = _maker(args, out, result, settings, images)
    result["real"] = compare_images.pool(real)["statistics"]
    sketches = [blur(sketch, args.sigma) if args.sigma else sketch for sketch in images.sketches]
    sketches = [intensities.denormalise(sketch, trained.intensity) for sketch in sketches]
    result["sketch"] = leave_one_out(measured(sketches), real)[0]
    half = len(real) // 2
    if half:
        halves = [compare_images.pool(rows) for rows in (real[:half], real[half:])]
        result["real, other half"] = compare_images.distances(*halves, compare_images.pool(real))
    result["rows"], references = [], []
    for setting in settings:
        seconds = make(setting)
        values = leave_one_out(measured([volumes.read(_image(out, setting.name, name)) for name in images.names]), real)
        row = {"name": setting.name, "sampler": setting.sampler, "evaluations": setting.evaluations,
               "spacing": setting.spacing, "seconds": seconds, **values[0]}  # fmt: skip
        if setting.name in REFERENCES:
            references.append(values)
        else:
            row |= judge(values, *references)
        result["rows"].append(row)
        result["unjudged"] = unjudged(result["rows"])
        result["recommended"] = recommend(result["rows"])
        manifests.write_json(out / NAME, compare_images.finite(result))
    text = samplers_report.markdown(result, JUDGED)
    part = out / "samplers.md.part"
    part.write_text(text)
    part.replace(out / "samplers.md")
    columns = {"real": images.real[0], "sketch": sketches[0]}
    samplers_report.draw(out, result, columns, images.names[0], trained.metadata["spacing_um"])
    print(text)
    print(f"written: {out / NAME}, samplers.md, samplers.png, samplers_images.png, images/")
    row = next((row for row in result["rows"] if row["name"] == result["recommended"]), None)
    print(f"recommended: --sampler {row['sampler']} --num_evaluations {row['evaluations']}" if row else
          "recommended: none, no setting is within the noise of the reference; try more --evaluations")  # fmt: skip
    if result["unjudged"]:
        print(f"not judged: {samplers_report.unjudged(result)}")
    return result


def _settings(args, trained: Trained) -> list[Setting]:
    """All that is to be made, the two references first."""
    student = trained.config.task == "distill"
    teacher = open_trained(trained.config.distill.teacher) if student else trained
    t_start = min(400, trained.t_max, teacher.t_max) if args.t_start is None else args.t_start
    known = [name for name in samplers.SAMPLERS if student or name != "consistency"]
    wrong = [name for name in args.only or () if name not in known]
    if wrong:
        raise InputError(f"--only: expected some of {','.join(known)} for this checkpoint; got {wrong[0]!r}")
    reference = make_plan(teacher, t_start, "ddpm", min(args.reference, t_start))
    found = [Setting(name, "ddpm", reference, teacher) for name in REFERENCES]
    for sampler in args.only or known:
        network = trained if sampler == "consistency" else teacher
        for number in sorted(set(args.evaluations), reverse=True):
            plan = make_plan(network, t_start, sampler, number)
            found.append(Setting(f"{sampler}_{number}", sampler, plan, network))
    return found


def _maker(args, out: Path, result: dict, settings: Sequence[Setting], images):
    """make(setting) -> seconds per image: makes what is missing of it, and keeps samplers.json up to date.

    Seconds are the median over those calls that had nothing to compile; where every call had, one image is made again.
    """
    root = keys.root(args.seed)
    hashes = [tune_pairs.digest([sketch]) for sketch in images.sketches]
    finished = set()
    for setting in settings:
        made = {"spacing": setting.spacing, "files": {}, "seconds": []}
        earlier = result["made"].get(setting.name, {})
        if earlier.get("spacing", setting.spacing) == setting.spacing:
            made |= earlier
        result["made"][setting.name] = made
        for name, sha in zip(images.names, hashes, strict=True):
            if made["files"].get(name) == sha and _image(out, setting.name, name).is_file():
                finished.add((setting.name, name))
    todo = sum(s.evaluations for s in settings for name in images.names if (s.name, name) not in finished)
    if finished:
        print(f"{len(finished)} of {len(settings) * len(images.names)} images are there already")
    generators, compiled = {}, set()
    begun, shown, done = time.perf_counter(), 0.0, 0

    def run(setting, name, sketch, progress=None):
        """The image, and its seconds in a list, which is empty where something had to be compiled."""
        network = id(setting.trained)
        if network not in generators:
            generators[network] = generator(setting.trained, tile=args.tile)
        # The reference has noise of its own; all others share theirs.
        key = keys.stream(root, setting.name if setting.name in REFERENCES else "sample", name)
        clock = time.perf_counter()
        image = np.asarray(generators[network](key, sketch, setting.plan, sigma=args.sigma, progress=progress))
        seconds = time.perf_counter() - clock
        program = (network, sketch.shape, setting.evaluations)
        steady = program in compiled
        compiled.add(program)
        return image, [seconds] if steady else []

    def tell(title, count, total):
        nonlocal shown
        now = time.perf_counter()
        if now - shown >= LINE_S or done + count == todo:
            shown = now
            print(f"{title}  evaluation {count}/{total}  {cli.eta(begun, (done + count) / todo)}", flush=True)

    def make(setting):
        nonlocal done
        made = result["made"][setting.name]
        for name, sketch, sha in zip(images.names, images.sketches, hashes, strict=True):
            if (setting.name, name) in finished:
                continue
            x, seconds = run(setting, name, sketch, functools.partial(tell, f"{setting.name}  {name}"))
            done += setting.evaluations
            image = intensities.denormalise(x, setting.trained.intensity)
            volumes.write(_image(out, setting.name, name), image, spacing_um=setting.trained.metadata["spacing_um"])
            made["files"][name] = sha
            made["seconds"] += seconds
            manifests.write_json(out / NAME, compare_images.finite(result))
        while not made["seconds"]:
            print(f"{setting.name}  {images.names[0]}  again, for the time", flush=True)
            made["seconds"] += run(setting, images.names[0], images.sketches[0])[1]
        return float(np.median(made["seconds"]))

    return make


def _image(out: Path, setting: str, name: str) -> Path:
    return out / "images" / setting / f"{name}.tif"


def leave_one_out(made: Sequence[dict], real: Sequence[dict]) -> list[dict[str, float]]:
    """Scores of a set of images against the real ones: of all, then without the first image, without the second, ...

    Args:
      made, real: of `compare_images.measure`, image by image; those made with the scores of `compare_images.pair` as
        "pair".

    Returns:
      dicts of JUDGED, "spectral_distance_db" and "background_noise_sd": one of all images, and where there are
      several, one per image left out.
    """
    everything = compare_images.pool(real)

    def scores(kept):
        mine = compare_images.pool([made[i] for i in kept])
        found = compare_images.distances(compare_images.pool([real[i] for i in kept]), mine, everything)
        found["background_noise_sd"] = mine["statistics"]["background_noise_sd"]
        pairs = {name: float(np.mean([made[i]["pair"][name] for i in kept])) for name in ("psnr", "ssim", "zncc")}
        return pairs | found

    number = len(made)
    left = [[i for i in range(number) if i != j] for j in range(number)] if number > 1 else []
    return [scores(kept) for kept in ([*range(number)], *left)]


def judge(values: Sequence[dict], one: Sequence[dict], two: Sequence[dict]) -> dict:
    """Whether a setting is within the noise of the reference, by the module's rule.

    Args:
      values, one, two: of `leave_one_out`: the setting's and the two reference runs'.

    Returns:
      {"worse_by", "tolerance": number by metric, "within": bool by metric, or None where a score is undefined, as for
      images of too few patches; "equal": whether none is beyond its tolerance}.
    """
    result = {"worse_by": {}, "tolerance": {}, "within": {}}
    for name, sign in JUDGED.items():
        setting, first, second = (np.array([row[name] for row in rows]) for rows in (values, one, two))
        difference = sign * ((first + second) / 2 - setting)
        worse, left = difference[0], difference[1:]
        error = np.sqrt((len(left) - 1) * np.mean((left - left.mean()) ** 2)) if len(left) else 0.0
        tolerance = max(2 * error, abs(first[0] - second[0]))
        defined = np.isfinite(worse) and np.isfinite(tolerance)
        result["worse_by"][name], result["tolerance"][name] = float(worse), float(tolerance)
        result["within"][name] = bool(worse <= tolerance) if defined else None
    return result | {"equal": all(within is not False for within in result["within"].values())}


def unjudged(rows: Sequence[dict]) -> list[str]:
    """The metrics that are undefined in some row."""
    return [name for name in JUDGED if any(row.get("within", {}).get(name, True) is None for row in rows)]


def recommend(rows: Sequence[dict]) -> str | None:
    """The name of the cheapest row within the noise of the reference: fewest evaluations, then least seconds."""
    equal = [row for row in rows if row.get("equal")]
    return min(equal, key=lambda row: (row["evaluations"], row["seconds"]))["name"] if equal else None
