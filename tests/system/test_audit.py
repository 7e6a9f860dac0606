"""A facility reads the store's audit log, and keeps the proof that it was not cut off."""

from __future__ import annotations

import json

from tests.kit.site import Site


def test_a_terminal_reads_the_events_and_notices_a_log_that_was_cut_off(site: Site) -> None:
    terminal = site.terminal("clinic-a")
    with site.serving():
        assert terminal.ask("query", "--modality", "CT").status == 0
        first = terminal.ask("audit", "--json")
        assert [event["kind"] for event in first.json] == ["log-read", "search", "account", "enrol"]
        assert json.loads(first.json[1]["details"])["conditions"] == {"modality": ["CT"]}
        assert not (terminal.home / "checkpoints").exists()

        for number in (1, 2):
            head = site.store("audit", "head", "--to", site.folder, "--json")
            assert (head.json["segment"], head.status) == (number, 0)
            shown = terminal.ask("audit", "--since", "today", "--limit", "2")
            assert shown.status == 0
            assert "log-read" in shown.out
            assert "(--limit)" in shown.err
        kept = terminal.home / "checkpoints" / "central" / "00000002.json"
        assert kept.read_bytes() == (site.folder / "00000002.json").read_bytes()
        assert site.store("audit", "verify", "--head", kept).status == 0
        assert site.store("audit-kit", site.folder / "kit", "--facility", "clinic-a").status == 0
        assert (site.folder / "kit" / "README.md").is_file()
        assert "CREATE OR REPLACE VIEW events" in site.store("audit", "views").out

        # Somebody with root cuts off the log at its end.
        for path in [*site.root.glob("audit/0000000[23].*"), site.root / "audit" / "journal.jsonl"]:
            path.unlink()
        assert site.store("audit", "verify").status == 0
        proof = site.store("audit", "verify", "--head", kept, "--json")
        assert proof.status == 17
        assert proof.json["problems"][0].startswith("segment 2")
        noticed = terminal.ask("audit")
        assert noticed.status == 16
        assert "not the one it was" in noticed.err
    assert site.store("audit", "verify", "--head", site.folder / "password").status == 15
    assert site.store("audit-kit", site.folder / "kit").status == 10
    assert site.store("audit-kit", site.folder / "other", "--facility", "nobody").status == 10
    assert site.store("audit-kit", site.folder / "other", "--since", "24.11.2026").status == 2
