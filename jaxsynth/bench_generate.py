"""The cases `generate` of the benchmark suite `sample`: whole data sets, from the recipe to the files.

Weights are random, which costs no other time than trained ones.
"""

import statistics
import tempfile
import time
from pathlib import Path

from jaxsynth import bench_device, bench_sample

T_START = 400


def generate(
    shape: tuple[int, ...],
    recipe: str = "nuclei",
    num: int = 8,
    *,
    features: int = 16,
    evaluations: int | None = None,
    batch: int | None = None,
    rounds: int = 3,
    profile: str | Path | None = None,
) -> dict:
    """`num` specimens simulated, sketched, denoised by the defaults of `sample` and written, with everything compiled;
    and the same with every stage waited for, in turns.

    Args:
      shape, recipe: of the specimens.
      evaluations: of the network, per image; None: the default.
      batch: images denoised at once; None: one per device.
      profile: folder for a trace of a further run.

    Returns:
      The row's shape, evaluations, compile_s (the first run over the others: what simulates is compiled, too), median_s
      and serial_s (seconds per volume, without and with waiting), volumes_per_hour and a note.
    """
    import dataclasses

    from jaxsynth import image_files, keys, specimens, trained
    from jaxsynth.data.intensity import Intensity
    from jaxsynth.sim.sketch import LEVELS

    untrained = bench_sample.untrained(len(shape), features)
    intensity = Intensity("percentile", "uint16", low=0.0, high=4000.0, background=200.0, scale=50.0, levels=LEVELS)
    model = dataclasses.replace(untrained, intensity=intensity)
    plan = trained.make_plan(model, min(T_START, model.t_max), num_evaluations=evaluations)
    settings = image_files.Settings(plan, batch=batch)
    root, ready = keys.root(0), image_files.generators(model, settings)
    drawn = specimens.plan(recipe, shape, None, None, None)
    jobs = image_files.simulated(root, drawn, LEVELS, [f"{recipe}_{i:04d}" for i in range(num)])
    work = image_files.batches(model, jobs, settings)

    def run(overlapped: bool = True) -> None:
        made = []
        with tempfile.TemporaryDirectory() as folder:
            for name in image_files.FOLDERS:
                (Path(folder) / name).mkdir()

            def done(name, entry):
                made.append(name)

            image_files.make(model, root, Path(folder), work, settings, done, ready=ready, overlapped=overlapped)
        if len(made) < num:
            raise RuntimeError(f"made {len(made)} of {num} images, which is not what is to be measured")

    with bench_device.traced(None):  # an image that takes long tells how far it is
        began = time.perf_counter()
        run()
        first_s = time.perf_counter() - began
        ours, serial = bench_device.turns(rounds, (run, 1), (lambda: run(False), 1))
    if profile is not None:
        with bench_device.traced(profile):
            run()
    whole_s, serial_s = statistics.median(ours), statistics.median(serial)
    size, split = work[0].size, f"over {model.num_devices} devices" if model.num_devices > 1 else "on one device"
    how_many = "image by image, in tiles" if size is None else f"{size} at once"
    saved = round(100 * (1 - whole_s / serial_s))
    return {
        "shape": tuple(shape),
        "evaluations": plan.num_evaluations,
        "compile_s": max(0.0, first_s - whole_s),
        "median_s": whole_s / num,
        "serial_s": serial_s / num,
        "volumes_per_hour": 3600 * num / whole_s,
        "note": f"{num} of recipe {recipe}, {how_many} {split}; {saved} % less time than with every stage waited for",
    }
