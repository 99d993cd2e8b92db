"""Pull and push by DICOMweb, against an archive of the standard library with chosen faults."""

from __future__ import annotations

import csv
import io
import logging
import stat
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake.dicom import dataset, phantom, uid, write
from fake.pacs import Habits, WebServer, web_server
from pydicom import dcmread

from hilum.core.cli import main
from hilum.core.errors import HilumError
from hilum.data.identity import IdentityKey
from hilum.medical.pacs.verbs import pull, push

QUICK: dict[str, Any] = {"retries": 1, "timeout": 5.0}


def content(**options: Any) -> bytes:
    buffer = io.BytesIO()
    dataset(phantom(options.get("instance", 1)), StudyDate="20200115", **options).save_as(
        buffer, enforce_file_format=True
    )
    return buffer.getvalue()


def fill(server: WebServer, n: int = 6) -> dict[str, bytes]:
    """Two studies of two patients, ``n`` instances in two series each; UID -> bytes."""
    files = {}
    for study in (1, 2):
        for i in range(n):
            data = content(
                study=study, series=1 + i % 2, instance=i + 1, patient=f"PAT-{study}", Modality=["DX", "CR"][i % 2]
            )
            files[server.store.add(data)] = data
    return files


def files_of(out: Path) -> dict[str, bytes]:
    return {str(dcmread(p).SOPInstanceUID): p.read_bytes() for p in out.rglob("*.dcm")}


def ledger(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "private" / "transfer.parquet").to_pylist()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hilum.medical.pacs.transfer.Manners.wait", lambda *_: None)
    monkeypatch.delenv("HILUM_DICOMWEB_TOKEN", raising=False)


def test_pull_copies_every_byte_under_keyed_names(tmp_path: Path) -> None:
    with web_server() as server:
        held = fill(server)
        result = pull(server.url, tmp_path / "in", patient="PAT-1", **QUICK)
    assert (result.found, result.received, result.skipped, result.failed, result.exit_code) == (6, 6, 0, 0, 0)
    assert files_of(tmp_path / "in") == {u: b for u, b in held.items() if u.startswith(uid(1) + ".")}
    key = IdentityKey.load()
    series = tmp_path / "in" / key.digest("study", uid(1)) / key.digest("series", uid(1, 2))
    assert (series / f"{key.digest('instance', uid(1, 2, 2))}.dcm").read_bytes() == held[uid(1, 2, 2)]
    assert stat.S_IMODE((tmp_path / "in" / "private").stat().st_mode) == 0o700
    assert not (tmp_path / "in" / "private" / "incoming").exists()


def test_pull_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "in"
    with web_server() as server:
        held = fill(server)
        first = pull(server.url, out, date="20200101-20200131", limit=5, **QUICK)
        assert (first.received, first.cut) == (5, True)
        kept = sorted(out.rglob("*.dcm"))
        kept[0].write_bytes(kept[0].read_bytes()[:-2] + b"\1\1")  # damaged since
        kept[1].unlink()
        asked = len(server.requests)
        second = pull(server.url, out, date="20200101-20200131", **QUICK)
        fetched = [r for r in server.requests[asked:] if r[1].count("/") == 7 and "?" not in r[1]]
    assert (second.found, second.received, second.skipped, second.failed) == (12, 9, 3, 0)
    assert len(fetched) == 9
    assert files_of(out) == held
    assert len(ledger(out)) == 12


def test_files_that_the_ledger_missed_are_read_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "in"
    with web_server() as server:
        fill(server)
        pull(server.url, out, study=uid(1), **QUICK)
        (out / "private" / "transfer.parquet").unlink()  # killed before it was written
        (out / "private" / "incoming").mkdir()
        (out / "private" / "incoming" / "half").write_bytes(b"\0" * 100)
        again = pull(server.url, out, study=uid(1), **QUICK)
    assert (again.received, again.skipped) == (0, 6)
    assert {r["reason"] for r in ledger(out)} == {"present"}
    assert not (out / "private" / "incoming").exists()


def test_an_archive_that_ignores_filters_is_not_emptied(tmp_path: Path) -> None:
    with web_server(Habits(filters=False)) as server:
        fill(server)
        result = pull(server.url, tmp_path / "in", patient="PAT-2", modality="CR", **QUICK)
    assert (result.found, result.unasked) == (3, 1)
    assert {(r["study_instance_uid"], r["series_instance_uid"]) for r in ledger(tmp_path / "in")} == {
        (uid(2), uid(2, 2))
    }


def test_pages_shorter_than_asked_for_are_all_read(tmp_path: Path) -> None:
    with web_server(Habits(page=2)) as server:
        held = fill(server, 7)
        assert pull(server.url, tmp_path / "in", date="20200115", **QUICK).received == 14
        assert files_of(tmp_path / "in") == held


def test_worklist_values_are_pulled_once_and_never_matched_as_wildcards(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    with web_server() as server:
        fill(server)
        table.write_text("accession_number,x\nACC1,1\n,2\nACC1,3\n")
        assert pull(server.url, tmp_path / "in", from_=f"{table}:accession_number", **QUICK).found == 6
        table.write_text("who\nPAT-1\nPAT*\n")
        with pytest.raises(HilumError, match="row 3") as told:
            pull(server.url, tmp_path / "in2", from_=f"{table}:who=patient", **QUICK)
        assert "PAT" not in str(told.value).replace("PatientID", "")
        with pytest.raises(HilumError, match="what 'who' holds"):
            pull(server.url, tmp_path / "in2", from_=f"{table}:who", **QUICK)


@pytest.mark.parametrize(
    "fault", [{"fails": {"instances/": [503, 429]}}, {"cuts": 2}, {"fails": {r"/studies\?": [500]}}]
)
def test_passing_faults_are_retried(tmp_path: Path, fault: dict[str, Any]) -> None:
    with web_server(Habits(**fault)) as server:
        held = fill(server, 2)
        result = pull(server.url, tmp_path / "in", date="20200115", retries=2, timeout=5.0)
    assert (result.received, result.failed) == (4, 0)
    assert files_of(tmp_path / "in") == held


def test_what_cannot_be_fetched_fails_with_its_reason_and_the_rest_arrives(tmp_path: Path) -> None:
    with web_server() as server:
        held = fill(server, 2)
        for uid_, faulty in zip(held, [b"MZ" + b"\0" * 126, None, b"", held[uid(2, 2, 2)]], strict=False):
            if faulty is None:
                server.habits.fails[f"instances/{uid_}$"] = [404]
            elif faulty != held[uid(2, 2, 2)]:
                server.store.files[uid_] = faulty + held[uid_][len(faulty) :]
        server.store.files[uid(2, 1, 1)] = held[uid(2, 2, 2)]  # another instance than was asked for
        result = pull(server.url, tmp_path / "in", date="20200115", **QUICK)
    assert (result.found, result.received, result.failed, result.exit_code) == (4, 1, 3, 3)
    assert dict(result.reasons) == {"unsafe_preamble": 1, "not_found": 1, "wrong_instance": 1}
    assert set(files_of(tmp_path / "in")) == {uid(2, 2, 2)}


def test_an_answer_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    with web_server() as server:
        fill(server, 1)
        server.habits.junk = b"\0" * 300_000
        result = pull(server.url, tmp_path / "in", study=uid(1), max_bytes=100_000, **QUICK)
        assert dict(result.reasons) == {"too_large": 1}


def test_uids_that_are_none_reach_no_url_and_no_path(tmp_path: Path) -> None:
    with web_server() as server:
        fill(server, 2)
        known = server.store.about[uid(1, 1, 1)]
        server.store.about["a"] = {**known, "SOPInstanceUID": "../../../secret"}
        server.store.about["b"] = {**known, "SeriesInstanceUID": "1.2/../3", "SOPInstanceUID": "1.2.3"}
        result = pull(server.url, tmp_path / "in", study=uid(1), **QUICK)
        assert not any(".." in path for _, path, _ in server.requests)
    assert (result.found, result.received, result.failed, dict(result.reasons)) == (4, 2, 2, {"invalid_uid": 2})
    assert not any("secret" in str(p) for p in tmp_path.rglob("*"))


@pytest.mark.parametrize("habit", [{"single_part": True}, {"no_wildcard": True}])
def test_other_dialects_are_understood(tmp_path: Path, habit: dict[str, bool]) -> None:
    with web_server(Habits(**habit)) as server:
        held = fill(server, 1)
        pull(server.url, tmp_path / "in", date="20200115", **QUICK)
    assert files_of(tmp_path / "in") == held


def test_the_token_is_sent_and_its_absence_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server(Habits(token="s3cret")) as server:
        fill(server, 1)
        with pytest.raises(HilumError, match="does not let us in"):
            pull(server.url, tmp_path / "in", study=uid(1), **QUICK)
        monkeypatch.setenv("HILUM_DICOMWEB_TOKEN", "s3cret")
        assert pull(server.url, tmp_path / "in", study=uid(1), **QUICK).received == 1


def test_files_of_another_patient_than_was_asked_for_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The archive's answers say PAT-1 of everything, as one does that repeats the question; its files know better."""
    with web_server() as server:
        held = fill(server)
        blank = content(study=3, instance=1, patient=" pat-1")
        held[server.store.add(blank)] = blank
        for about in server.store.about.values():
            about["PatientID"] = "PAT-1"
        assert main(["pull", server.url, str(tmp_path / "in"), "--patient", "PAT-1", "--retries", "0"]) == 3
        told = capsys.readouterr().out
        assert "found 13 = received 7 + skipped 0 + failed 6" in told and "6  wrong_instance:PatientID" in told
        assert files_of(tmp_path / "in") == {u: b for u, b in held.items() if not u.startswith(uid(2) + ".")}
        wrong = [r for r in ledger(tmp_path / "in") if r["status"] == "failed"]
        assert {r["study_instance_uid"] for r in wrong} == {uid(2)} and len(wrong) == 6
        assert not list((tmp_path / "in" / "private").glob("incoming*"))
        for about in server.store.about.values():
            about["AccessionNumber"] = "ACC2"
        other = pull(server.url, tmp_path / "other", accession="ACC2", **QUICK)
        assert (other.received, dict(other.reasons)) == (6, {"wrong_instance:AccessionNumber": 7})
        asked = pull(server.url, tmp_path / "in", study=uid(2), **QUICK)  # by UID they are what was asked for
        assert (asked.received, asked.failed) == (6, 0)


@pytest.mark.parametrize(
    ("status", "fix"), [(404, "base of the service"), (400, "base of the service"), (503, "the network")]
)
def test_a_query_without_an_answer_says_what_to_check(tmp_path: Path, status: int, fix: str) -> None:
    with web_server(Habits(fails={"studies": [status] * 9})) as server, pytest.raises(HilumError) as told:
        pull(server.url, tmp_path / "in", study=uid(1), **QUICK)
    assert told.value.where == "SOURCE" and fix in told.value.fix and server.url not in str(told.value)


def test_redirects_silence_and_a_closed_port_end_the_pull(tmp_path: Path) -> None:
    with web_server() as server:
        fill(server, 1)
        server.habits.redirects = "http://127.0.0.1:1/"
        with pytest.raises(HilumError, match="redirects"):
            pull(server.url, tmp_path / "in", study=uid(1), **QUICK)
    with pytest.raises(HilumError, match="no answer"):
        pull(server.url, tmp_path / "in", study=uid(1), **QUICK)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://pacs.example/dicom-web", "in clear"),
        ("https://me:pw@pacs.example/x", "credentials"),
        ("ftp://pacs.example", "scheme"),
        ("dimse://pacs.example:104", "AE title"),
        ("dimse://A@h:104?caling=X", "calling"),
        ("dimse://A@h:104?move=0.0.0.0:11112", "one address"),
    ],
)
def test_addresses_that_are_refused(tmp_path: Path, address: str, told: str) -> None:
    with pytest.raises(HilumError, match=told) as error:
        pull(address, tmp_path / "in", study="1.2")
    assert "pw" not in str(error.value)
    assert not (tmp_path / "in").exists()


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with web_server() as server:
        fill(server)
        result = pull(server.url, tmp_path / "in", date="20200115", modality="DX", dry_run=True, **QUICK)
    assert (result.found, result.series, result.studies) == (6, 2, 2)
    assert not (tmp_path / "in").exists()
    assert "found 6 instances in 2 series of 2 studies" in capsys.readouterr().out


def archive_to_send(root: Path, n: int = 3, **options: Any) -> list[Path]:
    return [
        write(root / f"{i}.dcm", phantom(i), instance=i + 1, **{"PatientIdentityRemoved": "YES", **options})
        for i in range(n)
    ]


def test_push_sends_each_file_and_reads_it_back(tmp_path: Path) -> None:
    sent = archive_to_send(tmp_path / "deid")
    (tmp_path / "deid" / "report.csv").write_text("a,b\n")
    with web_server() as server:
        result = push([tmp_path / "deid"], server.url, out=tmp_path / "log", **QUICK)
        assert (result.found, result.verified, result.skipped, result.failed) == (4, 3, 1, 0)
        assert sorted(server.store.files.values()) == sorted(p.read_bytes() for p in sent)
        again = push([tmp_path / "deid"], server.url, out=tmp_path / "log", **QUICK)
        assert (again.verified, again.skipped, dict(again.reasons)) == (0, 4, {"present": 3, "not_dicom": 1})
        posts = [r for r in server.requests if r[0] == "POST"]
        assert len(posts) == 3
        assert all(
            "Transfer-Encoding" not in headers and int(headers["Content-Length"]) > 1000 for _, _, headers in posts
        )


def test_an_archive_that_answers_200_and_stores_nothing_is_found_out(tmp_path: Path) -> None:
    archive_to_send(tmp_path / "deid")
    with web_server(Habits(stores=False)) as server:
        result = push([tmp_path / "deid"], server.url, out=tmp_path / "log", **QUICK)
    assert (result.verified, result.failed, dict(result.reasons), result.exit_code) == (0, 3, {"not_stored": 3}, 3)
    assert sorted(Path(r["path"]).name for r in ledger(tmp_path / "log")) == ["0.dcm", "1.dcm", "2.dcm"]


@pytest.mark.parametrize("status", [404, 405])
def test_an_address_that_takes_nothing_is_told_once(tmp_path: Path, status: int) -> None:
    archive_to_send(tmp_path / "deid")
    with web_server(Habits(fails={"studies$": [status] * 99})) as server:
        with pytest.raises(HilumError, match="nothing takes images") as told:
            push([tmp_path / "deid"], server.url, out=tmp_path / "log", **QUICK)
        assert sum(r[0] == "POST" for r in server.requests) == 1
    assert told.value.where == "DEST" and "base of a service" in told.value.fix


def test_what_an_archive_alters_is_named_by_keyword(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive_to_send(tmp_path / "deid", 1)
    with web_server(Habits(alters="PatientName")) as server:
        result = push([tmp_path / "deid"], server.url, out=tmp_path / "log", **QUICK)
        assert dict(result.reasons) == {"stored_differently": 1}
        again = push([tmp_path / "deid"], server.url, out=tmp_path / "log", **QUICK)
        assert dict(again.reasons) == {"held_differently": 1}  # and was not overwritten
        assert sum(r[0] == "POST" for r in server.requests) == 1
    assert ledger(tmp_path / "log")[0]["detail"] == "PatientName"
    assert "ALTERED" not in capsys.readouterr().out


def test_identified_files_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    archive_to_send(tmp_path / "mixed", 2)
    write(tmp_path / "mixed" / "named.dcm", phantom(9), instance=9)
    with web_server() as server:
        with pytest.raises(HilumError, match="1 of 3 files"):
            push([tmp_path / "mixed"], server.url, out=tmp_path / "log", **QUICK)
        assert server.requests == []
        assert push([tmp_path / "mixed"], server.url, out=tmp_path / "log", identified=True, **QUICK).verified == 3


def test_one_uid_with_two_contents_is_sent_once(tmp_path: Path) -> None:
    archive_to_send(tmp_path / "a", 1)
    write(tmp_path / "b" / "0.dcm", phantom(5), instance=1, PatientIdentityRemoved="YES")
    with web_server() as server:
        result = push([tmp_path / "a", tmp_path / "b"], server.url, out=tmp_path / "log", **QUICK)
    assert (result.verified, dict(result.reasons)) == (1, {"uid_conflict": 1})


def test_nothing_that_identifies_is_printed_logged_or_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with web_server(Habits(cuts=1, fails={"series": [503]})) as server:
        for i in range(3):
            server.store.add(content(instance=i + 1, patient="CANARY-77", AccessionNumber="CANARYACC"))
        table = tmp_path / "list.csv"
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([["PatientID"], ["CANARY-77"]])
        command = ["pull", server.url, str(tmp_path / "in"), "--from", f"{table}:PatientID", "--retries", "2"]
        assert main(command) == 0
        server.habits.fails["series"] = [418]
        assert main(["pull", server.url, str(tmp_path / "in"), "--patient", "CANARY-77", "--retries", "0"]) == 1
    told = capfd.readouterr()
    names = " ".join(str(p) for p in (tmp_path / "in").rglob("*"))
    for text in (told.out, told.err, caplog.text, names):
        assert "CANARY" not in text and uid(1) not in text
