"""Three stages at once: what is next is prepared, the device computes, and what is done is written.

What is prepared and what is written have threads of their own. The device never waits for a host that keeps up, where
what dispatches returns before the device is done; where it waits for the device, only the other two stages overlap.
"""

import collections
import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

WRITERS = 4  # threads; what compresses and writes lets go of the interpreter


def run(
    items: Iterable[Any],
    dispatch: Callable[[Any], Iterable[Any]],
    finish: Callable[[Any], None],
    *,
    prepare: Callable[[Any], Any] = lambda item: item,
    ahead: int = 2,
) -> None:
    """finish(part) for every part of dispatch(prepare(item)), for all items.

    Args:
      items: the work, in the order in which it is begun.
      dispatch: starts the device's work and returns its parts, whose arrays need not be there yet; called in the
        caller's thread.
      finish: waits for the arrays of a part and puts them away; called on several threads, in about the order of the
        items.
      prepare: what can be done before; called on one thread, for one item ahead.
      ahead: so many items may be unfinished when the next is dispatched, so that one more is under way; with 0 nothing
        happens at the same time.

    The first error of any stage ends all of it and is raised here, as Ctrl-C does: what is being finished then is
    finished, what waits for it is dropped.
    """
    waiting, prepared, dispatched = iter(items), collections.deque(), collections.deque()
    threads = (ThreadPoolExecutor(1, "prepare"), ThreadPoolExecutor(WRITERS, "finish"))
    preparing, finishing = threads

    def fetch():
        prepared.extend(preparing.submit(prepare, item) for item in itertools.islice(waiting, 1))

    def settle(most):
        """Waits until at most so many items are unfinished; raises what went wrong in any."""
        while len(dispatched) > most:
            for future in dispatched.popleft():
                future.result()
        for future in itertools.chain.from_iterable(dispatched):
            if future.done():
                future.result()

    try:
        fetch()
        while prepared:
            item = prepared.popleft().result()
            if ahead:
                fetch()
            parts = list(dispatch(item))
            dispatched.append([finishing.submit(finish, part) for part in parts])
            del item, parts  # the queue alone decides how long arrays live
            settle(ahead)
            if not ahead:
                fetch()
        settle(0)
    finally:
        for pool in threads:
            pool.shutdown(wait=True, cancel_futures=True)
