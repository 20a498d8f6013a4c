"""The stages of `jaxsynth.experiment`: which commands it runs, on what, in which order."""

import dataclasses
import json
from pathlib import Path

ARMS = ("real", "silver", "simulated", "microscope", "both")
MORE_ARMS = ("gan",)  # only where they are asked for
KINDS = ("split", "model", "synthetic", "segment", "report")  # of stages, for --only
# What a sweep trains on: value -> arm; `sources` tells what each arm is.
SWEEPS = {
    "ratio": {"0": "real", "0.25": "both_quarter", "1": "both", "4": "both_four"},
    "clustering": {value: f"clustering_{value}" for value in ("0", "0.3", "0.6", "0.9")},
}
CONFIGS = Path(__file__).parent.parent / "configs"
QUICK_IMAGES = 4
QUICK_MODEL = ("--config.train.num_steps=6", "--config.model.features=4", "--config.data.batch_size=1")
QUICK_SEGMENT = ("--config.model.features=4", "--config.data.batch_size=1")
QUICK_GAN = (*QUICK_MODEL, "--config.gan.critic_features=4")
QUICK_STEPS = 6
GAN = "simulated_gan"  # the source of that arm: simulated cells, made into images by a GAN


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
      name: unique within its set; its log and its note are called so.
      kind: one of KINDS.
      words: the command of jaxsynth and its arguments; "split" is done here.
      out: the folder it makes.
      needs: names of earlier stages whose results it uses.
    """

    name: str
    kind: str
    words: tuple[str, ...]
    out: Path
    needs: tuple[str, ...] = ()


def split_stage(name: str, settings, args) -> Stage:
    """The first stage of a set."""
    folder = Path(args.out) / name
    told = [settings.kind, settings.spacing_um, settings.share, settings.test_first]
    told = json.dumps(told + ["train_right"] * settings.train_right)
    words = ("split", str(Path(args.data).resolve() / name), told, *(["quick"] if args.quick else []))
    return Stage("split", "split", words, folder / "train")


def stages(name: str, settings, args, split: dict) -> list[Stage]:
    """The commands of a set after its split, in order.

    Args:
      settings: `experiment_sets.DataSet`.
      split: what split.json holds.
    """
    folder = Path(args.out) / name
    train, quick = folder / "train", QUICK_MODEL if args.quick else ()
    model = dict(args.models).get(name)
    made = []
    wanted = {source for arm in args.arms for source in sources(arm)}
    if model is None and wanted - {"train", GAN}:
        model = folder / "model"
        words = ("train", "--config", CONFIGS / settings.config, "--workdir", model,
                 f"--config.data.path={train / 'images'}", *settings.model, *quick)  # fmt: skip
        made.append(_stage("model", "model", words, model, "split"))
    after = ("model",) if made else ("split",)
    if GAN in wanted:
        labels = train / "labels"
        words = ("train", "--config", CONFIGS / "gan_nuclei.py", "--workdir", folder / "gan_model",
                 f"--config.data.path={train / 'images'}", f"--config.gan.labels={labels}",
                 f"--config.gan.image_labels={labels}", *settings.gan, *(QUICK_GAN if args.quick else ()))  # fmt: skip
        made.append(_stage("gan_model", "model", words, folder / "gan_model", "split"))
    parts = {arm: [] for arm in args.arms}
    for arm in args.arms:
        for source in sources(arm):
            if source == "train":
                parts[arm].append((train, "split"))
            elif source == "silver":
                sketched = folder / "silver_sketches"
                words = ("simulate", "--labels", train / "labels", "--images", train / "images", "--checkpoint", model,
                         "--out", sketched)  # fmt: skip
                made.append(_stage("silver_sketches", "synthetic", words, sketched, "split", *after))
                words = ("sample", "--checkpoint", model, "--sketches", sketched / "sketches", "--out", folder / source)
                made.append(_stage(source, "synthetic", words, folder / source, "silver_sketches"))
                parts[arm].append((folder / source, source))
            else:
                by = (folder / "gan_model", split, ("gan_model",)) if source == GAN else (model, split, after)
                own, used = _simulated(source, folder, settings, *by)
                made += own
                parts[arm] += used
    made = list({stage.name: stage for stage in made}.values())  # arms share what they are made of
    for seed in range(args.seeds):
        for arm in args.arms:
            made += _segmentations(arm, seed, folder, settings, args, parts[arm], split)
    return made


def sources(arm: str) -> tuple[str, ...]:
    """What an arm trains on: "train" and names of synthetic sets, a microscope's being called "cells..."."""
    if arm.startswith("clustering_"):
        return (f"simulated_{arm}",)
    return {"real": ("train",), "silver": ("silver",), "simulated": ("simulated",), "microscope": ("cells",),
            "both": ("train", "simulated"), "gan": (GAN,), "both_quarter": ("train", "simulated_quarter"),
            "both_four": ("train", "simulated", "simulated_more")}[arm]  # fmt: skip


def _simulated(source: str, folder: Path, settings, model, split: dict, after: tuple[str, ...]):
    """(stages, [(folder, stage)]) of simulated cells: sketched, pictured by the microscope and made into images."""
    # How many per real image, with which seed, so that what is more is not the same again.
    share, seed = {"simulated_quarter": (0.25, 0), "simulated_more": (3, 1)}.get(source, (1, 0))
    count = max(len(settings.parts), round(share * split["train"]["images"]))
    shape = ",".join(map(str, settings.shape or split["train"]["shape"]))
    variant = source.partition("_")[2]
    made, used = [], []
    for i, flags in enumerate(settings.parts):
        end = "".join(f"_{word}" for word in (variant, str(i) if len(settings.parts) > 1 else "") if word)
        cells, images = f"cells{end}", f"simulated{end}"
        num = count // len(settings.parts) + (i < count % len(settings.parts))
        words = ("simulate", "--recipe", settings.recipe, "--num", num, "--shape", shape, "--seed", seed, *flags)
        if variant.startswith("clustering_"):
            words += (f"--clustering={variant.partition('_')[2]}",)  # the last one counts
        words += ("--render", "--checkpoint", model, "--out", folder / cells)
        made.append(_stage(cells, "synthetic", words, folder / cells, *after))
        if source != "cells":
            words = ("sample", "--checkpoint", model, "--sketches", folder / cells / "sketches", "--seed", seed,
                     "--out", folder / images)  # fmt: skip
            made.append(_stage(images, "synthetic", words, folder / images, cells))
        used.append((folder / cells, cells) if source == "cells" else (folder / images, images))
    return made, used


def _segmentations(arm, seed, folder, settings, args, parts, split) -> list[Stage]:
    """Training, prediction and scores of one arm and seed."""
    place, name, test = folder / arm_folder(arm) / str(seed), f"{arm}-{seed}", folder / "test"
    more = (f"--config.train.num_steps={args.steps}",) if args.steps else ()
    more += (*settings.segment, *(QUICK_SEGMENT if args.quick else ()))
    words = ("segment", "train", "--images", ",".join(str(part / "images") for part, _ in parts),
             "--labels", ",".join(str(part / "labels") for part, _ in parts), "--workdir", place / "run",
             "--config", CONFIGS / "flowseg.py", f"--config.seed={seed}", *more)  # fmt: skip
    made = [_stage(f"{name}-train", "segment", words, place / "run", *(stage for _, stage in parts))]
    words = ("segment", "predict", "--checkpoint", place / "run", "--images", test / "images",
             "--out", place / "segmentation")  # fmt: skip
    made.append(_stage(f"{name}-predict", "segment", words, place / "segmentation", f"{name}-train"))
    words = ("segment", "score", "--reference", test / "labels", "--segmentation", place / "segmentation")
    words += ("--out", place / "scores")
    made.append(_stage(f"{name}-score", "segment", words, place / "scores", f"{name}-predict"))
    if split["test"]["gold_images"]:
        words = ("segment", "score", "--reference", test / "gold", "--segmentation", place / "segmentation")
        words += ("--partial", "--out", place / "scores_gold")
        made.append(_stage(f"{name}-gold", "segment", words, place / "scores_gold", f"{name}-predict"))
    return made


def arm_folder(arm: str) -> str:
    """Where an arm's networks lie, beside the images they are trained on."""
    return f"arm_{arm}"


def _stage(name, kind, words, out, *needs) -> Stage:
    return Stage(name, kind, tuple(map(str, words)), Path(out), needs)
