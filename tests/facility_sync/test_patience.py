"""Trying again: bounded in time and number, with pauses that grow and differ."""

from __future__ import annotations

from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facility_sync.patience import Patience, next_look, persist
from schemas.errors import AccessDenied, HostKeyError, OutcomeUnknown, SyncError, TransitError
from schemas.transit.dial import TurnedAway
from schemas.transit.marks import FileMark
from schemas.transit.pump import Lost


class Time:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def attempt(errors: list[SyncError], seconds: float, again_fails: list[SyncError] | None = None) -> Time:
    time, calls = Time(), list(again_fails or [])

    def step() -> None:
        if errors:
            raise errors.pop(0)

    def again() -> None:
        if calls:
            raise calls.pop(0)

    patience = Patience(seconds=seconds, jitter=lambda: 1.0, first=1, most=8)
    persist(step, again, patience, sleep=time.sleep, monotonic=lambda: time.now)
    return time


def test_a_broken_line_is_called_again_with_growing_pauses() -> None:
    time = attempt([Lost("x"), TurnedAway("x"), Lost("x")], 100, [TransitError("nobody")] * 3)
    assert time.slept == [1, 2, 4, 8, 8, 8]


def test_the_time_is_bounded() -> None:
    with pytest.raises(Lost):
        attempt([Lost("x")] * 1000, 20)


@pytest.mark.parametrize(
    "error", [HostKeyError("x"), AccessDenied("x"), OutcomeUnknown("x"), TransitError("refused")]
)
def test_what_is_no_broken_line_comes_out_at_once(error: SyncError) -> None:
    with pytest.raises(type(error)):
        attempt([error], 100)


@pytest.mark.parametrize("error", [HostKeyError("x"), AccessDenied("x")])
def test_another_server_or_a_refusal_when_calling_again_ends_it(error: SyncError) -> None:
    with pytest.raises(type(error)):
        attempt([Lost("x")], 100, [error])


@given(st.integers(1, 1000), st.floats(0, 1))
def test_a_pause_is_within_its_bounds(failures: int, jitter: float) -> None:
    patience = Patience(seconds=1, jitter=lambda: jitter, first=0.25, most=15)
    assert 0.125 <= patience.pause(failures) <= 15


@given(st.binary(max_size=40))
def test_whatever_a_mark_holds_a_number_comes_out(data: bytes) -> None:
    with NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        assert 0 <= FileMark(Path(file.name)).load() < 10**15


def test_a_mark_is_kept_and_forgotten(tmp_path: Path) -> None:
    mark = FileMark(tmp_path / "mark")
    assert mark.load() == 0
    for offset in (1, 16 << 20, 5):
        mark.save(offset)
        assert FileMark(tmp_path / "mark").load() == offset
    mark.save(0)
    mark.save(0)
    assert list(tmp_path.iterdir()) == []
    FileMark(tmp_path / "nowhere" / "mark").save(7)  # a hint stops nothing


def test_looks_come_less_often_the_longer_one_waits() -> None:
    assert next_look(0.0, 0.004) == 0.004
    assert next_look(0.4, 0.004) == 0.05
    assert next_look(3600.0, 0.004) == 1.0
    waited, looks = 0.0, 0
    while waited < 60:
        waited += next_look(waited, 0.004)
        looks += 1
    assert looks < 130
