"""Simulated specimens that suit a trained model: what `simulate` and `sample` both draw, from the same keys."""

import math
from dataclasses import dataclass

import jax

from jaxsynth import keys
from jaxsynth.errors import InputError
from jaxsynth.sim import tissues


@dataclass(frozen=True)
class Specimens:
    """How a recipe is drawn; all that a specimen depends on beside its name and the seed.

    Attributes:
      recipe: its name.
      shape: voxels.
      spacing_um: what the files state; None where the voxel size is unknown.
      drawn_at_um: the voxel size that the recipe is drawn at.
      num_cells: per specimen, or None for a draw from num_range.
      num_range: least and most cells, or None for the recipe's own.
    """

    recipe: str
    shape: tuple[int, ...]
    spacing_um: tuple[float, ...] | None
    drawn_at_um: tuple[float, ...]
    num_cells: int | None
    num_range: tuple[int, int] | None


def plan(
    recipe: str,
    shape: tuple[int, ...] | None,
    spacing_um: tuple[float, ...] | None,
    num_cells: int | None,
    metadata: dict | None,
) -> Specimens:
    """Fills in what the user left open, from the metadata of a checkpoint where there is one.

    A named organism has the size its paper says. The generic `nuclei` get size and number from the survey of the
    training images: the recipe is drawn as if a voxel were as large as makes them so.

    Raises:
      InputError: no such recipe, or shape, voxel size and recipe do not go together.
    """
    found = tissues.find(recipe)
    seen = metadata and recipe == "nuclei" and spacing_um is None and metadata.get("cells")
    shape = shape or (tuple(seen["shape"]) if seen else found.shape)
    given = spacing_um
    if metadata:
        ndim = len(metadata["config"]["data"]["patch"])
        if len(shape) != ndim:
            raise InputError(f"recipe {recipe} would make {len(shape)}D images, the model is {ndim}D: set --shape")
        spacing_um = spacing_um or (metadata["spacing_um"] and tuple(metadata["spacing_um"]))
    tissues.check(found, shape, spacing_um)
    if num_cells is not None and num_cells < 0:
        raise InputError(f"--cells: expected 0 or more; got {num_cells}")
    if seen:
        relative = [step / spacing_um[-1] for step in spacing_um] if spacing_um else [1.0] * len(shape)
        drawn_at = tuple(step * found.radius_um / seen["radius_vox"] for step in relative)
        share = math.prod(shape) / math.prod(seen["shape"])
        low, high = (max(1, round(factor * seen["num_cells"] * share)) for factor in (0.7, 1.3))
        return Specimens(recipe, shape, spacing_um, drawn_at, num_cells, (low, high))
    if metadata and not given and not found.by_extent:
        # One whole organism fills the image, whatever the voxel size.
        return Specimens(recipe, shape, spacing_um, tissues.default_spacing(found, shape), num_cells, None)
    drawn_at = spacing_um or tissues.default_spacing(found, shape)
    return Specimens(recipe, shape, spacing_um or drawn_at, drawn_at, num_cells, None)


def draw(root: jax.Array, name: str, specimens: Specimens) -> tissues.Simulated:
    """The specimen of that name under the run's root key."""
    return tissues.simulate_labels(
        keys.stream(root, "simulate", name),
        specimens.recipe,
        specimens.shape,
        specimens.drawn_at_um,
        specimens.num_cells,
        specimens.num_range,
    )
