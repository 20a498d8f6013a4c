"""Labels -> sketch: where cells are and how bright, the coarse drawing that the diffusion starts from (paper 001).

Whatever varies within a cell comes as a shade, a factor on the light of every voxel: `nucleoli`, `decay` with depth and
`texture` make shades, and shades multiply.
"""

import jax
import jax.numpy as jnp

from jaxsynth import keys
from jaxsynth.records import Cells
from jaxsynth.sim import deform, grid

LEVELS = (-1.0, -0.5, 1.0)
PROFILES = ("exponential", "linear")


def sketch(
    labels: jax.Array,
    brightness: jax.Array,
    *,
    levels: tuple[float, float, float] = LEVELS,
    shade: jax.Array | None = None,
    stacked: bool = False,
) -> jax.Array:
    """Every cell at its own grey level, unblurred.

    Args:
      labels: int32 [*S], 0 = background, at most N; or where cells overlap a stack of them, [M, *S].
      brightness: float32 [N + 1], relative, in [0, 1], indexed by label; entry 0 as in `records.Specimen`.
      levels: the grey of the background, of a cell of brightness 0, and of a cell of brightness 1, in [-1, 1].
      shade: float, broadcasts against the labels: the factor on what a cell is brighter than the background.
      stacked: static; whether the first axis counts layers. What the cells of a voxel are brighter than the background
        is added up.

    Returns:
      float32 [*S] in [-1, 1], clipped to it.
    """
    background, dim, bright = levels
    grey = dim + jnp.clip(brightness, 0.0, 1.0) * (bright - dim)
    background = background_grey(brightness[0], levels)
    if shade is None and not stacked:
        return grey.at[0].set(background).astype(jnp.float32)[labels]
    above = (grey - background).at[0].set(0.0).astype(jnp.float32)[labels]
    above = above if shade is None else above * shade
    above = jnp.sum(above, axis=0) if stacked else above
    return jnp.clip(background + above, -1.0, 1.0)


def background_grey(above: jax.Array, levels: tuple[float, float, float]) -> jax.Array:
    """The grey of a background, in [-1, 1]; `above` is how much brighter than usual it is (`records.Specimen`)."""
    background, dim, bright = levels
    return jnp.clip(background + above * (bright - dim), -1.0, 1.0)


def membrane_sketch(
    membrane: jax.Array,
    shade: jax.Array | float = 1.0,
    *,
    inside: jax.Array | None = None,
    interior: float = 0.0,
    levels: tuple[float, float, float] = LEVELS,
) -> jax.Array:
    """Bright membranes round dark cells, unblurred (paper 000, A. thaliana).

    Args:
      membrane: bool [*S].
      shade: float, broadcasts against it: light of the membranes, 1 at their brightest. The paper's declines linearly
        towards the inside of the organism: `decay(depth_um, length_um, profile="linear")`.
      inside: bool [*S], the organism, needed where its cells' interiors are not as dark as the background.
      interior: grey of the interiors, 0 (as the background) to 1 (as the dimmest membranes).
      levels: the grey of the background, of a membrane of shade 0, and of one of shade 1, in [-1, 1].

    Returns:
      float32 [*S] in [-1, 1].
    """
    background, dim, bright = levels
    if interior and inside is None:
        raise ValueError("inside: needed where interiors are not as dark as the background")
    dark = background if inside is None else jnp.where(inside, background + interior * (dim - background), background)
    return jnp.where(membrane, dim + jnp.clip(shade, 0.0, 1.0) * (bright - dim), dark).astype(jnp.float32)


def decay(
    depth_um: jax.Array, length_um: jax.Array | float, *, profile: str = "exponential", floor: jax.Array | float = 0.0
) -> jax.Array:
    """The share of light left below the surface: a shade.

    Args:
      depth_um: float, any shape, micrometres below where light is full; full above, too. Along the optical axis it is
        `grid.axes_um(shape, spacing_um)[0]`, below an organism's surface a distance map.
      length_um: micrometres over which it falls, to 1 / e ("exponential") or to `floor` ("linear").
      profile: one of PROFILES, static.
      floor: the least share, in [0, 1).

    Returns:
      float32, shape of depth_um, in [floor, 1].
    """
    if profile not in PROFILES:
        raise ValueError(f"profile: expected one of {', '.join(PROFILES)}; got {profile!r}")
    share = jnp.maximum(jnp.asarray(depth_um, jnp.float32), 0.0) / length_um
    left = jnp.exp(-share) if profile == "exponential" else 1 - jnp.minimum(share, 1.0)
    return floor + (1 - floor) * left


def texture(
    key: jax.Array, shape: tuple[int, ...], spacing_um: tuple[float, ...], grain_um: float, contrast: jax.Array | float
) -> jax.Array:
    """Cloudy brightness, the same for all cells that it is laid over: a shade.

    Args:
      key: typed PRNG key.
      shape, spacing_um, grain_um: static; grains are drawn no finer than two voxels.
      contrast: standard deviation of the logarithm.

    Returns:
      float32 [*S], log-normal with mean 1.
    """
    knots = tuple(max(grain_um / step, 2.0) for step in spacing_um)
    return jnp.exp(contrast * deform.smooth_noise(key, shape, knots) - jnp.square(contrast) / 2)


def nucleoli(
    key: jax.Array,
    labels: jax.Array,
    cells: Cells,
    spacing_um: jax.Array,
    *,
    number: tuple[int, int] = (0, 2),
    size: tuple[float, float] = (0.12, 0.25),
    darkness: float = 0.8,
) -> jax.Array:
    """Small dark balls inside nuclei: a shade (paper 000, GOWT1: 0 to 2 dark circles within each nucleus).

    They lie uniformly in the ellipsoid within which they stay inside the cell, a tenth of the radius left for outlines
    that are bent, and end at the cell's own boundary where that is bent further.

    Args:
      key: typed PRNG key.
      labels: int32 [*S] or stacked [M, *S]; label i + 1 is cell i.
      cells: places, semi-axes and rotations; `cells_from_labels` where only labels are known. Brightness is not used.
      spacing_um: float [D], micrometres per voxel.
      number: least and greatest number per nucleus, each as likely, static.
      size: range of their radius, uniform, relative to the nucleus's smallest semi-axis; below 0.9.
      darkness: 0 (as bright as the nucleus) to 1 (black).

    Returns:
      float32, shape of the labels: 1 - darkness within a nucleolus, 1 elsewhere.
    """
    low, most = number
    if not 0 <= low <= most:
        raise ValueError(f"number: expected 0 <= least <= greatest; got {number}")
    count, ndim = cells.centre_um.shape
    if most == 0:
        return jnp.ones(labels.shape, jnp.float32)
    in_cell = jax.random.randint(keys.stream(key, "number"), (count, 1), low, most + 1)
    exists = (jnp.arange(most) < in_cell) & cells.valid[:, None]
    share = jax.random.uniform(keys.stream(key, "size"), (count, most), minval=size[0], maxval=size[1])
    radius = share * jnp.min(cells.radii_um, axis=-1, keepdims=True)
    # A ball this large relative to the smallest semi-axis stays inside when its centre, in units of the semi-axes,
    # is no farther out than the rest.
    farthest = jnp.maximum(0.9 - share, 0.0)
    direction = jax.random.normal(keys.stream(key, "direction"), (count, most, ndim))
    direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    out = farthest * jax.random.uniform(keys.stream(key, "out"), (count, most)) ** (1 / ndim)
    own = out[..., None] * direction * cells.radii_um[:, None]
    centre = cells.centre_um[:, None] + jnp.einsum("nki,nij->nkj", own, cells.rotation)
    # Label 0 comes first; a negative square holds for no voxel.
    squared = jnp.pad(jnp.where(exists, radius**2, -1.0), ((1, 0), (0, 0)), constant_values=-1.0)
    centre = jnp.pad(centre, ((1, 0), (0, 0), (0, 0)))
    axes = grid.axes_um(labels.shape[-ndim:], spacing_um)
    dark = jnp.zeros(labels.shape, bool)
    for k in range(most):
        distance = sum((axis - centre[:, k, d][labels]) ** 2 for d, axis in enumerate(axes))
        dark = dark | (distance <= squared[:, k][labels])
    return jnp.where(dark, 1.0 - darkness, 1.0)


def cells_from_labels(labels: jax.Array, spacing_um: jax.Array, max_cells: int) -> Cells:
    """The ellipsoid of the same centroid and second moments as each label's voxels.

    Args:
      labels: int32 [*S], 0 = background; labels above `max_cells` are left out and set the overflow flag.
      spacing_um: float [D], micrometres per voxel.
      max_cells: N, static.

    Returns:
      Cells; cell i is label i + 1, valid where that is there. Semi-axes rise; the last, longest one's axis is the last
      row of the rotation. An ellipsoid's own semi-axes come back; brightness is 0.
    """
    spacing_um = jnp.asarray(spacing_um, jnp.float32)
    ndim = labels.ndim
    flat = jnp.where((labels < 0) | (labels > max_cells), 0, labels).reshape(-1)

    def total(x):
        x = jnp.broadcast_to(x, labels.shape).reshape(-1)
        return jax.ops.segment_sum(x, flat, max_cells + 1)[1:]

    count = total(jnp.int32(1))
    number = jnp.maximum(count, 1).astype(jnp.float32)
    middle = grid.size_um(labels.shape, spacing_um) / 2
    # From the middle, then from each cell's centre: the sums keep their digits.
    axes = [axis - middle[d] for d, axis in enumerate(grid.axes_um(labels.shape, spacing_um))]
    centre = jnp.stack([total(axis) / number for axis in axes], -1)
    padded = jnp.pad(centre, ((1, 0), (0, 0)))
    offset = [axis - padded[:, d][labels] for d, axis in enumerate(axes)]
    # A voxel is a box, not a point.
    second = [
        [total(offset[i] * offset[j]) / number + (i == j) * spacing_um[i] ** 2 / 12 for j in range(i + 1)]
        for i in range(ndim)
    ]
    rows = [jnp.stack([second[max(i, j)][min(i, j)] for j in range(ndim)], -1) for i in range(ndim)]
    variance, axis = jnp.linalg.eigh(jnp.stack(rows, -2))
    rotation = jnp.swapaxes(axis, -1, -2)
    rotation = rotation.at[:, 0].multiply(jnp.sign(jnp.linalg.det(rotation))[:, None])
    return Cells(
        centre_um=centre + middle,
        radii_um=jnp.sqrt((ndim + 2) * jnp.maximum(variance, 0.0)),
        rotation=rotation,
        brightness=jnp.zeros(max_cells, jnp.float32),
        valid=count > 0,
        overflow=jnp.max(labels, initial=0) > max_cells,
    )


def cell_means(labels: jax.Array, image: jax.Array, max_cells: int) -> tuple[jax.Array, jax.Array]:
    """Mean intensity of every cell and of the background.

    Args:
      labels: int32 [*S], 0 = background; labels above `max_cells` are left out.
      image: float [*S], any range.
      max_cells: N, static.

    Returns:
      float32 [N], cell i + 1's mean, 0 where there is no such cell; and the background's mean, float32 [], the
      image's smallest value where the labels leave no background.
    """
    image = jnp.asarray(image, jnp.float32)
    # Sums of deviations from the mean: float32 sums over millions of voxels on a pedestal would lose their digits.
    pivot = jnp.mean(image)
    flat = jnp.where((labels < 0) | (labels > max_cells), max_cells + 1, labels).reshape(-1)
    total = jax.ops.segment_sum((image - pivot).reshape(-1), flat, max_cells + 2)[: max_cells + 1]
    count = jax.ops.segment_sum(jnp.ones(flat.shape, jnp.int32), flat, max_cells + 2)[: max_cells + 1]
    means = jnp.where(count > 0, pivot + total / jnp.maximum(count, 1), 0.0)
    outside = labels == 0
    background = pivot + jnp.mean(jnp.where(outside, image - pivot, 0.0)) * (outside.size / jnp.maximum(count[0], 1))
    return means[1:], jnp.where(count[0] > 0, background, jnp.min(image))


def sketch_from_image(labels: jax.Array, image: jax.Array, max_cells: int) -> jax.Array:
    """Every cell at its mean in a real image, the background at its own: the papers' sketch from an annotation.

    Args:
      labels: int32 [*S], 0 = background.
      image: float [*S], normalised to [-1, 1].
      max_cells: N, static, at least the largest label.

    Returns:
      float32 [*S] in [-1, 1], unblurred.
    """
    means, background = cell_means(labels, image, max_cells)
    return jnp.clip(jnp.concatenate([background[None], means])[labels], -1.0, 1.0)


def blur(x: jax.Array, sigma: float | tuple[float, ...], *, truncate: float = 4.0) -> jax.Array:
    """Gaussian smoothing, as `scipy.ndimage.gaussian_filter(x, sigma, mode="reflect")`.

    Args:
      x: float [*S].
      sigma: voxels, one for all axes or one per axis, static; an axis with sigma 0 is left alone.
      truncate: the kernel ends at this many sigma.

    Returns:
      float32 [*S].

    The taps are added up as shifted copies, which XLA fuses; meant for kernels of up to some tens of taps.
    """
    x = jnp.asarray(x, jnp.float32)
    for axis, width in enumerate([sigma] * x.ndim if isinstance(sigma, int | float) else sigma):
        radius = int(truncate * width + 0.5)
        if radius == 0:
            continue
        taps = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1) / width) ** 2)
        taps = taps / jnp.sum(taps)
        size = x.shape[axis]
        pad = [(radius, radius) if other == axis else (0, 0) for other in range(x.ndim)]
        wide = jnp.pad(x, pad, mode="symmetric")
        x = sum(taps[i] * jax.lax.slice_in_dim(wide, i, i + size, axis=axis) for i in range(2 * radius + 1))
    return x
