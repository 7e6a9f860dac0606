"""Work that takes too long is ended, and no other work."""

from __future__ import annotations

import threading
import time

import pytest

from central_store.watch import Watch

LONG = 1.0
"""Seconds in which a thread that has nothing to do gets its turn, however busy the machine."""


class Ended:
    """Says when it was called."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.times = 0

    def __call__(self) -> None:
        self.times += 1
        self.event.set()


def test_work_that_takes_too_long_is_ended_once() -> None:
    ended = Ended()
    watch = Watch(ended)
    with watch.limit(0.01):
        assert ended.event.wait(10)
        time.sleep(0.05)
    watch.close()
    assert ended.times == 1


def test_finished_work_is_not_ended() -> None:
    ended = Ended()
    watch = Watch(ended)
    for _ in range(200):
        with watch.limit(LONG):
            pass
    assert not ended.event.wait(LONG * 1.2)
    watch.close()
    assert ended.times == 0


@pytest.mark.parametrize(("first", "second"), [(60, 0.01), (LONG, LONG * 1.2)])
def test_each_work_has_its_own_time(first: float, second: float) -> None:
    ended = Ended()
    watch = Watch(ended)
    with watch.limit(first):
        pass
    with watch.limit(second):
        assert ended.event.wait(10)
    watch.close()
    assert ended.times == 1


def test_work_that_fails_is_not_ended_later() -> None:
    ended = Ended()
    watch = Watch(ended)
    with pytest.raises(KeyError), watch.limit(LONG):
        raise KeyError
    assert not ended.event.wait(LONG * 1.2)
    watch.close()
    assert ended.times == 0


def test_a_watch_that_never_watched_can_be_closed() -> None:
    Watch(Ended()).close()
