"""The three stages: what overlaps, how much is under way at once, and how it ends."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth import pipeline

WAIT_S = 60  # for what must happen soon, on however busy a machine


class Log:
    """The steps of a run, as they are begun; every item has two parts."""

    def __init__(self):
        self.lock, self.steps, self.open, self.most = threading.Lock(), [], 0, 0

    def prepare(self, item):
        self.steps.append(("prepare", item))
        return item

    def dispatch(self, item):
        with self.lock:
            self.steps.append(("dispatch", item))
            self.open += 2
            self.most = max(self.most, self.open)
        return [(item, 0), (item, 1)]

    def finish(self, part):
        with self.lock:
            self.steps.append(("finish", part))
            self.open -= 1

    def of(self, kind):
        return [what for step, what in self.steps if step == kind]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_all_is_done_in_order_and_no_more_is_open_than_allowed(ahead):
    log = Log()
    pipeline.run(range(20), log.dispatch, log.finish, prepare=log.prepare, ahead=ahead)
    assert log.of("prepare") == log.of("dispatch") == list(range(20))
    assert sorted(log.of("finish")) == [(item, row) for item in range(20) for row in range(2)]
    assert log.most <= 2 * (ahead + 1)


def test_without_overlap_an_item_is_finished_before_the_next_is_prepared():
    log = Log()
    pipeline.run(range(4), log.dispatch, log.finish, prepare=log.prepare, ahead=0)
    kinds = [step for step, _ in log.steps]
    assert kinds == ["prepare", "dispatch", "finish", "finish"] * 4


def test_all_stages_work_at_once():
    """Item 0 is finished only after item 2 was dispatched, and item 2 dispatched only while item 3 is prepared."""
    preparing, dispatched = threading.Event(), threading.Event()
    finished = []

    def prepare(item):
        if item == 3:
            preparing.set()
        return item

    def dispatch(item):
        if item == 2:
            assert preparing.wait(WAIT_S)
            dispatched.set()
        return [item]

    def finish(item):
        if item == 0:
            assert dispatched.wait(WAIT_S)
        finished.append(item)

    pipeline.run(range(5), dispatch, finish, prepare=prepare, ahead=2)
    assert sorted(finished) == list(range(5))


def test_arrays_of_the_device_arrive():
    square = jax.jit(lambda x: x * x)
    got = {}

    def finish(part):
        got[part["name"]] = np.asarray(part["image"])

    pipeline.run(range(5), lambda i: [{"name": i, "image": square(jnp.full(3, i)), "note": "text"}], finish)
    assert {name: image.tolist() for name, image in got.items()} == {i: [i * i] * 3 for i in range(5)}


def test_nothing_to_do():
    pipeline.run([], None, None)


@pytest.mark.parametrize("stage", ["prepare", "dispatch", "finish"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_all_and_is_raised(stage, error):
    log, before = Log(), threading.active_count()

    def breaking(function):
        def at(what):
            if what in (5, (5, 0)):
                raise error("five")
            return function(what)

        return at

    stages = {name: getattr(log, name) for name in ("prepare", "dispatch", "finish")}
    stages[stage] = breaking(stages[stage])
    with pytest.raises(error, match="five"):
        pipeline.run(range(1000), stages["dispatch"], stages["finish"], prepare=stages["prepare"])
    assert len(log.of("dispatch")) <= 5 + 4
    assert threading.active_count() == before


def test_what_is_being_finished_is_finished_and_what_waits_is_dropped():
    started, release, finished = threading.Event(), threading.Event(), []

    def dispatch(item):
        if item == 1:
            assert started.wait(WAIT_S)
            threading.Timer(0.2, release.set).start()
            raise KeyboardInterrupt
        return range(100)

    def finish(part):
        started.set()
        assert release.wait(WAIT_S)
        finished.append(part)

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(range(2), dispatch, finish)
    assert 0 < len(finished) <= pipeline.WRITERS and sorted(finished) == list(range(len(finished)))
