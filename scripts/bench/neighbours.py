"""What people search with instead, asked the same: Orthanc on the same rows, idc-index on its own index.

Orthanc (Debian's, SQLite) gets one small DICOM file for each object of a generated catalog, through its REST
interface, and is asked with `/tools/find`, whole answers as ours are. idc-index is asked by SQL in its own
process, as its page shows; it wants its own versions of libraries, so it may live in another interpreter.
"""

from __future__ import annotations

import http.client
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import sshd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin")
_ROWS = """SELECT o.sop_instance_uid, o.instance_number, p.study_uid, p.series_uid, p.study_date, p.modality,
    p.menu, p.body_part, p.facility, p.patient_id_tokens[1] AS patient, p.series_number
FROM objects o JOIN parts p ON p.part = o.part ORDER BY o.number"""


def _file(row: dict[str, Any]) -> bytes:
    """A DICOM file without pixels that says what the row says."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = SecondaryCaptureImageStorage, _uid(row["sop_instance_uid"])
    made.StudyInstanceUID, made.SeriesInstanceUID = _uid(row["study_uid"]), _uid(row["series_uid"])
    made.PatientID, made.InstitutionName = row["patient"], row["facility"]
    made.StudyDate = row["study_date"].strftime("%Y%m%d")
    made.Modality, made.SeriesDescription = row["modality"], (row["menu"] or "")[:64]
    made.BodyPartExamined = (row["body_part"] or "")[:16]
    made.SeriesNumber, made.InstanceNumber = row["series_number"], row["instance_number"]
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    sink = BytesIO()
    made.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


def _uid(text: str) -> str:
    """The UID itself; one that our copies made too long, another one that follows from it."""
    return text if len(text) <= 64 else str(generate_uid(entropy_srcs=[text]))


@contextmanager
def _served(work: Path) -> Iterator[http.client.HTTPConnection]:
    folder, port = work / "orthanc", sshd.free_port()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    settings = {
        "StorageDirectory": str(folder), "IndexDirectory": str(folder), "HttpPort": port, "Plugins": [],
        "DicomServerEnabled": False, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([str(ORTHANC), folder / "settings.json"], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 30
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            try:
                _rest(connection, "GET", "/system")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield connection
    finally:
        process.terminate()
        process.wait(60)


def _rest(connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b"") -> bytes:
    connection.request(method, path, body)
    answer = connection.getresponse()
    found = answer.read()
    if answer.status != 200:
        raise SystemExit(f"Orthanc says {answer.status} to {path}")
    return found


def orthanc(
    rows: list[dict[str, Any]],
    work: Path,
    rng: random.Random,
    clocked: Callable[[Callable[[], int]], list[float]],
) -> dict[str, list[float]]:
    """Milliseconds of each question, and of adding one instance.

    Args:
        rows: one for each instance.
        work: a folder for its data.
        rng: chooses what is asked.
        clocked: repeats a question.
    """
    with _served(work) as connection:
        adding = []
        for row in rows:
            file = _file(row)
            began = time.perf_counter()
            _rest(connection, "POST", "/instances", file)
            adding.append((time.perf_counter() - began) * 1e3)

        def ask(level: str, limit: int = 1000, **query: str) -> int:
            asked = {"Level": level, "Expand": True, "Limit": limit, "Query": query}
            return len(json.loads(_rest(connection, "POST", "/tools/find", json.dumps(asked).encode())))

        def period() -> int:
            one = rng.choice(rows)
            first, last = (one["study_date"] + timedelta(days) for days in (-15, 15))
            days, modality = f"{first:%Y%m%d}-{last:%Y%m%d}", one["modality"]
            return ask("Study", StudyDate=days, ModalitiesInStudy=modality, InstitutionName=one["facility"])

        def text() -> int:
            words = rng.choice(["*chest*", "*axial*", "*brain*", "*t2*", "*lung*"])
            return ask("Series", limit=100, **{rng.choice(["SeriesDescription", "BodyPartExamined"]): words})

        return {
            "patient, study list": clocked(lambda: ask("Study", PatientID=rng.choice(rows)["patient"])),
            "facility, 30 days, modality, study list": clocked(period),
            "menu or body part, newest 100 studies": clocked(text),
            "study UID to its instances": clocked(
                lambda: ask("Instance", StudyInstanceUID=_uid(rng.choice(rows)["study_uid"]))
            ),
            "SOP UID to its instance": clocked(
                lambda: ask("Instance", SOPInstanceUID=_uid(rng.choice(rows)["sop_instance_uid"]))
            ),
            "add a batch of 1,000 rows": [sum(adding[at : at + 1000]) for at in range(0, len(adding), 1000)],
        }


def rows_of(catalog: Any) -> list[dict[str, Any]]:
    """All objects of a small catalog."""
    found: list[dict[str, Any]] = catalog.table(_ROWS, {}).to_pylist()
    return found


_IDC = r"""
import json, random, sys, time
from idc_index import IDCClient
client, rng, found = IDCClient(), random.Random(7), {}
some = client.sql_query("SELECT * FROM index USING SAMPLE 500 ROWS").to_dict("records")
STUDY = (
    "SELECT StudyInstanceUID, any_value(PatientID), any_value(collection_id), min(StudyDate) AS day, "
    "list(DISTINCT Modality), list(DISTINCT SeriesDescription), count(*), sum(instanceCount) FROM index "
    "WHERE {} GROUP BY StudyInstanceUID ORDER BY day DESC LIMIT {}"
)
DAY = "try_cast(StudyDate AS DATE)"
def one():
    return rng.choice([each for each in some if each["StudyDate"]])
def period(each):
    days = f"abs(date_diff('day', {DAY}, DATE '{each['StudyDate']}')) <= 15"
    return f"collection_id = '{each['collection_id']}' AND Modality = '{each['Modality']}' AND {days}"
def text():
    word = rng.choice(["chest", "axial", "brain", "t2", "lung"])
    return f"{rng.choice(['SeriesDescription', 'BodyPartExamined'])} ILIKE '%{word}%'"
asked = {
    "patient, study list": lambda: STUDY.format(f"PatientID = '{one()['PatientID']}'", 1000),
    "facility, 30 days, modality, study list": lambda: STUDY.format(period(one()), 1000),
    "menu or body part, newest 100 studies": lambda: STUDY.format(text(), 100),
    "full roll-up by facility, modality, month": lambda: "SELECT collection_id, Modality, "
    f"date_trunc('month', {DAY}) AS month, sum(instanceCount) FROM index GROUP BY ALL",
}
for name, make in asked.items():
    waits = []
    for number in range(int(sys.argv[1])):
        sql = make()
        began = time.perf_counter(), time.process_time()
        client.sql_query(sql)
        waits.append([(time.perf_counter() - began[0]) * 1e3, (time.process_time() - began[1]) * 1e3])
    found[name] = waits
size = client.sql_query("SELECT count(*) AS series, sum(instanceCount) AS images FROM index").iloc[0]
print(json.dumps({"found": found, "series": int(size["series"]), "images": int(size["images"])}))
"""


def idc_index(python: Path, times: int) -> dict[str, Any] | None:
    """Milliseconds and CPU milliseconds of each question, and the index's size; None: it is not there."""
    done = subprocess.run([python, "-c", _IDC, str(times)], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"idc-index is left out: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
