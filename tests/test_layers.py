"""The layers of the house: who may import whom."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxsynth"
BASE = {"errors", "records", "keys", "devices"}
KERNELS = {"sim", "nn", "diffusion", "seg", "metrics"}
COMMANDS = {"train", "simulate", "sample", "evaluate", "tune", "convert", "quickstart", "bench"}
COMMANDS |= {"segment", "experiment"}
PARTS = {("segment", "train")}  # commands that are a part of another
# What each part of the package may import of the others.
MAY = (
    {name: {"errors", "records"} for name in BASE}
    | {kernel: BASE | {kernel} for kernel in KERNELS}
    | {
        "data": BASE | {"data", "sim"},
        "panels": BASE,
        "figures": BASE | {"panels"},
        "cli": BASE,
        "optimiser": BASE,
        "checkpoint": BASE,
        "log": BASE | {"figures"},
        "manifest": BASE | {"pipeline"},
        "pipeline": BASE,
        "image_files": BASE
        | {"cli", "data", "diffusion", "faithful", "pipeline", "specimens", "trained", "trained_gan"},
        "sample_jobs": BASE | {"data", "gan_files", "image_files", "sketch_files", "specimens"},
        "gan_files": BASE | {"data", "image_files", "sim", "specimens", "tasks", "trained"},
        "trained_gan": BASE | {"data", "tasks", "trained"},
        "published_training": BASE | {"cli"},
        "bench_gan": BASE | {"bench_device", "bench_peer", "bench_train", "cli", "nn", "tasks"},
        "specimens": BASE | {"sim"},
        "out_of_core": BASE | {"data", "diffusion"},
        "trained": BASE | {"checkpoint", "data", "diffusion", "out_of_core", "sim", "tasks"},
        "sketch_files": BASE | {"data", "manifest"},
        "compare_images": BASE | {"data", "metrics"},
        "compare_profiles": BASE | {"compare_images", "data", "metrics"},
        "evaluation_report": BASE
        | {"compare_images", "compare_labels", "compare_profiles", "data", "figures", "figures_profiles", "metrics"},
        "figures_profiles": BASE | {"figures"},
        "tune_pairs": BASE | {"compare_labels", "data", "sketch_files"},
        "tune_report": BASE | {"data", "figures", "tune_pairs"},
        "tune_start": BASE
        | {
            "cli",
            "checkpoint",
            "compare_images",
            "compare_labels",
            "data",
            "diffusion",
            "manifest",
            "metrics",
            "sim",
            "trained",
            "tune_pairs",
            "tune_report",
        },
        "samplers_report": BASE | {"data", "figures"},
        "tune_samplers": BASE
        | {
            "cli",
            "checkpoint",
            "compare_images",
            "data",
            "diffusion",
            "manifest",
            "samplers_report",
            "sim",
            "trained",
            "tune_pairs",
        },
        "bench_device": BASE | {"cli"},
        "bench_peer": BASE | {"bench_device"},
        "bench_sim": BASE | {"bench_device", "cli", "data", "sim", "tasks"},
        "bench_sample": BASE | {"bench_device", "bench_peer", "cli", "data", "diffusion", "nn", "tasks", "trained"},
        "bench_train": BASE | {"bench_device", "bench_peer", "cli", "nn", "tasks", "train_programs"},
        "bench_start": BASE | {"data"},
        "bench_generate": BASE | {"bench_device", "bench_sample", "data", "image_files", "sim", "specimens", "trained"},
        "train_programs": BASE | {"tasks"},
        "train_start": BASE | {"checkpoint", "data", "tasks", "train_programs"},
        "train_source": BASE | {"data", "train_start"},
        "gan_measure": BASE | {"data", "sim"},
        "gan_source": BASE | {"data", "gan_measure", "sim", "specimens", "tasks", "train_source", "train_start"},
        "segment_source": BASE | {"data", "sim", "specimens", "tasks", "train_source", "train_start", "trained"},
        "segmenter": BASE | {"checkpoint", "data", "nn", "seg", "tasks", "trained"},
        "segment_pairs": BASE | {"data"},
        "segment_totals": BASE | {"metrics"},
        "segment_scores": BASE
        | {"compare_images", "data", "figures_segmentation", "manifest", "metrics", "segment_pairs", "segment_totals"},
        "figures_segmentation": BASE | {"figures", "panels"},
        "faithful": BASE | {"metrics"},
        "fidelity_report": BASE | {"compare_labels", "data", "figures", "manifest", "metrics", "panels"},
        "experiment_plan": BASE,
        "experiment_sets": BASE | {"data"},
        "experiment_report": BASE
        | {"data", "experiment_plan", "figures", "figures_segmentation", "manifest", "metrics", "segment_totals"},
        "compare_labels": BASE | {"data", "figures", "manifest", "metrics"},
        "outputs": BASE | {"checkpoint", "data", "figures", "manifest"},
        "centre_files": BASE | {"data"},
        "recipe_files": BASE | {"centre_files", "data", "outputs", "sim", "specimens"},
        "label_files": BASE | {"data", "manifest", "outputs", "sim", "specimens"},
        "timeseries": BASE | {"data", "figures", "outputs", "recipe_files", "sim", "specimens"},
        "tasks": BASE | KERNELS | {"checkpoint", "data", "tasks", "optimiser"},
    }
)
# Libraries kept to one place, so that a change in one of them touches little.
ONLY_IN = {
    "flax.linen": {"nn"},
    "ml_collections": {"cli", "tasks", "trained", "segmenter"} | COMMANDS,
    "matplotlib": {"figures", "figures_profiles", "figures_segmentation"},
    "orbax": {"checkpoint"},
    "tensorboardX": {"log"},
    "tifffile": {"data"},
    "h5py": {"data"},
    "tensorflow_datasets": {"data"},
    "torch": {"bench_peer", "bench_sample"},
    "tensorflow": set(),
}
# The commands write files; of the layers below only these may.
FILES = {"data", "checkpoint", "log", "figures", "manifest", "cli"} | COMMANDS
FILES |= {"tune_pairs", "tune_report", "tune_start", "tune_samplers", "samplers_report", "sketch_files"}
FILES |= {"out_of_core", "trained", "image_files", "train_start"}
FILES |= {"train_source", "segment_source", "segmenter", "segment_pairs", "segment_scores", "figures_segmentation"}
FILES |= {"evaluation_report", "figures_profiles", "published_training", "gan_files", "sample_jobs", "bench_gan"}
FILES |= {"fidelity_report", "experiment_plan", "experiment_sets", "experiment_report"}
FILES |= {"bench_device", "bench_peer", "bench_sim", "bench_sample", "bench_train", "bench_start", "bench_generate"}
FILES |= {"compare_labels", "outputs", "centre_files", "recipe_files", "label_files", "timeseries"}  # parts of commands
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(tree):
    """Every dotted name a module imports, with what it takes from there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_downwards(file):
    part = part_of(file)
    for name in imports(ast.parse(file.read_text())):
        if name.startswith("jaxsynth."):
            other = name.split(".")[1]
            if part not in COMMANDS and part != "__init__" and other != "__version__":
                assert other in MAY[part], f"{part} imports {name}"
            assert other not in COMMANDS or (part, other) in PARTS, f"{part} imports the command {name}"
        for library, places in ONLY_IN.items():
            if name == library or name.startswith(library + "."):
                assert part in places, f"{part} imports {name}"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_kernels_touch_no_files(file):
    part = part_of(file)
    if part in FILES or part == "__init__":
        return
    names = set(imports(ast.parse(file.read_text())))
    assert not {name for name in names if name.split(".")[0] in {"pathlib", "os", "io", "shutil", "tempfile"}}


def test_there_are_modules_to_check():
    assert {part_of(file) for file in MODULES} >= {"data", "nn", "sim", "train"}
