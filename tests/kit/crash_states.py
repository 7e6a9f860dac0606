"""Every state a power cut can leave, from the operations a run really did.

    with Recorder(root) as recorder:
        ...                                   # the code under test, on the real disk
    for state in recorder.states():
        state.build(elsewhere)                # a folder as the power cut may have left it

The model, harsher than ext4, XFS and btrfs are: at any moment, of a file that was not fsynced since it was
written the bytes may be there, be zeros, be the first half, or be those of its last fsync (of a file that was
only added to since, this is true of what was added); a name that was
made, moved or removed counts for sure only after the fsync of its folder, and before that any subset of such
changes may have happened, in any order. A file's move between two folders may even be half done. What the
catalog's database wrote is on the disk when its transaction returned: DuckDB's promise.

Folders that the run did not touch are not part of a state: `build` leaves them as they are.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit.faults import Disk, Op, Verdict


@dataclass(eq=False)
class Node:
    """A file or folder, whatever its name is at the moment."""

    folder: bool
    names: dict[str, Node] = field(default_factory=dict)  # while recording
    content: bytes = b""  # while recording


@dataclass(frozen=True)
class Change:
    """Names that change together: (folder, name, what it names then)."""

    slots: tuple[tuple[Node, str, Node | None], ...]


@dataclass(frozen=True)
class Event:
    """One thing that happened: names, bytes, an fsync of `node`, or the catalog's files."""

    op: str
    change: Change | None = None
    node: Node | None = None
    content: bytes | None = None
    catalog: dict[str, bytes] | None = None


@dataclass
class State:
    """What a power cut left."""

    after: int
    folders: list[str]
    files: dict[str, bytes]
    catalog: dict[str, bytes]
    touched: tuple[str, ...]

    @property
    def key(self) -> Hashable:
        """Equal states have equal keys; the bytes are those that states share, whose hash is known."""
        return tuple(map(frozenset, (self.files.items(), self.catalog.items(), self.folders)))

    def build(self, root: Path) -> None:
        """Make the touched folders of `root` as they are in this state."""
        for name in self.touched:
            for path in (root / name).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in sorted(self.folders):
            (root / name).mkdir(exist_ok=True)
        for name, data in self.files.items():
            (root / name).write_bytes(data)
        for path in (root / "catalog").iterdir():
            path.unlink()
        for name, data in self.catalog.items():
            (root / "catalog" / name).write_bytes(data)


class Recorder:
    """Records what happens in `touched` folders below `root`; a context manager.

    Args:
        root: a store's root.
        touched: folders below it, relative; the catalog is followed by itself.
        before: as of `Disk`.
    """

    def __init__(
        self, root: Path, touched: tuple[str, ...], before: Callable[[Op], Verdict] = lambda _: None
    ) -> None:
        self._root, self.touched = root, touched
        self.events: list[Event] = []
        self.ops: list[Op] = []
        self._tops = {name: self._snapshot(root / name) for name in touched}
        self._base = {id(node): (node, dict(node.names), node.content) for node in self._all()}
        self._catalog = self._catalog_now()
        self._base_catalog = self._catalog
        self._disk = Disk(*(root / name for name in touched), before=before, after=self._after)

    def __enter__(self) -> Recorder:
        self._disk.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._disk.__exit__()
        self._look_at_catalog()

    # -- recording -------------------------------------------------------------------------------

    def _snapshot(self, path: Path) -> Node:
        if path.is_dir():
            return Node(True, {below.name: self._snapshot(below) for below in path.iterdir()})
        return Node(False, content=path.read_bytes())

    def _all(self) -> Iterator[Node]:
        pending = list(self._tops.values())
        while pending:
            node = pending.pop()
            yield node
            pending += node.names.values()

    def _catalog_now(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self._root / "catalog").iterdir() if path.is_file()}

    def _look_at_catalog(self) -> None:
        now = self._catalog_now()
        if now != self._catalog:
            self._catalog = now
            self.events.append(Event("catalog", catalog=now))

    def _find(self, path: str) -> tuple[Node, str]:
        """The folder of a path and the name in it; a top folder is its own."""
        relative = os.path.relpath(path, self._root)
        top = max((name for name in self.touched if f"{relative}/".startswith(f"{name}/")), key=len)
        node, rest = self._tops[top], relative[len(top) + 1 :].split("/") if relative != top else []
        for name in rest[:-1]:
            node = node.names[name]
        return node, rest[-1] if rest else ""

    def _node(self, path: str) -> Node:
        folder, name = self._find(path)
        return folder.names[name] if name else folder

    def _set(self, op: Op, *changes: tuple[tuple[Node, str, Node | None], ...]) -> None:
        for slots in changes:
            for folder, name, node in slots:
                if node is None:
                    folder.names.pop(name, None)
                else:
                    folder.names[name] = node
            self.events.append(Event(op.kind, change=Change(slots)))

    def _after(self, op: Op) -> None:
        self._look_at_catalog()
        self.ops.append(op)
        if op.kind == "fsync":
            self.events.append(Event(op.kind, node=self._node(op.path)))
        elif op.kind in ("write", "truncate"):
            node = self._node(op.path)
            node.content = Path(op.path).read_bytes()
            self.events.append(Event(op.kind, node=node, content=node.content))
        elif op.kind in ("create", "mkdir"):
            self._set(op, ((*self._find(op.path), Node(op.kind == "mkdir")),))
        elif op.kind == "link":
            self._set(op, ((*self._find(op.to), self._node(op.path)),))
        elif op.kind in ("unlink", "rmdir"):
            self._set(op, ((*self._find(op.path), None),))
        else:
            self._renamed(op)

    def _renamed(self, op: Op) -> None:
        src, dst, node = self._find(op.path), self._find(op.to), self._node(op.path)
        put, taken = (*dst, node), (*src, None)
        if src[0] is dst[0] or node.folder:
            self._set(op, (put, taken))
        else:
            self._set(op, (put,), (taken,))

    # -- the states ------------------------------------------------------------------------------

    def moments(self) -> int:
        """Number of moments a power cut can happen at."""
        return len(self.events) + 1

    def states(self, moments: Iterator[int] | None = None, *, worst: bool = False) -> Iterator[State]:
        """States after each of these numbers of events, all by default; the least done first.

        Args:
            moments: numbers of events.
            worst: only the state that lost everything it can lose.
        """
        for count in range(self.moments()) if moments is None else moments:
            yield from self._states_after(count, worst)

    def _states_after(self, count: int, worst: bool) -> Iterator[State]:
        names = {key: dict(slots) for key, (_, slots, _) in self._base.items()}
        synced = {key: content for key, (_, _, content) in self._base.items()}
        current = dict(synced)
        pending: list[Change] = []
        catalog = self._base_catalog
        for event in self.events[:count]:
            if event.change is not None:
                pending.append(event.change)
            elif event.catalog is not None:
                catalog = event.catalog
            elif event.content is not None:
                current[id(event.node)] = event.content
            elif event.node is not None and event.node.folder:
                for change in pending:
                    if change.slots[0][0] is event.node:  # of a folder's move: the one it moved to
                        _apply(names, change)
                pending = [change for change in pending if change.slots[0][0] is not event.node]
            else:
                synced[id(event.node)] = current.get(id(event.node), b"")
        choices = [[False, True]] * len(pending)
        for chosen in [(False,) * len(pending)] if worst else itertools.product(*choices):
            view = {key: dict(slots) for key, slots in names.items()}
            for change, done in zip(pending, chosen, strict=True):
                if done:
                    _apply(view, change)
            yield from self._with_bytes(count, view, synced, current, catalog, worst)

    def _with_bytes(
        self, count: int, view: dict[int, dict[str, Node]], synced: dict[int, bytes],
        current: dict[int, bytes], catalog: dict[str, bytes], worst: bool,
    ) -> Iterator[State]:  # fmt: skip
        folders: list[str] = []
        files: dict[str, Node] = {}
        pending = list(self._tops.items())
        while pending:
            path, node = pending.pop()
            if node.folder:
                folders.append(path)
                pending += [(f"{path}/{name}", below) for name, below in view.get(id(node), {}).items()]
            else:
                files[path] = node
        nodes = list({id(node): node for node in files.values()})
        options = []
        for key in nodes:
            old, new = synced.get(key, b""), current.get(key, b"")
            kept = old if new.startswith(old) else b""  # of what was only added to, the beginning stays
            added = new[len(kept) :]
            ways = list(dict.fromkeys((old, kept + bytes(len(added)), kept + added[: len(added) // 2], new)))
            options.append([old] if worst or old == new else ways)
        for picked in itertools.product(*options):
            content = dict(zip(nodes, picked, strict=True))
            held = {path: content[id(node)] for path, node in files.items()}
            yield State(count, folders, held, catalog, self.touched)


def _apply(names: dict[int, dict[str, Node]], change: Change) -> None:
    for folder, name, node in change.slots:
        slots = names.setdefault(id(folder), {})
        if node is None:
            slots.pop(name, None)
        else:
            slots[name] = node
