"""Time series: cells that move, grow, divide and die, with labels that last.

A slot is a track: cell i is label i + 1 in every frame in which it is there, and no slot is used twice. A cell that
divides ends its track; its daughters take two new slots in the next frame.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from jaxsynth import keys
from jaxsynth.records import Cells

Contains = Callable[[jax.Array], jax.Array]


@struct.dataclass
class Lineage:
    """A population over T frames.

    Attributes:
      cells: `Cells` with a leading axis T in all fields; `frame` gives one of them. `valid` says who is there, and
        `overflow` whether a division has been missed up to then.
      parent: int32 [N], label of the mother of each cell, 0 for those of the first frame and empty slots.
      overlap_um: float32 [T], how far the worst pair is closer than it should be.
      overflow: bool []; some cell could not divide for want of slots. Read outside jit by the caller, who takes a
        larger capacity: the same key then gives the same series as far as it went.
    """

    cells: Cells
    parent: jax.Array
    overlap_um: jax.Array
    overflow: jax.Array


@struct.dataclass
class _State:
    """One frame: the cells, how far each is in its cycle, and how many slots have been used."""

    cells: Cells
    velocity: jax.Array
    age: jax.Array
    cycle: jax.Array
    parent: jax.Array
    used: jax.Array


def frame(lineage: Lineage, number: jax.Array | int) -> Cells:
    """The cells of one frame, as `ellipsoids.rasterise` takes them."""
    return jax.tree.map(lambda x: x[number], lineage.cells)


def simulate_lineage(
    key: jax.Array,
    first: Cells,
    size_um: jax.Array,
    num_frames: int,
    capacity: int,
    *,
    contains: Contains | None = None,
    cycle_frames: jax.Array | float = 20.0,
    cycle_spread: jax.Array | float = 0.15,
    step_um: jax.Array | float = 0.3,
    speed_um: jax.Array | float = 0.3,
    persistence_frames: jax.Array | float = 5.0,
    turn: jax.Array | float = 0.05,
    contact: jax.Array | float = 0.85,
    death_rate: jax.Array | float = 0.0,
    brightness_noise: jax.Array | float = 0.1,
    relaxations: int = 30,
) -> Lineage:
    """Lets a population live for some frames.

    Cells grow exponentially, their volume (area in 2D) doubling in one cycle. In the first frame their phases are
    those of a population in steady growth, 2^(1 - phase) log 2, so that their number doubles in one cycle from the
    start. A dividing cell's daughters have half its volume each, lie side by side along its long axis, and are long
    across it, as sister nuclei are. Velocities are a persistent random walk (Ornstein-Uhlenbeck), and Brownian steps
    come on top. Cells that come too close are pushed apart along the line between their centres.

    Where no `contains` is given, cells leave the image over its edge: a track ends once no point of the image lies
    within the cell. None come in, so a field that should stay full is simulated larger than the image.

    Args:
      key: typed PRNG key. Cell i's draws depend on key, frame and i, not on the capacity.
      first: the cells of frame 0, at most `capacity` slots, taken as they are.
      size_um: float [D], edge lengths of the image.
      num_frames: T, static.
      capacity: N, static; slots for all cells of the series, about n (2^(1 + T / cycle_frames) - 1) for n at first.
      contains: (points_um float32 [N, D]) -> bool [N], a closed region such as `placement.ellipsoid(...).contains`;
        no centre leaves it, and cells stay whether or not they are seen.
      cycle_frames: mean time from birth to division, frames; at least 1. Infinity: no growth, no division.
      cycle_spread: standard deviation of that time, relative to it; drawn per cell, cut at 2.5 standard deviations.
      step_um: standard deviation of the Brownian step per frame along each axis.
      speed_um: standard deviation of the velocity along each axis, micrometres per frame.
      persistence_frames: time in which the velocity is forgotten.
      turn: standard deviation of the random turn per frame about each axis, radians.
      contact: cells keep this share of the sum of their mean radii; 0: they pass through each other.
      death_rate: probability per cell and frame of ending without division (apoptosis).
      brightness_noise: standard deviation of what is added to a daughter's brightness; the sum is clipped to [0, 1].
      relaxations: static; most passes per frame that push cells apart.

    Raises:
      ValueError: capacity below that of `first`, or no frames.
    """
    held, ndim = first.centre_um.shape
    if held > capacity:
        raise ValueError(f"capacity: expected at least the {held} slots of the first frame; got {capacity}")
    if num_frames < 1:
        raise ValueError(f"num_frames: expected at least 1; got {num_frames}")
    size_um = jnp.asarray(size_um, jnp.float32)
    cycle_frames = jnp.maximum(jnp.asarray(cycle_frames, jnp.float32), 1.0)
    closed = contains if contains is not None else lambda points_um: jnp.ones(points_um.shape[0], bool)

    def cycles(key):
        drawn = jax.random.truncated_normal(key, -2.5, 2.5, (capacity,))
        return jnp.maximum(cycle_frames * (1 + cycle_spread * drawn), 1.0)

    def start() -> _State:
        cells = _fill(first, capacity)
        cycle = cycles(keys.stream(key, "cycle"))
        uniform = jax.random.uniform(keys.stream(key, "phase"), (capacity,))
        # The inverse of the phases' distribution function, 2 (1 - 2^-phase). No one divides twice in a frame.
        age = jnp.where(jnp.isinf(cycle), 0.0, -jnp.log2(1 - uniform / 2) * cycle)
        velocity = speed_um * jax.random.normal(keys.stream(key, "velocity"), (capacity, ndim))
        used = jnp.max(jnp.where(cells.valid, jnp.arange(capacity) + 1, 0), initial=0)
        return _State(cells, velocity, age, cycle, jnp.zeros(capacity, jnp.int32), used)

    def step(state: _State, number):
        here = keys.stream(key, "frame", number)
        state = _die(keys.stream(here, "death"), state, death_rate)
        state = _grow(state)
        state = _divide(here, state, cycles(keys.stream(here, "cycle")), brightness_noise, closed)
        state = _move(here, state, step_um, speed_um, persistence_frames, turn, closed)
        cells, overlap = _push_apart(state.cells, contact, closed, relaxations)
        if contains is None:
            cells = cells.replace(valid=cells.valid & _seen(cells, size_um))
        return state.replace(cells=cells), (cells, overlap)

    begin = start()
    _, overlap = _push_apart(begin.cells, contact, closed, 0)
    end, (later, overlaps) = jax.lax.scan(step, begin, jnp.arange(1, num_frames))
    cells = jax.tree.map(lambda x, rest: jnp.concatenate([x[None], rest]), begin.cells, later)
    return Lineage(cells, end.parent, jnp.concatenate([overlap[None], overlaps]), end.cells.overflow)


def _fill(cells: Cells, capacity: int) -> Cells:
    """The same cells with room for more."""

    def fill(x, value=0.0):
        return jnp.pad(x, [(0, capacity - x.shape[0])] + [(0, 0)] * (x.ndim - 1), constant_values=value)

    rotation = fill(cells.rotation)
    rotation = jnp.where(jnp.any(rotation != 0, axis=(1, 2), keepdims=True), rotation, jnp.eye(rotation.shape[-1]))
    return Cells(
        fill(cells.centre_um),
        fill(cells.radii_um, 1.0),
        rotation,
        fill(cells.brightness),
        fill(cells.valid, False),
        jnp.zeros((), bool),
    )


def _die(key: jax.Array, state: _State, death_rate) -> _State:
    lives = jax.random.uniform(key, state.age.shape) >= death_rate
    return state.replace(cells=state.cells.replace(valid=state.cells.valid & lives))


def _grow(state: _State) -> _State:
    """One frame older. Who is due and could not divide grows no further."""
    ndim = state.cells.centre_um.shape[-1]
    rate = jnp.where(state.age < state.cycle, 1 / state.cycle, 0.0)
    radii_um = state.cells.radii_um * (2 ** (rate / ndim))[:, None]
    return state.replace(cells=state.cells.replace(radii_um=radii_um), age=state.age + 1)


def _divide(here: jax.Array, state: _State, cycle, brightness_noise, closed: Contains) -> _State:
    """Cells at the end of their cycle give way to two daughters each, in the next free slots."""
    cells, slot = state.cells, jnp.arange(state.age.shape[0])
    capacity, ndim = cells.centre_um.shape
    due = cells.valid & (state.age >= state.cycle)
    place = state.used + 2 * (jnp.cumsum(due) - due)
    divides = due & (place + 1 < capacity)
    elder = jnp.where(divides, place, capacity)
    mother = jnp.zeros(capacity, jnp.int32).at[elder].set(slot, mode="drop").at[elder + 1].set(slot, mode="drop")
    born = (slot >= state.used) & (slot < state.used + 2 * jnp.sum(divides))
    side = jnp.where((slot - state.used) % 2 == 0, 1.0, -1.0)

    # Long and short axis change places, and the daughters touch along the mother's long axis.
    radii_um = cells.radii_um[mother] * 2 ** (-1 / ndim)
    longest, shortest = jnp.max(radii_um, axis=1, keepdims=True), jnp.min(radii_um, axis=1, keepdims=True)
    long_axis = jax.nn.one_hot(jnp.argmax(radii_um, axis=1), ndim)
    short_axis = jax.nn.one_hot(jnp.argmin(radii_um, axis=1), ndim)
    radii_um = radii_um + (shortest - longest) * (long_axis - short_axis)
    away = side[:, None] * shortest * jnp.einsum("ni,nij->nj", long_axis, cells.rotation[mother])
    centre_um = cells.centre_um[mother]
    # In a closed region a daughter is born nearer to her mother's centre, which is inside for certain.
    reach = jnp.where(closed(centre_um + away), 1.0, jnp.where(closed(centre_um + away / 2), 0.5, 0.0))
    centre_um = centre_um + away * reach[:, None]
    noise = brightness_noise * jax.random.normal(keys.stream(here, "brightness"), (capacity,))
    brightness = jnp.clip(cells.brightness[mother] + noise, 0.0, 1.0)

    def daughters(new, old):
        return jnp.where(born.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return state.replace(
        cells=Cells(
            daughters(centre_um, cells.centre_um),
            daughters(radii_um, cells.radii_um),
            daughters(cells.rotation[mother], cells.rotation),
            daughters(brightness, cells.brightness),
            (cells.valid & ~divides) | born,
            cells.overflow | jnp.any(due & ~divides),
        ),
        velocity=daughters(state.velocity[mother], state.velocity),
        # What the mother was late is counted, or every generation would take half a frame longer.
        age=daughters(jnp.clip((state.age - state.cycle)[mother], 0.0, 1.0), state.age),
        cycle=daughters(cycle, state.cycle),
        parent=daughters(mother + 1, state.parent),
        used=state.used + 2 * jnp.sum(divides),
    )


def _move(here, state: _State, step_um, speed_um, persistence_frames, turn, closed: Contains) -> _State:
    """One frame of persistent and Brownian motion, and of turning."""
    cells, size = state.cells, state.cells.centre_um.shape
    ndim = size[1]
    kept = jnp.exp(-1 / jnp.asarray(persistence_frames, jnp.float32))
    gust = speed_um * jnp.sqrt(1 - kept**2) * jax.random.normal(keys.stream(here, "velocity"), size)
    velocity = kept * state.velocity + gust
    moved = cells.centre_um + velocity + step_um * jax.random.normal(keys.stream(here, "step"), size)
    allowed = closed(moved)[:, None] | ~closed(cells.centre_um)[:, None]
    # Cayley's transform makes a rotation of any skew matrix; in two and three dimensions it has this closed form.
    skew = jnp.triu(turn * jax.random.normal(keys.stream(here, "turn"), (size[0], ndim, ndim)), 1)
    angle2 = jnp.sum(skew**2, axis=(1, 2))[:, None, None]
    skew = skew - jnp.swapaxes(skew, 1, 2)
    spin = jnp.eye(ndim) + 4 / (4 + angle2) * (skew + skew @ skew / 2)
    return state.replace(
        cells=cells.replace(centre_um=jnp.where(allowed, moved, cells.centre_um), rotation=cells.rotation @ spin),
        velocity=jnp.where(allowed, velocity, -velocity),
    )


def _push_apart(cells: Cells, contact, closed: Contains, relaxations: int) -> tuple[Cells, jax.Array]:
    """Moves cells that are too close off each other, by Jacobi steps; and how close the worst pair still is."""
    ndim = cells.centre_um.shape[-1]
    keep_um = contact * jnp.exp(jnp.mean(jnp.log(cells.radii_um), axis=1))
    apart = keep_um[:, None] + keep_um[None, :]
    slot = jnp.arange(apart.shape[0])
    pair = cells.valid[:, None] & cells.valid[None, :] & (slot[:, None] != slot[None, :])
    tolerance = 0.01 * jnp.max(jnp.where(cells.valid, keep_um, 0.0), initial=0.0)
    # Sisters born on one point are told apart by their slots.
    split = jnp.where(slot[:, None] > slot[None, :], 1e-3, -1e-3)

    def push(centre_um):
        # One term per axis, so that the [N, N, D] differences are never stored.
        offset = [centre_um[:, None, d] - centre_um[None, :, d] for d in range(ndim)]
        squared = sum(x**2 for x in offset)
        offset[-1] = jnp.where(squared < 1e-6, split, offset[-1])
        distance = jnp.sqrt(jnp.maximum(squared, 1e-6))
        lack = jnp.where(pair, jnp.maximum(apart - distance, 0.0), 0.0)
        touching = jnp.sum(lack > 0, axis=1)
        # Half of what is lacking, to each of a pair; a mean over many neighbours, which a sum would overshoot.
        share = 0.5 / jnp.maximum(1.0, 0.5 * touching)[:, None] * lack / distance
        return jnp.stack([jnp.sum(share * x, axis=1) for x in offset], axis=1), jnp.max(lack, initial=0.0)

    def unfinished(carry):
        number, _, _, worst = carry
        return (number < relaxations) & (worst > tolerance)

    def relax(carry):
        number, centre_um, shift, _ = carry
        moved = centre_um + shift
        allowed = closed(moved) | ~closed(centre_um)
        centre_um = jnp.where(allowed[:, None], moved, centre_um)
        return number + 1, centre_um, *push(centre_um)

    begin = (jnp.int32(0), cells.centre_um, *push(cells.centre_um))
    _, centre_um, _, worst = jax.lax.while_loop(unfinished, relax, begin)
    return cells.replace(centre_um=centre_um), worst


def _seen(cells: Cells, size_um: jax.Array) -> jax.Array:
    """Whether the image's nearest point lies inside the cell: bool [N]."""
    gap = jnp.clip(cells.centre_um, 0.0, size_um) - cells.centre_um
    own = jnp.einsum("nij,nj->ni", cells.rotation, gap) / cells.radii_um
    return jnp.sum(own**2, axis=-1) <= 1
