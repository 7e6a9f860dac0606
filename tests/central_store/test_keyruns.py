"""Sorted files of keys: whatever the keys, what is found is what a plain look at all of them finds."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from central_store import keyruns
from schemas.errors import Damaged

TOP = 2**64 - 1


def run_of(path: Path, keys: list[int]) -> keyruns.Run:
    """A run with these keys, each with its place as number."""
    keyruns.write(path, pa.array(keys, pa.uint64()), pa.array(range(len(keys)), pa.uint32()))
    return keyruns.Run(path, len(keys))


def stored(run: keyruns.Run) -> list[int]:
    """All its keys."""
    return run.keys((0, len(run))).to_pylist()


def plain(keys: list[int], wanted: list[int]) -> list[int]:
    """What must be found."""
    return [at for one in wanted for at, key in enumerate(keys) if key == one]


@pytest.mark.parametrize("count", [1, 1000])
def test_keys_that_lie_together_are_found(tmp_path: Path, count: int) -> None:
    """Nobody can make them hard to find by choosing them."""
    keys = sorted([*range(count), *(2**64 - 1 - n for n in range(count)), *[2**40] * 3])
    keyruns.write(tmp_path / "a.run", pa.array(keys, pa.uint64()), pa.array(range(len(keys)), pa.uint32()))
    run = keyruns.Run(tmp_path / "a.run", len(keys))
    assert run.find(keys) == [n for key in keys for n in range(len(keys)) if keys[n] == key]
    assert run.find([count + 5, 2**63]) == []
    keyruns.merge([run, run], tmp_path / "b.run", lambda: False)
    both = keyruns.Run(tmp_path / "b.run", 2 * len(keys))
    assert stored(both) == sorted(keys * 2)
    assert sorted(both.find([2**40])) == sorted(run.find([2**40]) * 2)


@pytest.mark.parametrize("count", [1, 2, 511, 512, 513, 1023, 1024, 1025, 1537])
@pytest.mark.parametrize("step", [1, 3, TOP // 2000])
def test_each_key_and_none_between_is_found(tmp_path: Path, count: int, step: int) -> None:
    keys = [5 + n * step for n in range(count)]
    wanted = sorted({0, TOP, *keys, *(key - 1 for key in keys), *(key + 1 for key in keys)})
    expected = [(key - 5) // step for key in wanted if key in set(keys)]
    run, recent = (
        run_of(tmp_path / "a.run", keys),
        keyruns.Recent(
            pa.table({"key": pa.array(keys, pa.uint64()), "number": pa.array(range(count), pa.uint64())})
        ),
    )
    for entries in (run, recent):
        assert entries.find(wanted) == expected
        assert [number for key in wanted for number in entries.find([key])] == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, TOP) | st.integers(0, 30), st.integers(1, 700)), min_size=1, max_size=30
    ),
    st.lists(st.integers(0, TOP) | st.integers(0, 30), max_size=60),
)
def test_repeated_keys_are_all_found(
    tmp_path_factory: pytest.TempPathFactory, repeated: list[tuple[int, int]], more: list[int]
) -> None:
    keys = sorted(key for key, times in repeated for _ in range(times))
    wanted = sorted({*more, *(key for key, _ in repeated)})
    folder = tmp_path_factory.mktemp("runs")
    run = run_of(folder / "a.run", keys)
    assert run.find(wanted) == plain(keys, wanted)
    assert [number for key in wanted for number in run.find([key])] == plain(keys, wanted)
    keyruns.merge([run, run, run_of(folder / "b.run", [7])], folder / "c.run", lambda: False)
    whole = sorted([*keys, *keys, 7])
    merged = keyruns.Run(folder / "c.run", len(whole))
    assert stored(merged) == whole
    assert sorted(merged.find(wanted)) == sorted(plain(keys, wanted) * 2 + [0] * (7 in wanted))


def test_a_merge_holds_little_at_once_however_the_keys_crowd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of one facility lie together, and one facility may have nearly all of them."""
    monkeypatch.setattr(keyruns, "_SLICE", 4096)
    crowd, others = [2**60 + 7 * n for n in range(50_000)], [n * 2**50 for n in range(1500)]
    runs = [
        run_of(tmp_path / f"{at}.run", sorted(keys)) for at, keys in enumerate([crowd, others, crowd[9:]])
    ]
    held: list[int] = []
    take = keyruns._every  # of each slice, once

    def every(keys: pa.Array, before: int) -> pa.Array:
        held.append(len(keys))
        return take(keys, before)

    monkeypatch.setattr(keyruns, "_every", every)
    keyruns.merge(runs, tmp_path / "all.run", lambda: False)
    assert max(held) <= 4096 + 3 * 512, "about a slice"
    assert stored(keyruns.Run(tmp_path / "all.run", sum(held))) == sorted([*crowd, *others, *crowd[9:]])


@pytest.mark.parametrize("change", [-1, 1, -8, 12])
def test_a_run_of_another_size_is_damaged(tmp_path: Path, change: int) -> None:
    run_of(tmp_path / "a.run", list(range(1000)))
    data = (tmp_path / "a.run").read_bytes()
    (tmp_path / "b.run").write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(Damaged, match="another size"):
        keyruns.Run(tmp_path / "b.run", 1000)


def test_a_run_that_loses_its_end_while_open_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """The service waits and opens everything anew; a mapped file would have killed it."""
    run = run_of(tmp_path / "a.run", list(range(1000)))
    with (tmp_path / "a.run").open("r+b") as file:
        file.truncate(6000)
    assert run.keys((0, 512)).to_pylist() == list(range(512))
    for keys in ([700], list(range(1000))):
        with pytest.raises(OSError, match="shorter") as caught:
            run.find(keys)
        assert caught.value.errno == errno.EIO


def test_few_pages_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many keys are asked for, and wherever they lie."""
    keys = [n << 40 for n in range(600_000)]
    run = run_of(tmp_path / "a.run", keys)
    most, read = 0, run.keys

    def counted(*spans: keyruns.Span) -> pa.Array:
        nonlocal most
        most = max(most, sum(count for _, count in spans))
        return read(*spans)

    monkeypatch.setattr(run, "keys", counted)
    assert run.find(keys[::3]) == list(range(0, 600_000, 3))
    assert most <= 1025 * 512
