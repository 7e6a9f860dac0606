"""Two stores as they are installed, over real SFTP: replicate, repair, rebuild; the commands of the drill."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from central_store import settings
from schemas import messages
from tests.kit.batches import Facility, row, send
from tests.kit.site import Site, make_site


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def put(site: Site, who: Facility, count: int, *, serving: bool = False) -> list[str]:
    """Batches on a facility's shelf, taken in."""
    store = settings.open_store(site.root)
    made = [send(store, who, row(number, study=number + 1)) for number in range(count)]
    if serving:
        return [one.batch for one in made]
    done = site.store("ingest", "--json")
    assert done.json["stored"] == count, done.err
    return [one.batch for one in made]


def test_replicate_repair_and_rebuild_by_command(tmp_path: Path) -> None:
    south, north = make_site(tmp_path / "south", free_port()), Site(tmp_path / "north")
    north.folder.mkdir()
    port = free_port()
    assert north.store("init", "--name", "north", "--host", "127.0.0.1", "--port", str(port)).status == 0
    (tmp_path / "north.card").write_text(north.store("card").out)
    (tmp_path / "south.card").write_text(south.store("card").out)
    for site, name, extra in ((south, "north", ()), (north, "central", ("--wait",))):
        card = tmp_path / ("north.card" if name == "north" else "south.card")
        done = site.store("peer", "add", name, card, *extra)
        assert done.status == 0, done.err
    clinic = Facility("clinic-a")
    (tmp_path / "clinic.card").write_bytes(clinic.card.to_bytes())
    assert south.store("enrol", tmp_path / "clinic.card").status == 0
    made = put(south, clinic, 3)
    with north.serving():
        done = south.store("replicate", "north", "--json", "--patience", "30")
        assert done.status == 0, done.err + (north.folder / "serve.log").read_text()
        assert done.json["level"]
        assert [line["held"] for line in done.json["peers"]] == [3]
        replica = south.root / "shelves" / "clinic-a" / "out" / f"{made[0]}.north.replica"
        receipt = clinic.open(replica.read_bytes(), settings.open_store(north.root).card())[0]
        assert isinstance(receipt, messages.Receipt)
        shown = south.store("status").out
        assert "peer north lacks 0 batches" in shown
        assert "ALARM" not in shown

        with south.serving():  # a batch taken in at either is at the other; only one side dials
            put(south, clinic, 1, serving=True)
            done = south.store("replicate", "--json", "--patience", "30")
            assert done.status == 0, done.err + (south.folder / "serve.log").read_text()
            assert [(line["held"], line["missing"]) for line in done.json["peers"]] == [(4, 0)]

        shutil.rmtree(south.root / "objects" / "packs")
        done = south.store("repair", "--from", "north", "--json", "--patience", "30")
        assert done.status == 0, done.err
        assert south.store("check", "--read-data").status == 0

        keys = tmp_path / "backup-of-keys"
        shutil.copytree(south.root / "keys", keys)
        before = settings.open_store(south.root).card()
        shutil.rmtree(south.root)
        words = ("init", "--name", "central", "--host", "127.0.0.1", "--port", str(before.port))
        assert south.store(*words).status == 0
        for key in keys.iterdir():
            shutil.copy2(key, south.root / "keys" / key.name)
        done = south.store("restore-from", "north", tmp_path / "north.card", "--json", "--patience", "30")
        assert done.status == 0, done.err
        assert south.store("check", "--read-data").status == 0
        assert settings.open_store(south.root).card() == before
        assert "clinic-a" in south.store("facilities").out
        assert "ALARM peer central" in north.store("status").out
        assert north.store("peer", "clear", "central").status == 0
