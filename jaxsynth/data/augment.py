"""Patches changed at random, on the device.

Symmetries leave a patch's statistics as they are: a diffusion model learns whatever distribution it is shown. A
segmentation network is to cope with more than it is shown, so it gets other sizes, angles, light and noise, too.
"""

import itertools

import jax
import jax.numpy as jnp

from jaxsynth import keys


def draw_symmetry(key: jax.Array) -> jax.Array:
    """One of the eight symmetries of the square: bool [3], flip Y, flip X, swap Y with X."""
    return jax.random.bernoulli(key, shape=(3,))


def apply_symmetry(patch: jax.Array, symmetry: jax.Array) -> jax.Array:
    """Flips and turns in the plane; z stays, since light decays and blurs along it in one direction.

    The swap is left out where the patch is not square in the plane.

    Args:
      patch: [*S], (Y, X) or (Z, Y, X).
      symmetry: bool [3], from `draw_symmetry`.
    """
    for axis in (-2, -1):
        patch = jnp.where(symmetry[axis + 2], jnp.flip(patch, axis), patch)
    if patch.shape[-1] == patch.shape[-2]:
        patch = jnp.where(symmetry[2], jnp.swapaxes(patch, -1, -2), patch)
    return patch


def draw_affine(key: jax.Array, ndim: int, limits) -> jax.Array:
    """A change of size and direction: float32 [D, D], from the patch's coordinates to the image's.

    Args:
      limits: `pairs.Augmentation`.
    """
    zoom = jnp.exp(_about_zero(keys.stream(key, "zoom"), jnp.log1p(limits.zoom)))
    axes = jnp.exp(_about_zero(keys.stream(key, "anisotropy"), jnp.log1p(limits.anisotropy), (ndim,)))
    angle = jax.random.uniform(keys.stream(key, "angle"), (), maxval=2 * jnp.pi if limits.rotation else 0.0)
    flip = jnp.where(jax.random.bernoulli(keys.stream(key, "flip"), shape=(2,)), -1.0, 1.0)
    plane = jnp.array([[jnp.cos(angle), jnp.sin(angle)], [-jnp.sin(angle), jnp.cos(angle)]]) * flip
    return jnp.eye(ndim).at[-2:, -2:].set(plane) * zoom * axes


def draw_places(key: jax.Array, matrix: jax.Array, patch: tuple[int, ...], shape: jax.Array) -> jax.Array:
    """Where the voxels of a patch lie in the image: float32 [D, *patch].

    The patch's centre is drawn so that its box, under `matrix`, lies within the image where there is room, and is
    centred along an axis where there is none.

    Args:
      matrix: float32 [D, D], from the patch's coordinates to the image's; shape: int32 [D], the image's.
    """
    ndim = len(patch)
    grid = [jnp.arange(n) - (n - 1) / 2 for n in patch]
    # A turned patch reaches less far than its corners: the box of the unturned one, under the sizes alone.
    reach = jnp.linalg.norm(matrix, axis=1) * (jnp.asarray(patch) - 1) / 2
    low, high = reach, shape - 1 - reach
    middle = (shape - 1) / 2
    share = jax.random.uniform(key, (ndim,))
    centre = jnp.where(high > low, low + share * (high - low), middle)
    # Whole voxels, so that a patch that is not turned or zoomed is cut without interpolating.
    centre = jnp.floor(centre) + jnp.asarray([(n - 1) / 2 % 1 for n in patch])
    # Written out, as the product of a small matrix with many points is slow on CPU.
    steps = [g.reshape((-1,) + (1,) * (ndim - axis - 1)) for axis, g in enumerate(grid)]
    rows = [sum(matrix[i, j] * steps[j] for j in range(ndim)) + centre[i] for i in range(ndim)]
    return jnp.stack([jnp.broadcast_to(row, patch) for row in rows])


def address(at: jax.Array, shape: jax.Array) -> jax.Array:
    """The number, in row-major order, of the voxels at int32 [D, ...] of an image of `shape` int32 [D]."""
    number = at[0]
    for axis in range(1, at.shape[0]):
        number = number * shape[axis] + at[axis]
    return number


def interpolate(flat: jax.Array, offset: jax.Array, shape: jax.Array, at: jax.Array) -> jax.Array:
    """An image at the places float32 [D, ...], linearly between its voxels; reflected beyond its edge.

    Args:
      flat: float32 [N], the image lies in it from `offset` on; shape: int32 [D].
    """
    ndim = at.shape[0]
    low = jnp.floor(at)
    weight = at - low
    total = 0.0
    for corner in itertools.product((0, 1), repeat=ndim):
        places, share = [], 1.0
        for axis, step in enumerate(corner):
            places.append(reflect(low[axis].astype(jnp.int32) + step, shape[axis]))
            share = share * (weight[axis] if step else 1 - weight[axis])
        total = total + share * flat[offset + address(jnp.stack(places), shape)]
    return total


def change_light(key: jax.Array, image: jax.Array, limits) -> jax.Array:
    """Another exposure of a patch [*S] of about [0, 1]: gamma, contrast, blur, noise and offset.

    Noise comes after the contrast, so that cells of little contrast are also cells in much noise.

    Args:
      limits: `pairs.Augmentation`.
    """
    gamma = jnp.exp(_about_zero(keys.stream(key, "gamma"), jnp.log1p(limits.gamma)))
    image = jnp.sign(image) * jnp.maximum(jnp.abs(image), 1e-6) ** gamma
    image = image * jnp.exp(_about_zero(keys.stream(key, "contrast"), jnp.log1p(limits.contrast)))
    image = _blur(image, limits.blur_vox * jax.random.uniform(keys.stream(key, "blur")))
    # Mostly little noise: the square of a uniform number.
    strength = limits.noise * jax.random.uniform(keys.stream(key, "strength")) ** 2
    image = image + strength * jax.random.normal(keys.stream(key, "noise"), image.shape)
    return image + _about_zero(keys.stream(key, "offset"), limits.offset)


def _blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """A Gaussian of up to two voxels along every axis, the same at a half of that and less."""
    taps = jnp.exp(-0.5 * (jnp.arange(-3, 4) / jnp.maximum(sigma, 1e-3)) ** 2)
    taps = taps / taps.sum()
    for axis in range(image.ndim):
        padded = jnp.pad(image, [(3, 3) if a == axis else (0, 0) for a in range(image.ndim)], mode="edge")
        size = image.shape[axis]
        image = sum(taps[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(7))
    return image


def _about_zero(key: jax.Array, limit, shape: tuple[int, ...] = ()) -> jax.Array:
    return limit * jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def reflect(index: jax.Array, size: jax.Array) -> jax.Array:
    """Indices folded back into 0..size-1 at the ends, the edge voxel not repeated (NumPy's `reflect`)."""
    period = jnp.maximum(2 * (size - 1), 1)
    folded = jnp.mod(index, period)
    return jnp.minimum(folded, period - folded) * (size > 1)
