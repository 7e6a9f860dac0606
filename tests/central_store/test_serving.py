"""`fstore serve` as a process: ready, quick, alone, calm about crashes, gone when told."""

from __future__ import annotations

import io
import json
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from central_store import crew, facilities
from central_store.crew import Crashed, Crew
from schemas import messages
from schemas.names import ShelfName
from schemas.transit import sftp
from schemas.transit.shelf import FolderShelf
from tests.central_store.conftest import Place
from tests.kit.batches import NOW, Facility, digest, request_id, row


@contextmanager
def serving(place: Place, *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [sys.executable, "-m", "central_store", "--root", str(place.root), "serve", "--json", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def until(done: Any, seconds: float = 20) -> float:
    """Wait for something to be true; returns the seconds it took."""
    started = time.perf_counter()
    while not done():
        assert time.perf_counter() - started < seconds, "it did not happen"
        time.sleep(0.001)
    return time.perf_counter() - started


def held(place: Place, who: Facility) -> messages.HeldRequest:
    created = messages.rfc3339(NOW)
    return messages.HeldRequest(
        id=request_id(), facility=who.name, digests=tuple(digest(str(n)) for n in range(100)), created=created
    )


def put_quietly(place: Place, who: Facility, name: str, data: bytes) -> None:
    """As an upload arrives: another name first, then a rename."""
    part = place.inbound(who) / f"{name}.{secrets.token_hex(4)}.part"
    part.write_bytes(data)
    part.rename(place.inbound(who) / name)


def test_ready_serves_over_sftp_and_ends_at_once_with_status_0(place: Place) -> None:
    with serving(place, "--port", "0") as (process, ready):
        assert (ready["store"], ready["host"]) == ("central", "127.0.0.1")
        made = place.a.batch([row(0), row(1)], place.card)
        with sftp.connect(
            host=ready["host"], port=ready["port"], user="clinic-a", key=place.a.key,
            host_key=place.card.host_key, timeout=10,
        ) as session:  # fmt: skip
            session.shelf("in").put(ShelfName(made.batch, "batch"), io.BytesIO(made.sealed), len(made.sealed))
            receipt = io.BytesIO()
            until(lambda: session.shelf("out").try_get(ShelfName(made.batch, "receipt"), receipt, 1 << 20))
        message, _, _ = place.a.open(receipt.getvalue(), place.card)
        assert isinstance(message, messages.Receipt)
        children = psutil.Process(process.pid).children(recursive=True)
        started = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.perf_counter() - started < 4
        assert psutil.wait_procs(children, 5)[1] == []


def test_requests_are_answered_at_once_even_while_batches_are_verified(place: Place) -> None:
    with serving(place, "--no-sftp"):
        times = []
        for _ in range(15):
            asked = held(place, place.a)
            put_quietly(place, place.a, f"{asked.id}.request", place.a.request(asked, place.card))
            answer = place.outbound(place.a) / f"{asked.id}.answer"
            times.append(until(answer.exists))
        objects = [secrets.token_bytes(4_000_000) for _ in range(10)]
        big = place.b.batch([row(n) for n in range(10)], place.card, objects)
        put_quietly(place, place.b, big.file, big.sealed)
        during = []
        while not (place.outbound(place.b) / f"{big.batch}.receipt").exists():
            asked = held(place, place.a)
            put_quietly(place, place.a, f"{asked.id}.request", place.a.request(asked, place.card))
            during.append(until((place.outbound(place.a) / f"{asked.id}.answer").exists))
    # Measured on an idle machine: 15 ms. The bounds leave room for a busy one.
    assert sorted(times)[len(times) // 2] < 0.25
    assert during
    assert sorted(during)[len(during) // 2] < 0.5


def test_a_facility_enrolled_while_the_service_runs_is_served(place: Place) -> None:
    with serving(place, "--no-sftp"):
        late = Facility("late")
        facilities.enrol(place.store.layout, late.card)
        made = late.batch([row(0)], place.card)
        put_quietly(place, late, made.file, made.sealed)
        until((place.outbound(late) / f"{made.batch}.receipt").exists)


def test_a_second_service_leaves_with_busy(place: Place) -> None:
    with serving(place, "--no-sftp"):
        for words in (["serve", "--no-sftp", "--json"], ["ingest", "--json"], ["rebuild", "--json"]):
            second = subprocess.run(
                [sys.executable, "-m", "central_store", "--root", str(place.root), *words],
                capture_output=True, text=True, check=False, timeout=30,
            )  # fmt: skip
            assert (second.returncode, json.loads(second.stdout)["error"]) == (4, "Busy")


def test_an_address_in_use_is_said_plainly(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "central_store", "--root", str(place.root), "serve", "--port", port],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
    assert done.returncode == 10
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_service_leaves_no_process_and_the_next_one_finishes(place: Place) -> None:
    with serving(place, "--port", "0") as (process, _):
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 4
        process.kill()
        process.wait(10)
        assert psutil.wait_procs(children, 8)[1] == []
    made = place.put(place.a, place.a.batch([row(0)], place.card))
    with serving(place, "--no-sftp"):
        until((place.outbound(place.a) / f"{made.batch}.receipt").exists)


def test_a_file_that_ends_its_reader_twice_is_refused_and_the_service_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = (place.put(place.a, place.a.batch([row(n)], place.card)) for n in range(2))
    begin = crew.Worker.begin

    def deadly(worker: crew.Worker, job: Any, name: str, *arguments: Any) -> None:
        begin(worker, job, name, *arguments)
        if name == "verify" and arguments[1] == bad.batch:
            worker._process.kill()  # as a crash in a library would

    monkeypatch.setattr(crew.Worker, "begin", deadly)
    counts = place.work()
    assert (counts.stored, counts.refused) == (1, 1)
    refusal = place.reply(place.a, f"{bad.batch}.refusal")
    assert isinstance(refusal, messages.Refusal)
    assert refusal.reason == "crashed-reader"
    assert (place.outbound(place.a) / f"{good.batch}.receipt").exists()


def test_a_worker_that_died_idle_is_replaced(place: Place) -> None:
    made = place.put(place.a, place.a.batch([row(0)], place.card))
    team = Crew(place.root, 1)
    try:
        (worker,) = team.workers
        worker._process.kill()
        worker._process.join()
        for attempt in range(2):
            worker.begin("job", "verify", place.a.card, made.batch)
            try:
                verified = worker.end()
            except Crashed:  # the death was noticed only when the answer was read
                assert attempt == 0
            else:
                break
        assert verified.objects == 1
    finally:
        team.close()


def test_log_lines_hold_names_of_batches_and_nothing_of_patients(place: Place) -> None:
    made = place.put(
        place.a, place.a.batch([row(0, institution="Secret Hospital", menu="Secret menu")], place.card)
    )
    wrong = place.search(place.a, password="my secret", conditions={"menu": ("secret*",)})
    place.ask(place.a, wrong)
    place.put(place.b, place.b.batch([row(0)], place.card)._replace(sealed=b"broken"))
    done = subprocess.run(
        [sys.executable, "-m", "central_store", "--root", str(place.root), "ingest"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert made.batch in done.stderr
    assert "reason=access-denied" in done.stderr
    assert "reason=seal" in done.stderr
    assert "ecret" not in done.stderr
    assert str(place.root) not in done.stderr


def test_the_shelf_of_the_store_is_the_shelf_of_the_terminal(place: Place) -> None:
    """`FolderShelf` straight into the store's folders: a terminal on the same machine."""
    made = place.a.batch([row(0)], place.card)
    FolderShelf(place.inbound(place.a)).put(
        ShelfName(made.batch, "batch"), io.BytesIO(made.sealed), len(made.sealed)
    )
    place.work()
    shelf = FolderShelf(place.outbound(place.a))
    assert [str(name) for name in shelf.names()] == [f"{made.batch}.receipt"]


def test_peak_memory_stays_bounded_with_an_object_larger_than_it(place: Place) -> None:
    """300 MB in one object: the sum of what the service's largest process ever held stays below it."""
    large = secrets.token_bytes(1_000_000) * 300
    made = place.put(place.a, place.a.batch([row(0)], place.card, [large]))
    del large
    with serving(place, "--no-sftp") as (process, _):
        peaks: dict[int, int] = {}

        def done() -> bool:
            for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                text = Path(f"/proc/{each.pid}/status").read_text()
                line = next((line for line in text.splitlines() if line.startswith("VmHWM")), "VmHWM: 0")
                peaks[each.pid] = int(line.split()[1]) // 1024
            time.sleep(0.02)
            return (place.outbound(place.a) / f"{made.batch}.receipt").exists()

        until(done, 60)
    assert max(peaks.values()) < 300
