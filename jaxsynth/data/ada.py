"""Adaptive discriminator augmentation (Karras et al. 2020, as in paper 003): what the critic sees of images is changed
at random, real and generated alike, the more often the better it knows the real ones by heart.

The generator learns through these changes, so all of them are differentiable in the image.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxsynth import keys


@dataclasses.dataclass(frozen=True)
class Augmentations:
    """How far each change goes, for images in [0, 1]; the defaults are those of paper 003 (section 4) where it has one.

    Attributes:
      scale: all intensities times a number from this range; (1, 1): none.
      noise_std: standard deviation of Gaussian noise, which the paper writes as N(0, 0.1); 0: none.
      shuffle_vox: edge of the box whose voxels are shuffled; 0: none.
      inpaint_vox: edge of the box that is painted over; 0: none.
      far: intensities fall linearly from one end of an axis to the other, where a share from this range is left;
        (1, 1): none. The paper names no range; a fifth at least leaves the far end something to see.
    """

    scale: tuple[float, float] = (0.6, 1.2)
    noise_std: float = 0.1
    shuffle_vox: int = 25
    inpaint_vox: int = 15
    far: tuple[float, float] = (0.2, 1.0)


PAPER = Augmentations()


def augment(key: jax.Array, image: jax.Array, probability: jax.Array, limits: Augmentations = PAPER) -> jax.Array:
    """An image with some of paper 003's changes: each is made with `probability`, drawn on its own, one upon the other.

    Scaling, noise, shuffling, inpainting, fall of intensity, in the paper's order. Every change is affine in the image.

    Args:
      key: of this image. Reals and fakes draw from the same distribution: nothing depends on the image but its shape.
      image: float32 [*S] in [0, 1].
      probability: float32 [] in [0, 1]; 0 gives the image back, bit for bit.

    Returns:
      float32 [*S]. Not clipped: a clipped voxel passes no gradient, and noise about black would become a bias that
      the generator would learn as if it were the images' own.
    """

    def drawn(name: str) -> tuple[jax.Array, jax.Array]:
        own = keys.stream(key, name)
        return own, jax.random.bernoulli(keys.stream(own, "made"), probability)

    # A change that is not made is made with parameters that change nothing: cheaper than choosing between two volumes.
    own, made = drawn("scale")
    image = image * jnp.where(made, _uniform(keys.stream(own, "factor"), limits.scale), 1.0)
    if limits.noise_std:
        own, made = drawn("noise")
        noise = jax.random.normal(keys.stream(own, "values"), image.shape)
        image = image + jnp.where(made, limits.noise_std, 0.0) * noise
    if limits.shuffle_vox:
        image = _shuffle(*drawn("shuffle"), image, limits.shuffle_vox)
    if limits.inpaint_vox:
        image = _inpaint(*drawn("inpaint"), image, limits.inpaint_vox)
    return _fall(*drawn("fall"), image, limits.far)


def _shuffle(key: jax.Array, made: jax.Array, image: jax.Array, edge: int) -> jax.Array:
    """The voxels of one box, anywhere, in another order."""
    size = tuple(min(edge, n) for n in image.shape)
    corner = _corner(keys.stream(key, "corner"), image.shape, size)
    box = jax.lax.dynamic_slice(image, corner, size)
    order = jax.random.permutation(keys.stream(key, "order"), box.size)
    order = jnp.where(made, order, jnp.arange(box.size))
    return jax.lax.dynamic_update_slice(image, _permute(box.ravel(), order).reshape(size), corner)


@jax.custom_vjp
def _permute(values: jax.Array, order: jax.Array) -> jax.Array:
    """values[order], [N]. Its gradient is the inverse permutation, again as a gather; left to itself it would be a
    scatter. Reverse mode alone, of any order."""
    return values.at[order].get(mode="promise_in_bounds", unique_indices=True)


def _permute_back(order: jax.Array, cotangent: jax.Array):
    return _permute(cotangent, jnp.argsort(order)), None


_permute.defvjp(lambda values, order: (_permute(values, order), order), _permute_back)


def _inpaint(key: jax.Array, made: jax.Array, image: jax.Array, edge: int) -> jax.Array:
    """One box, anywhere, painted over with the mean of the voxels around it.

    The paper leaves the colour open. That of the surroundings hides what was in the box, but neither its place's
    brightness nor, as a fixed grey would, whether the place was in or out of the organism. Around the box means one
    voxel to each side; along an axis without room for that, the box fills the patch, or all but a voxel of it.
    """
    size = tuple(min(edge + 2, n) for n in image.shape)
    box = tuple(min(edge, n) for n in image.shape)
    inside = np.zeros(size, bool)
    inside[tuple(slice((s - b) // 2, (s - b) // 2 + b) for s, b in zip(size, box, strict=True))] = True
    around = ~inside if not inside.all() else inside  # no surroundings at all: the patch's own mean
    corner = _corner(keys.stream(key, "corner"), image.shape, size)
    region = jax.lax.dynamic_slice(image, corner, size)
    colour = jnp.where(around, region, 0.0).sum() / around.sum()
    return jax.lax.dynamic_update_slice(image, jnp.where(inside & made, colour, region), corner)


def _fall(key: jax.Array, made: jax.Array, image: jax.Array, far: tuple[float, float]) -> jax.Array:
    """Intensities that fall linearly along one axis, in one of its two directions, any as likely as another."""
    loss = jnp.where(made, 1 - _uniform(keys.stream(key, "far"), far), 0.0)
    chosen = jax.random.randint(keys.stream(key, "axis"), (), 0, image.ndim)
    backwards = jax.random.bernoulli(keys.stream(key, "direction"))
    for axis, n in enumerate(image.shape):
        way = jnp.arange(n) / max(n - 1, 1)
        way = jnp.where(backwards, way[::-1], way)
        share = 1 - jnp.where(chosen == axis, loss, 0.0) * way
        image = image * share.reshape((n,) + (1,) * (image.ndim - axis - 1))
    return image


def _corner(key: jax.Array, shape: tuple[int, ...], size: tuple[int, ...]) -> jax.Array:
    """Of a box of `size` within a volume of `shape`, any place as likely as another: int32 [D]."""
    return jax.random.randint(key, (len(shape),), 0, jnp.asarray(shape) - jnp.asarray(size) + 1)


def _uniform(key: jax.Array, limits: tuple[float, float]) -> jax.Array:
    return jax.random.uniform(key, (), minval=limits[0], maxval=limits[1])


@struct.dataclass
class Ada:
    """How often images are changed, and what the critic said since that was last decided. Part of the checkpoint.

    Attributes:
      probability: float32 [], of each change in `augment`.
      signs: float32 [], sum of the mean signs observed.
      count: int32 [], how many there were.
    """

    probability: jax.Array
    signs: jax.Array
    count: jax.Array

    @property
    def r(self) -> jax.Array:
        """How far the critic overfits (paper 003, eq. 2): float32 [] in [-1, 1], the mean sign of its logits of real
        images since the last update; 0 where nothing was observed."""
        return self.signs / jnp.maximum(self.count, 1)


def start(probability: float = 0.0) -> Ada:
    """The record before the first step."""
    return Ada(jnp.asarray(probability, jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def observe(ada: Ada, signs: jax.Array) -> Ada:
    """Adds what the critic said of one batch of real images.

    Args:
      signs: float32, any shape: signs of its logits, or means of such signs over equally many (of micro-batches, of
        an image's patches). Signs and not logits, as the mean of logits says nothing about how many are right.
    """
    return ada.replace(signs=ada.signs + jnp.mean(signs), count=ada.count + 1)


def update(ada: Ada, *, target: float = 0.6, step: float = 0.05) -> Ada:
    """The next probability, within [0, 1]: up by `step` where r is above `target`, down where below.

    Paper 003, section 2, below eq. 2. Sums start again. Where nothing was observed, nothing changes.
    """
    moved = jnp.clip(ada.probability + step * jnp.sign(ada.r - target), 0.0, 1.0)
    return Ada(
        probability=jnp.where(ada.count > 0, moved, ada.probability),
        signs=jnp.zeros_like(ada.signs),
        count=jnp.zeros_like(ada.count),
    )
