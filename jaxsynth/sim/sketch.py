"""Labels -> sketch: where cells are and how bright, the coarse drawing that the diffusion starts from (paper 001)."""

import jax
import jax.numpy as jnp

LEVELS = (-1.0, -0.5, 1.0)


def sketch(labels: jax.Array, brightness: jax.Array, *, levels: tuple[float, float, float] = LEVELS) -> jax.Array:
    """Every cell at its own grey level, unblurred.

    Args:
      labels: int32 [*S], 0 = background, at most N.
      brightness: float32 [N + 1], relative, in [0, 1], indexed by label; entry 0 is not used.
      levels: the grey of the background, of a cell of brightness 0, and of a cell of brightness 1, in [-1, 1].

    Returns:
      float32 [*S] in [-1, 1].
    """
    background, dim, bright = levels
    grey = dim + jnp.clip(brightness, 0.0, 1.0) * (bright - dim)
    return grey.at[0].set(background).astype(jnp.float32)[labels]


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
