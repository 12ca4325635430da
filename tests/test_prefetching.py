"""The feed: order, ahead of its time, the same by whoever makes it, and how long it was waited for."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicomsort.engines import open_engine
from dicomsort.engines.engine import SerialEngine, TaskLimits
from dicomsort.engines.processes import ProcessEngine
from dicomsort.errors import WorkerLost
from dicomsort.training.data import augment as augment_module
from dicomsort.training.data import prefetch
from dicomsort.training.data.augment import STRENGTHS, augment, varied_by, vary
from dicomsort.training.data.prefetch import MADE_AHEAD, Feed
from dicomsort.training.progress import load_tensorflow

BATCHES, EPOCHS = 5, 3


class Counted:
    """Batches that say which they are, and what was asked for; ``gate`` holds them back where it is given."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.asked: list[tuple[int, int]] = []
        self._gate = gate

    def __len__(self) -> int:
        return BATCHES

    def batch(self, epoch: int, index: int) -> tuple[NDArray[Any], ...]:
        self.asked.append((epoch, index))
        if self._gate:
            self._gate.wait(60)
        return (np.array([[epoch, index]], np.uint8),)


def told(feed: Feed) -> list[tuple[int, int]]:
    return [(int(batch[0, 0]), int(batch[0, 1])) for (batch,) in feed]


@pytest.mark.parametrize("threads", [1, 3])
def test_every_epoch_has_its_batches_in_order_and_none_is_made_twice(threads: int) -> None:
    source = Counted()
    with Feed(source, EPOCHS, threads) as feed:
        for epoch in range(EPOCHS):
            feed.go_to(epoch)
            assert len(feed) == BATCHES
            assert told(feed) == [(epoch, index) for index in range(BATCHES)]
    assert sorted(source.asked) == [(epoch, index) for epoch in range(EPOCHS) for index in range(BATCHES)]


def test_an_interrupted_epoch_goes_on_within() -> None:
    with Feed(Counted(), EPOCHS) as feed:
        feed.go_to(1, 3)
        assert len(feed) == BATCHES - 3
        assert told(feed) == [(1, 3), (1, 4)]
        feed.go_to(2)
        assert told(feed) == [(2, index) for index in range(BATCHES)]


def test_a_look_at_the_first_batch_takes_none_away() -> None:
    with Feed(Counted(), EPOCHS) as feed:
        next(iter(feed))  # as Keras may, to learn of shapes
        assert told(feed) == [(0, index) for index in range(BATCHES)]


def test_the_next_epoch_is_made_while_this_one_ends_but_none_beyond_the_last() -> None:
    source = Counted()
    with Feed(source, 2, 1) as feed:
        told(feed)
        feed.go_to(1)
        told(feed)
    assert {epoch for epoch, _ in source.asked} == {0, 1}
    held = Counted(threading.Event())
    with Feed(held, EPOCHS, 2) as feed:
        feed.go_to(0)
        assert len(feed._made) == max(MADE_AHEAD, 4)
        assert feed._made[BATCHES][:2] == (1, 0)
        assert held._gate
        held._gate.set()


def test_what_is_waited_for_is_counted_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, now = threading.Event(), [0.0]

    class Slow(Counted):
        def batch(self, epoch: int, index: int) -> tuple[NDArray[Any], ...]:
            batch = super().batch(epoch, index)
            now[0] += 5 if index == 0 else 0
            return batch

    def clock() -> float:
        read = now[0]
        gate.set()  # the first batch is made once it is waited for
        return read

    monkeypatch.setattr(prefetch, "time", SimpleNamespace(perf_counter=clock))
    with Feed(Slow(gate), 1, 1) as feed:
        told(feed)
    assert feed.waited == 5


def test_what_fails_in_a_thread_is_told_where_it_is_fed() -> None:
    class Failing(Counted):
        def batch(self, epoch: int, index: int) -> tuple[NDArray[Any], ...]:
            if index == 2:
                raise ValueError("no such image")
            return super().batch(epoch, index)

    with Feed(Failing(), 1) as feed, pytest.raises(ValueError, match="no such image"):
        told(feed)


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, 224, 224, 3), np.uint8)


@pytest.mark.parametrize("strength", ["light", "strong"])
def test_workers_vary_as_threads_do(images: NDArray[np.uint8], strength: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [(7, 0, 1, item) for item in range(len(images))]
    chosen = STRENGTHS[strength]
    assert chosen
    expected = [augment(image, chosen, np.random.default_rng(seed)) for image, seed in zip(images, seeds, strict=True)]
    np.testing.assert_array_equal(vary(images, chosen, seeds), expected)
    monkeypatch.setattr(augment_module, "THREADS_USE", 0)
    with open_engine("processes", 1, None, limits=TaskLimits(60, 1 << 30)) as engine:
        apart = varied_by(engine, strength)
        assert apart is not vary
        np.testing.assert_array_equal(apart(images, chosen, seeds), expected)
        apart(images[:2], chosen, seeds[:2])
        assert isinstance(engine, ProcessEngine)
        (worker,) = engine._running.values()
        assert len(worker.known) == 1  # function, which it keeps: no batch is part of it


def test_few_cores_and_nothing_to_vary_need_no_workers() -> None:
    for workers, strength, closed in ((2, "strong", True), (64, "none", True), (64, "strong", False)):
        engine = SerialEngine()
        engine.workers = workers
        assert (varied_by(engine, strength) is vary) == closed
        assert engine._closed == closed


def test_a_lost_worker_costs_no_batch(images: NDArray[np.uint8]) -> None:
    class Losing(SerialEngine):
        def submit(self, *_: object) -> Future[Any]:
            lost: Future[Any] = Future()
            lost.set_exception(WorkerLost("the worker process was killed by signal 9"))
            return lost

    engine = Losing()
    engine.workers = 64
    chosen, seeds = STRENGTHS["light"], [(0, 0, 1, item) for item in range(len(images))]
    assert chosen
    np.testing.assert_array_equal(varied_by(engine, "light")(images, chosen, seeds), vary(images, chosen, seeds))


def test_batches_depend_on_seed_epoch_and_item_alone(images: NDArray[np.uint8]) -> None:
    load_tensorflow()
    from dicomsort.training.fit.feeding import Batches

    rows, truth, weights = np.arange(6), np.eye(6, dtype=np.float32), np.arange(6, dtype=np.float32)
    plain = Batches(images, rows, truth, 4)
    assert len(plain) == 2
    shown, said = plain.batch(3, 1)
    assert shown.dtype == np.uint8  # made float32 where the model is
    np.testing.assert_array_equal(shown, images[4:])
    np.testing.assert_array_equal(said, truth[4:])
    mixed = Batches(images, rows, truth, 4, 7, weights)
    orders = [mixed.batch(epoch, 0)[2].tolist() + mixed.batch(epoch, 1)[2].tolist() for epoch in (0, 1, 2, 0, 1)]
    assert orders[:2] == orders[3:]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    varied = Batches(images, rows, truth, 4, 7, None, STRENGTHS["light"])
    again = Batches(images, rows, truth, 2, 7, None, STRENGTHS["light"])  # in other batches
    np.testing.assert_array_equal(varied.batch(1, 0)[0][:2], again.batch(1, 0)[0])
    assert not np.array_equal(varied.batch(1, 0)[0], varied.batch(2, 0)[0])


def test_the_share_of_time_that_was_waited() -> None:
    load_tensorflow()
    from dicomsort.training.fit.feeding import waiting

    assert waiting([]) is None
    assert waiting([(1.0, 4.0), (0.0, 6.0)]) == 0.1
