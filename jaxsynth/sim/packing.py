"""Points that keep their distance: darts thrown in parallel and, where those find no room, repulsion.

The one engine behind every placement. It knows a region only as a `sources.Source`, so that volumes, surfaces and
layers are filled alike.
"""

import jax
import jax.numpy as jnp

from jaxsynth import keys
from jaxsynth.sim.sources import Source

DARTS = 1024  # most darts per round
IDLE = 128  # darts in a region per cell placed; when it takes more, a few times over, the region is full
STEPS = 100  # most repulsion steps per attempt
SLACK = 1.01  # repulsion aims a little beyond the distance asked for, so that it gets there in finitely many steps
SHIFTS = 8  # neighbours on either side per pass of a sweep


def place(
    key: jax.Array,
    source: Source,
    clearance_um: jax.Array,
    wanted: jax.Array,
    centres_um: jax.Array,
    placed: jax.Array,
    *,
    rounds: int = 200,
    attempts: int = 12,
) -> tuple[jax.Array, jax.Array]:
    """Places wanted cells between those that are there, darts first, then by repulsion.

    Random darts jam where about half of the room is filled (55 % of a plane, 38 % of a volume, for equal balls). Who
    then is missing is put, a few at a time, where the overlap is least, and all new cells are pushed apart; what
    still is too close after that is taken away again, and an attempt that gains nothing is undone. Distances are kept
    in every case.

    Args:
      key: typed PRNG key.
      source: where cells may be.
      clearance_um: float32 [N]; cells i and j are at least clearance_i + clearance_j apart.
      wanted: bool [N], cells to be placed.
      centres_um, placed: float32 [N, D] and bool [N], cells already there. They stay as they are.
      rounds: static; most rounds of darts.
      attempts: static; most attempts at repulsion; 0 leaves it out and gives a purely random field.

    Returns:
      centres_um, placed: with as many of the wanted cells as fit.
    """
    if clearance_um.shape[0] == 0:
        return centres_um, placed
    fixed = placed
    centres_um, placed = _throw(keys.stream(key, "darts"), source, clearance_um, wanted, centres_um, placed, rounds)
    if attempts == 0:
        return centres_um, placed
    return _squeeze(keys.stream(key, "repulsion"), source, clearance_um, wanted, centres_um, placed, fixed, attempts)


def spread(
    source: Source,
    clearance_um: jax.Array,
    centres_um: jax.Array,
    placed: jax.Array,
    fixed: jax.Array,
    steps: jax.Array | int,
) -> jax.Array:
    """Evens out cells: those placed and not fixed are pushed towards distances of clearance_i + clearance_j.

    Arguments as in `place`, and the most steps, which may be traced. Returns the new centres, which may still be closer
    than that.
    """
    return _repel(source, jnp.where(placed, clearance_um, -jnp.inf), centres_um, placed & ~fixed, steps)


def apart(clearance_um: jax.Array, centres_um: jax.Array, placed: jax.Array, fixed: jax.Array) -> jax.Array:
    """A subset of the placed cells, bool [N], that keeps all distances.

    Of two that are too close the higher slot goes, and never a fixed one.
    """
    rank = jnp.where(fixed, -1.0, jnp.arange(placed.shape[0], dtype=jnp.float32))

    def clash(bad, here, there, squared):
        close = (squared < (here[0] + there[0]) ** 2) & (here[0] + there[0] > 0) & (there[1] < here[1])
        return bad | jnp.any(close, axis=0)

    clearance = jnp.where(placed, clearance_um, -jnp.inf)
    bad = _sweep(centres_um, placed, [clearance, rank], 2 * _largest(clearance), clash, jnp.zeros(placed.shape, bool))
    return placed & ~bad


def gaps(points_um: jax.Array, centres_um: jax.Array, clearance_um: jax.Array, placed: jax.Array) -> jax.Array:
    """The distance from each point [M, D] to the nearest placed cell's ball: float32 [M], inf where there is none."""
    # One term per axis, so that the [M, N, D] differences are never stored.
    squared = sum((points_um[:, None, d] - centres_um[None, :, d]) ** 2 for d in range(points_um.shape[1]))
    return jnp.min(jnp.where(placed, jnp.sqrt(squared) - clearance_um, jnp.inf), axis=1)


def _darts(capacity):
    return min(DARTS, max(128, 4 * capacity))


def _propose(key, source, missing):
    """Darts for the missing cells in turn: points [M, D], the cell each is for [M], and whether it will do [M]."""
    capacity = missing.shape[0]
    order = jnp.argsort(~missing, stable=True)
    number = _darts(capacity)
    cell = order[jnp.arange(number) % jnp.maximum(jnp.sum(missing), 1)]
    points, sound = source.propose(key, number)
    if sound.shape[1] == capacity:
        sound = jnp.take_along_axis(sound, cell[:, None], axis=1)
    return points, cell, sound[:, 0] & missing[cell]


def _throw(key, source, clearance, wanted, centres, placed, rounds):
    """Rounds of darts. One stays if it is clear of all cells and of all sound darts before it."""
    capacity = clearance.shape[0]

    def throw(carry):
        number, idle, centres, placed = carry
        points, cell, sound = _propose(keys.stream(key, number), source, wanted & ~placed)
        # A round that hardly hits the region counts for something, or an empty region would never be given up.
        idle += jnp.maximum(jnp.sum(sound), cell.shape[0] // 16)
        own = clearance[cell]
        sound &= gaps(points, centres, clearance, placed) >= own
        squared = sum((x[:, None] - x[None, :]) ** 2 for x in points.T)
        clash = (squared < (own[:, None] + own[None, :]) ** 2) | (cell[:, None] == cell[None, :])
        before = jnp.arange(cell.shape[0])
        keep = sound & ~jnp.any(clash & sound[None, :] & (before[None, :] < before[:, None]), axis=1)
        slot = jnp.where(keep, cell, capacity)
        centres = centres.at[slot].set(points, mode="drop")
        placed = placed.at[slot].set(True, mode="drop")
        return number + 1, jnp.maximum(idle - IDLE * jnp.sum(keep), 0), centres, placed

    def unfinished(carry):
        number, idle, _, placed = carry
        return (number < rounds) & (idle < 3 * _darts(capacity)) & jnp.any(wanted & ~placed)

    return jax.lax.while_loop(unfinished, throw, (jnp.int32(0), jnp.int32(0), centres, placed))[2:]


def _squeeze(key, source, clearance, wanted, centres, placed, fixed, attempts):
    """Puts in who is missing where the overlap is least, and pushes all apart; keeps what was gained."""
    capacity = clearance.shape[0]

    def attempt(carry):
        number, quota, centres, placed = carry
        missing = wanted & ~placed
        missing &= jnp.cumsum(missing) <= quota
        points, cell, sound = _propose(keys.stream(key, number), source, missing)
        room = jnp.where(sound, gaps(points, centres, clearance, placed) - clearance[cell], -jnp.inf)
        best = jax.ops.segment_max(room, cell, capacity)
        slot = jnp.where(sound & (room == best[cell]), cell, capacity)
        trial = centres.at[slot].set(points, mode="drop")
        there = placed.at[slot].set(True, mode="drop")
        trial = _repel(source, jnp.where(there, clearance, -jnp.inf), trial, there & ~fixed, STEPS)
        kept = apart(clearance, trial, there, fixed)
        gained = jnp.sum(kept) > jnp.sum(placed)
        quota = jnp.where(jnp.all(kept == there), 2 * quota, quota // 2)
        return number + 1, quota, jnp.where(gained, trial, centres), jnp.where(gained, kept, placed)

    def unfinished(carry):
        number, quota, _, placed = carry
        return (number < attempts) & (quota > 0) & jnp.any(wanted & ~placed)

    start = (jnp.int32(0), 1 + jnp.sum(placed) // 8, centres, placed)
    return jax.lax.while_loop(unfinished, attempt, start)[2:]


def _repel(source, clearance, centres, movable, steps):
    """Jacobi steps along the lines between cells that are too close, until none are. Clearance -inf: no cell."""
    reach = 2 * SLACK * _largest(clearance)
    valid = clearance > -jnp.inf

    def push(carry, here, there, squared):
        # Half of what is lacking, to each of a pair; a mean over many neighbours, which a sum would overshoot.
        shift, touching, lack = carry
        asked = here[0] + there[0]
        distance = jnp.sqrt(jnp.maximum(squared, 1e-12))
        missing = jnp.where(distance < SLACK * asked, SLACK * asked - distance, 0.0)
        away = [(a - b) / distance * missing for a, b in zip(here[1:], there[1:], strict=True)]
        shift = tuple(s + 0.5 * jnp.sum(x, axis=0) for s, x in zip(shift, away, strict=True))
        lack = jnp.maximum(lack, jnp.max(jnp.where(distance < asked, asked - distance, 0.0), axis=0))
        return shift, touching + jnp.sum(missing > 0, axis=0), lack

    def step(carry):
        number, centres, _ = carry
        zero = jnp.zeros(clearance.shape)
        start = ((zero,) * centres.shape[1], zero, zero)
        shift, touching, lack = _sweep(centres, valid, [clearance, *centres.T], reach, push, start)
        moved = centres + jnp.stack(shift, axis=1) / jnp.maximum(1.0, 0.5 * touching)[:, None]
        done = jnp.max(lack) <= 0
        moved = jnp.where(movable[:, None] & ~done, source.confine(moved, centres), centres)
        return number + 1, moved, done

    def unfinished(carry):
        number, _, done = carry
        return (number < steps) & ~done

    return jax.lax.while_loop(unfinished, step, (jnp.int32(0), centres, jnp.zeros((), bool)))[1]


def _largest(clearance):
    return jnp.maximum(jnp.max(clearance, initial=0.0), 0.0)


def _sweep(centres, valid, fields, reach, fold, start):
    """Meets every valid cell with all others up to `reach` away, and with some further ones.

    Cells are sorted along the longest axis, so that the k-th next lies beyond reach for all cells from some k on: a
    neighbour search without bins, hence without a capacity, and without gathers in its loop.

    Args:
      fields: arrays float32 [N] of what `fold` needs of a cell; the first is its clearance, -inf where there is none.
      fold: (state, here, there, squared): fields here [N], there [K, N], squared distances [K, N] -> state.
      start: state, a pytree of [N].

    Returns:
      The state, in the cells' own order.
    """
    capacity, ndim = centres.shape
    low = jnp.min(jnp.where(valid[:, None], centres, jnp.inf), axis=0)
    high = jnp.max(jnp.where(valid[:, None], centres, -jnp.inf), axis=0)
    along = jnp.where(valid, jnp.take(centres, jnp.argmax(high - low), axis=1), jnp.inf)
    order = jnp.argsort(along)
    along = along[order]
    near = jnp.where(jnp.isinf(along), -jnp.inf, along + reach)
    here = jnp.stack([*jnp.where(valid[:, None], centres, 0.0).T, *fields])[:, order]
    margin, steps = capacity + SHIFTS, jnp.arange(SHIFTS)
    # Who stands beyond either end has no clearance.
    beyond = jnp.zeros(here.shape[0]).at[ndim].set(-jnp.inf)[:, None] * jnp.ones(margin)
    wide = jnp.concatenate([beyond, here, beyond], axis=1)
    ahead = jnp.concatenate([along, jnp.full(margin, jnp.inf)])

    def meet(carry):
        shift, state = carry
        offsets = jnp.concatenate([margin + shift + steps, margin - shift - steps])
        there = jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(wide, start, capacity, axis=1), out_axes=1)(offsets)
        squared = sum((here[d] - there[d]) ** 2 for d in range(ndim))
        return shift + SHIFTS, fold(state, list(here[ndim:]), list(there[ndim:]), squared)

    def unfinished(carry):
        shift, _ = carry
        return (shift < capacity) & jnp.any(jax.lax.dynamic_slice_in_dim(ahead, shift, capacity) <= near)

    state = jax.lax.while_loop(unfinished, meet, (jnp.int32(1), start))[1]
    return jax.tree.map(lambda x: jnp.zeros_like(x).at[order].set(x), state)
