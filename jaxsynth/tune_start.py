"""Which t_start and sigma suit a trained model: the analysis behind `jaxsynth.tune` (papers 000, Fig. 2, and 001).

Forward: how far the grey values of noised sketches are from those of noised real images. No noise is drawn: the
expected histogram of x_t is that of x_0, shrunk by sqrt(alpha_bar) and smeared by a Gaussian of variance
1 - alpha_bar, so the distances have no sampling error. Backward: how much of the real image denoising gives back.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import ndtr

from jaxsynth import __version__, checkpoint, cli, compare_images, keys, trained, tune_pairs, tune_report
from jaxsynth import manifest as manifests
from jaxsynth.compare_labels import spread
from jaxsynth.data import intensity as intensities
from jaxsynth.data import volumes
from jaxsynth.diffusion.samplers import Plan
from jaxsynth.errors import InputError
from jaxsynth.metrics import distribution
from jaxsynth.records import Schedule
from jaxsynth.sim.sketch import blur
from jaxsynth.tune_pairs import HALVES, REAL, Images, kept, label

KLD_ENOUGH = 0.05
CLEAN_EDGES = np.linspace(-1.0, 1.0, 2049)  # grey values of x_0
NOISED_EDGES = np.linspace(-4.5, 4.5, 181)  # grey values of x_t; the outermost bins are open
NAME = "tune.json"


def noised_histogram(counts: np.ndarray, t_start: int, schedule: Schedule) -> np.ndarray:
    """Expected shares of voxels of x_t over the bins of NOISED_EDGES: float64 [180], sum 1 (paper 001, eq. 3).

    Args:
      counts: histogram of x_0 over CLEAN_EDGES, [2048].
      t_start: 1..T; that is index t_start - 1.
    """
    bar = schedule.alphas_bar[t_start - 1]
    centres = (CLEAN_EDGES[1:] + CLEAN_EDGES[:-1]) / 2
    edges = np.concatenate([[-np.inf], NOISED_EDGES[1:-1], [np.inf]])
    used = np.flatnonzero(counts)
    below = ndtr((edges - np.sqrt(bar) * centres[used, None]) / np.sqrt(1 - bar))
    return np.asarray(counts, np.float64)[used] @ np.diff(below) / np.sum(counts)


def distances(counts: np.ndarray, other: np.ndarray, t_start: int, schedule: Schedule) -> dict[str, float]:
    """{"kld": KL(x_t || other x_t) in nats, "bhattacharyya"} of two histograms of x_0 over CLEAN_EDGES."""
    one, two = (noised_histogram(histogram, t_start, schedule) for histogram in (counts, other))
    return {"kld": distribution.kld(one, two), "bhattacharyya": distribution.bhattacharyya(one, two)}


def recommend(
    forward: Sequence[Mapping], zncc: Mapping[tuple[int, float], float | None] | None = None, enough: float = KLD_ENOUGH
) -> dict:
    """The least t_start at which noised sketches look like noised real images, and its best sigma.

    Once the KLD of some sigma is at most `enough`, more noise only costs structure and time, so the least such t_start
    is taken; of the sigmas that reach it there the one with the highest ZNCC, or without ZNCC the lowest KLD. Where
    none reaches it: the point with the lowest KLD. On the numbers of paper 000 (.053 at 400, .004 at 600) 0.05 gives
    its choice, 600; the blur of paper 001 then allowed 400.

    Args:
      forward: rows {"t_start", "sigma", "kld"}.
      zncc: (t_start, sigma) -> ZNCC of denoised sketches with the real images, None where undefined.

    Returns:
      {"t_start", "sigma", "kld", "zncc" (None where unknown), "enough" (whether the KLD is low enough)}.
    """
    reached = [row for row in forward if row["kld"] <= enough]
    least = min((row["t_start"] for row in reached), default=None)
    rows = [row for row in reached if row["t_start"] == least] or [min(forward, key=lambda row: row["kld"])]

    def score(row):
        return (zncc or {}).get((row["t_start"], row["sigma"]))

    best = max(rows, key=lambda row: (-math.inf if score(row) is None else score(row), -row["kld"]))
    return {"t_start": best["t_start"], "sigma": best["sigma"], "kld": best["kld"], "zncc": score(best),
            "enough": bool(reached)}  # fmt: skip


def forward_analysis(
    images: Images,
    t_starts: Sequence[int],
    sigmas: Sequence[float],
    intensity: intensities.Intensity,
    schedule: Schedule,
) -> dict[str, list[dict]]:
    """Rows of `distances` of all voxels from the real images': "sketch" for every t_start and sigma and, as the
    yardstick, the first half of the images against the other for every t_start; none of a single image."""
    counts = [distribution.histogram(intensities.normalise(image, intensity), CLEAN_EDGES) for image in images.real]
    sketches = []
    for sigma in sigmas:
        soft = (np.asarray(blur(sketch, sigma)) for sketch in images.sketches)
        blurred = sum(distribution.histogram(sketch, CLEAN_EDGES) for sketch in soft)
        sketches += [{"t_start": t, "sigma": sigma, **distances(sum(counts), blurred, t, schedule)} for t in t_starts]
    half, halves = len(counts) // 2, []
    if half:
        one, other = sum(counts[:half]), sum(counts[half:])
        halves = [{"t_start": t, **distances(one, other, t, schedule)} for t in t_starts]
    return {"sketch": sketches, HALVES: halves}


def backward_analysis(
    out: Path,
    result: dict,
    images: Images,
    sigmas: Sequence[float],
    plans: Mapping[int, Plan | None],
    denoised: Callable[[str, np.ndarray, Plan], np.ndarray],
    intensity: intensities.Intensity,
) -> dict[tuple[str, int], dict]:
    """Denoises the real images and, of pairs, their blurred sketches from every t_start, and scores them.

    Adds the scores of every point that is not there yet as result["backward"][label][t_start][name], and keeps
    OUT/tune.json up to date. Of the first image the results are kept in OUT/images.

    Args:
      plans: t_start -> plan; at t_start 0 (None) nothing is denoised, and the input itself is scored.
      denoised: (name, x0 [*S] in [-1, 1], plan) -> [*S] in [-1, 1].

    Returns:
      (label, t_start) -> mean scores over the images, None where undefined.
    """
    inputs = {label(None): lambda i: intensities.normalise(images.real[i], intensity)}
    for sigma in sigmas if images.paired else ():
        inputs[label(sigma)] = lambda i, sigma=sigma: np.asarray(blur(images.sketches[i], sigma))
    shapes = [image.shape for image in images.real]
    ruler = compare_images.fit(lambda: images.real, lambda: images.real, shapes)
    points = [(t, which, i) for t in plans for which in inputs for i in range(len(shapes))]

    def scores_of(which, t):
        return result["backward"].setdefault(which, {}).setdefault(str(t), {})

    def finished(t, which, i):
        return images.names[i] in scores_of(which, t) and (i > 0 or kept(out, which, t).is_file())

    todo = [point for point in points if not finished(*point)]
    if len(todo) < len(points):
        print(f"{len(points) - len(todo)} of {len(points)} points are finished already")
    work = [plans[t].num_evaluations * images.real[i].size if t else 0 for t, _, i in todo]
    begun, done = time.perf_counter(), 0
    for number, (t, which, i) in enumerate(todo):
        name, made = images.names[i], inputs[which](i)
        made = intensities.denormalise(denoised(name, made, plans[t]) if t else made, intensity)
        scores = compare_images.pair(images.real[i], made, ruler)
        if i == 0:
            volumes.write(kept(out, which, t), made)
        scores_of(which, t)[name] = {key: value if math.isfinite(value) else None for key, value in scores.items()}
        manifests.write_json(out / NAME, result)
        done += work[number]
        if t:
            print(f"{number + 1}/{len(todo)} {name}  {which}  t_start {t}  PSNR {scores['psnr']:.2f} dB  "
                  f"ZNCC {scores['zncc']:.3f}  {cli.eta(begun, done / sum(work))}", flush=True)  # fmt: skip

    def mean(which, t):
        rows = [scores_of(which, t)[name] for name in images.names]
        return {key: None if any(row[key] is None for row in rows) else float(np.mean([row[key] for row in rows]))
                for key in rows[0]}  # fmt: skip

    return {(which, t): mean(which, t) for which in inputs for t in plans}


def analyse(args) -> dict:
    """Runs the analysis that `args` of jaxsynth.tune describe and writes it; returns what tune.json holds.

    Raises:
      InputError: unusable arguments or files; nothing has been written then.
    """
    model = trained.open_trained(args.checkpoint, args.step)
    schedule, t_max = model.parts.schedule, model.t_max
    tenth = max(1, len(schedule.betas) // 10)
    t_starts = sorted(set(args.t_starts or range(tenth, t_max + 1, tenth) or (t_max,)))
    sampler = args.sampler or trained.default_sampler(model)

    def plan(t):
        return trained.make_plan(model, t, sampler, args.num_evaluations and min(args.num_evaluations, t))

    for t in (*t_starts, *(args.backward or ())):
        plan(t)  # refuses what cannot be
    images = tune_pairs.read(args, model)
    settings = {"checkpoint_sha256": checkpoint.fingerprint(model.params), "real": args.real,
                "sketches": args.sketches, "images": images.names, "crop": args.crop, "seed": args.seed,
                "real_sha256": tune_pairs.digest(images.real),
                "sketches_sha256": tune_pairs.digest(images.sketches)}  # fmt: skip
    if not args.forward_only:
        settings |= {"sampler": sampler, "num_evaluations": args.num_evaluations, "tile": args.tile}
        if min(map(min, (image.shape for image in images.real))) < 7:
            raise InputError("SSIM needs 7 voxels or more along every axis: give a larger --crop, or --forward_only")
        for image in images.real:
            trained.grid_for(model, image.shape, args.tile)  # refuses what cannot be
    out, sigmas = Path(args.out), sorted(set(args.sigmas))
    result = {"version": __version__} | manifests.open_result(out, NAME, settings, "backward")

    result["forward"] = forward_analysis(images, t_starts, sigmas, model.intensity, schedule)
    if not images.paired:
        print("no sketch has the name of a real image: no sketch is denoised")
    means = {}
    if not args.forward_only:
        manifests.make_folders(out, ("images",))
        some = args.backward or [t_starts[i] for i in spread(len(t_starts), min(5, len(t_starts)))]
        some = sorted({*some, recommend(result["forward"]["sketch"])["t_start"]})
        make, root = trained.generator(model, tile=args.tile), keys.root(args.seed)

        def denoised(name, x0, plan):
            # One noise per image: t_start and sigma are compared on the same.
            progress = cli.telling(f"  {name}: network evaluation")
            return make(keys.stream(root, "tune", name), x0, plan, progress=progress)

        plans = {0: None} | {t: plan(t) for t in some}
        means = backward_analysis(out, result, images, sigmas, plans, denoised, model.intensity)
    zncc = {(t, sigma): means[label(sigma), t]["zncc"] for sigma in sigmas for which, t in means if which != REAL}
    result["recommended"] = recommend(result["forward"]["sketch"], zncc)
    manifests.make_folders(out, ("",))
    manifests.write_json(out / NAME, result)
    spacing = model.metadata["spacing_um"]
    aspect = spacing[0] / spacing[-1] if spacing and model.ndim == 3 else 1.0
    tune_report.write(out, images, result, means, KLD_ENOUGH, aspect)
    return result
