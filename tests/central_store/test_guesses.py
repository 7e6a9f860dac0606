"""Guessing passwords: each failure costs more, for every name alike, across restarts; a right one forgets."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from central_store import accounts, guesses
from central_store.accounts import Doorman
from central_store.guesses import BUCKET, FREE, LONGEST, Failed
from central_store.replies import Refused
from central_store.service import Clock, Service
from schemas import messages, names
from schemas.errors import AccessDenied
from tests.central_store.conftest import PASSWORD, Place
from tests.kit.batches import NOW

A, USER, NOBODY = names.facility_name("clinic-a"), names.user_name("user.clinic-a"), names.user_name("nobody")


def refused_for(place: Place, user: names.UserName, at: float, password: str = "wrong") -> float:
    """0 when the password was checked and wrong, else the seconds to wait."""
    try:
        Doorman(place.store.layout, lambda: 0.0).check(
            A, user, password, at
        )  # a fresh one, as after a restart
    except AccessDenied:
        return 0.0
    except Refused as error:
        assert error.reason == "throttled"
        return guesses.wait(guesses.load(place.store.layout, A), user, at)
    raise AssertionError("let in")


def test_each_wrong_password_doubles_the_wait() -> None:
    known, waits = dict[str, Failed](), []
    for _ in range(FREE + 12):
        known = guesses.after_failure(known, USER, 1e9)
        waits.append(guesses.wait(known, USER, 1e9))
    assert waits == [0] * (FREE - 1) + [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]
    assert guesses.wait(known, USER, 1e9 + 899) == 1
    assert guesses.wait(known, USER, 1e9 + 900) == 0
    assert guesses.wait(guesses.after_failure(known, USER, 1e9 + 86401), USER, 1e9 + 86401) == 0, "forgotten"


def fail(place: Place, user: names.UserName, times: int, at: float) -> None:
    known = guesses.load(place.store.layout, A)
    for _ in range(times):
        known = guesses.after_failure(known, user, at)
    guesses.keep(place.store.layout, A, known)


def test_while_one_waits_not_even_the_right_password_is_checked_and_nobody_else_waits(place: Place) -> None:
    at = 1e9
    fail(place, USER, FREE + 3, at)
    started = time.process_time()
    assert refused_for(place, USER, at, PASSWORD) > 0
    assert time.process_time() - started < 0.02, "no Argon2id"
    other = Doorman(place.store.layout, lambda: 0.0)
    other.check(names.facility_name("hospital_b"), names.user_name("user.hospital_b"), PASSWORD, at)
    colleague = names.user_name("colleague")
    accounts.add(place.store.layout, colleague, A, PASSWORD)
    other.check(A, colleague, PASSWORD, at)


def test_a_right_password_and_a_new_one_forget(place: Place) -> None:
    assert refused_for(place, USER, 1e9) == 0
    assert USER in guesses.load(place.store.layout, A)
    Doorman(place.store.layout, lambda: 0.0).check(A, USER, PASSWORD, 1e9 + 100)
    assert USER not in guesses.load(place.store.layout, A)
    at = 1e9 + 1000
    fail(place, USER, FREE + 6, at)
    assert refused_for(place, USER, at) > 0
    accounts.add(place.store.layout, USER, A, "a new password")
    Doorman(place.store.layout, lambda: 0.0).check(A, USER, "a new password", at)


def test_changing_names_buys_nothing(place: Place) -> None:
    layout, known, at = place.store.layout, dict[str, Failed](), 1e9
    for number in range(BUCKET + 1):
        known = guesses.after_failure(known, names.user_name(f"name{number}"), at)
    guesses.keep(layout, A, known)
    assert 0 < refused_for(place, names.user_name("yet-another"), at) <= 10
    assert refused_for(place, names.user_name("yet-another"), at + 11) == 0


def test_a_remembered_password_goes_on_while_others_guess(place: Place) -> None:
    doorman = Doorman(place.store.layout, lambda: 0.0)
    doorman.check(A, USER, PASSWORD, 1e9)
    fail(place, USER, FREE + 3, 1e9)
    doorman.check(A, USER, PASSWORD, 1e9)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.floats(-1e5, 1e5)), max_size=60),
    st.floats(-1e9, 1e9),
)
def test_a_wait_is_never_longer_than_the_longest_whatever_the_clock_does(steps, jump):  # type: ignore[no-untyped-def]
    known, at = dict[str, Failed](), 1e9
    for name, step in steps:
        at = max(0.0, at + step)
        known = guesses.after_failure(known, names.user_name(name), at)
        assert 0 <= guesses.wait(known, names.user_name(name), at) <= LONGEST
    for name in known:
        assert 0 <= guesses.wait(known, names.UserName(name), max(0.0, at + jump)) <= LONGEST


def test_what_is_kept_stays_small(place: Place) -> None:
    known = dict[str, Failed]()
    for number in range(1100):
        known = guesses.after_failure(known, names.user_name(f"u{number}"), 1e9 + number)
    assert len(known) <= 1001
    guesses.keep(place.store.layout, A, known)
    assert guesses.load(place.store.layout, A).keys() == known.keys()
    for junk in (b"", b"[]", b'{"a":1}', b'{"a":["x",2]}', b"[" * 9999, b"\xff"):
        place.store.layout.guesses(A).unlink()
        place.store.layout.guesses(A).write_bytes(junk)
        assert guesses.load(place.store.layout, A) == {}


def test_over_the_shelf_the_refusals_are_signed_and_logged(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Through the whole service, started anew for each request as cron would."""
    caplog.set_level(logging.WARNING, "central_store")

    def reason(user: str, after: int) -> str:
        asked = place.search(place.a, user=user, password="gu3ss-of-mine")
        place.ask(place.a, asked)
        now = NOW + timedelta(milliseconds=after)
        Service(place.store, Clock(lambda: now, time.monotonic)).one_pass()
        refusal = place.reply(place.a, f"{asked.id}.refusal")
        assert isinstance(refusal, messages.Refusal)
        return refusal.reason

    for user in (USER, NOBODY):
        fail(place, user, FREE - 1, NOW.timestamp())
        assert [reason(user, after) for after in (1, 2)] == ["access-denied", "throttled"]
    assert f"user={USER} failures={FREE} wait=1" in caplog.text
    assert f"user={NOBODY}" not in caplog.text
    assert "gu3ss" not in caplog.text
