"""Sealing and key epochs: batches that chain, resume and close."""

import contextlib
import itertools
import json
import os
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodes.config import ListsSection
from nodes.errors import NotFound, Refused, StorageError
from nodes.holder import batches as batches_module
from nodes.holder import epochs as epochs_module
from nodes.identity.institutions import DirectoryFile
from protocols import padding, sealed, statement, voprf
from protocols.identifiers import Directory, form, normalise
from protocols.label import Reason, Status
from protocols.sealed import BatchHash

PHONES = [{"kind": "phone", "value": f"139{i:08d}"} for i in range(60)]


def canonical(row):
    return normalise(row["kind"], row["value"]).canonical


def table(holder, epoch=1, strict=True):
    """Replay an epoch's batches as a querier would, checking hashes, signatures and order."""
    where = holder.epochs.where("fraud", epoch)
    records, previous = {}, bytes(32)
    for batch in holder.epochs.batches("fraud", epoch):
        said = statement.verify(holder.keys.signing.public_key(), batch.descriptor, where, "batch").batch
        content = holder.epochs.batch_path("fraud", epoch, batch.number).read_bytes()
        split = said.additions * sealed.RECORD
        assert len(content) == sealed.content_length(said.additions, said.removals)
        hasher = BatchHash(where, said.number, previous, said.additions, said.removals)
        hasher.update(content)
        assert hasher.digest() == said.table_hash
        assert said.previous == previous
        assert padding.bucket(said.additions) == said.additions
        for record in sealed.ascending(content[:split], sealed.RECORD):
            records[record[:16]] = (batch.number, record[16:])
        for tag in sealed.ascending(content[split:], sealed.TAG):
            assert tag in records or not strict, "a removal of what is not there is seen to be a dummy"
            records.pop(tag, None)
        previous = said.table_hash
    return records


def found(holder, row, epoch=1, strict=True):
    key = holder.epochs.key("fraud", epoch)
    output = voprf.evaluate_inputs(key.secret, [canonical(row)])[0]
    record = table(holder, epoch, strict).get(sealed.tag_of(output))
    if record is None:
        return None
    return sealed.open_record(output, holder.epochs.where("fraud", epoch).context, *record)


def test_what_is_listed_is_found_and_nothing_else(holder):
    holder.load(*PHONES[:50])
    (batch,) = holder.epochs.seal_changes("fraud")
    assert (batch.number, batch.sealed, batch.tombstones, batch.removals) == (1, 50, 0, 0)
    assert all(found(holder, row) for row in PHONES[:3])
    assert not found(holder, PHONES[55])


def test_only_changes_are_sealed(holder):
    holder.load(*PHONES[:50])
    holder.epochs.seal_changes("fraud")
    assert holder.epochs.seal_changes("fraud") == []
    holder.load({**PHONES[0], "severity": "5"}, PHONES[50])
    holder.store.set_status("fraud", [canonical(PHONES[1])], [], Status.WITHDRAWN, Reason.APPEAL_UPHELD)
    (batch,) = holder.epochs.seal_changes("fraud")
    assert (batch.number, batch.sealed, batch.tombstones) == (2, 2, 1)
    assert found(holder, PHONES[0]).severity == 5
    assert found(holder, PHONES[1]) is None
    assert found(holder, PHONES[50])
    assert found(holder, PHONES[2]).severity == 3


def test_a_withdrawn_entry_leaves_and_a_restored_one_comes_back(holder):
    holder.load(*PHONES[:5])
    holder.epochs.seal_changes("fraud")
    for status, there in (
        (Status.SUSPENDED, False),
        (Status.CONTESTED, True),
        (Status.WITHDRAWN, False),
        (Status.ACTIVE, True),
    ):
        holder.store.set_status("fraud", [canonical(PHONES[0])], [], status, Reason.OTHER)
        holder.epochs.seal_changes("fraud")
        label = found(holder, PHONES[0])
        assert (label is not None) == there
        if there:
            assert label.status == status


def test_what_was_never_sealed_makes_no_tombstone(holder):
    holder.load(*PHONES[:5])
    holder.epochs.seal_changes("fraud")
    holder.load({**PHONES[6], "status": "withdrawn"}, PHONES[7])
    holder.store.set_status("fraud", [canonical(PHONES[7])], [], Status.WITHDRAWN, Reason.OTHER)
    (batch,) = holder.epochs.seal_changes("fraud")
    assert (batch.sealed, batch.tombstones) == (0, 0)
    table(holder)


def test_many_batches_of_removals_stay_padded(holder):
    holder.load(*PHONES)
    holder.epochs.seal_changes("fraud")
    for row in PHONES[:8]:
        holder.store.set_status("fraud", [canonical(row)], [], Status.WITHDRAWN, Reason.OTHER)
        (batch,) = holder.epochs.seal_changes("fraud")
        assert batch.removals == 16
    table(holder)


def test_rotation_seals_everything_anew_and_the_old_epoch_answers_for_a_while(holder):
    holder.load(*PHONES[:20])
    holder.epochs.seal_changes("fraud")
    batch = holder.epochs.rotate("fraud", close_now=False)
    assert (batch.number, batch.sealed) == (1, 20)
    assert [(epoch.number, epoch.state) for epoch in holder.epochs.all("fraud")] == [
        (1, "closing"),
        (2, "open"),
    ]
    assert holder.epochs.key("fraud", 1).public != holder.epochs.key("fraud", 2).public
    assert found(holder, PHONES[0], 2)
    assert not set(table(holder, 1)) & set(table(holder, 2))
    # A removal leaves both.
    holder.store.set_status("fraud", [canonical(PHONES[0])], [], Status.WITHDRAWN, Reason.OTHER)
    assert len(holder.epochs.seal_changes("fraud")) == 2
    assert found(holder, PHONES[0], 1) is None
    assert found(holder, PHONES[0], 2) is None


def test_closing_destroys_the_key_and_says_so(holder):
    holder.load(*PHONES[:5])
    holder.epochs.seal_changes("fraud")
    secret = holder.epochs.key("fraud", 1).secret
    path = holder.folder / "epoch-keys" / "fraud-1.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret not in path.read_bytes()
    holder.epochs.rotate("fraud", close_now=True)
    assert not path.exists()
    assert not holder.epochs.batch_path("fraud", 1, 1).exists()
    with pytest.raises(Refused) as caught:
        holder.epochs.key("fraud", 1)
    assert caught.value.reason == "EPOCH"
    closed = holder.epochs.all("fraud")[0].closed
    statement.verify(
        holder.keys.signing.public_key(), closed, holder.epochs.where("fraud", 1), "epoch_closed"
    )
    data = b"".join(each.read_bytes() for each in holder.folder.rglob("*") if each.is_file())
    assert secret not in data


def test_housekeeping_rotates_and_closes_what_is_due(make_holder, tmp_path):
    holder = make_holder(tmp_path / "short", ListsSection(epoch_days=1e-9, overlap_hours=0))
    holder.load(*PHONES[:3])
    holder.epochs.tend("fraud")
    time.sleep(1.1)
    holder.epochs.tend("fraud")
    holder.epochs.tend("fraud")
    states = [epoch.state for epoch in holder.epochs.all("fraud")]
    assert (states[0], states[-1]) == ("closed", "open")


def test_a_lost_epoch_key_is_named_and_a_rotation_mends_it(make_holder):
    holder = make_holder()
    holder.load(*PHONES[:3])
    holder.epochs.seal_changes("fraud")
    (holder.folder / "epoch-keys" / "fraud-1.key").unlink()
    again = make_holder()
    with pytest.raises(StorageError, match="rotate"):
        again.epochs.key("fraud", 1)
    again.epochs.rotate("fraud", close_now=True)
    assert found(again, PHONES[0], 2)


def test_a_closed_epoch_answers_nobody_even_while_it_closes(holder):
    """Readers hammer the key while it is destroyed: none gets it afterwards."""
    holder.load(*PHONES[:5])
    holder.epochs.seal_changes("fraud")
    for number in range(1, 6):
        stop = threading.Event()

        def hammer(number=number, stop=stop):
            while not stop.is_set():
                with contextlib.suppress(Refused, StorageError):
                    holder.epochs.key("fraud", number)

        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        holder.epochs.rotate("fraud", close_now=True)
        stop.set()
        for thread in threads:
            thread.join()
        with pytest.raises(Refused):
            holder.epochs.key("fraud", number)


@pytest.mark.parametrize("at_once", [1, 3, 1 << 16])
def test_many_runs_are_merged_in_parts(make_holder, monkeypatch, at_once):
    monkeypatch.setattr(epochs_module.limits, "SEAL_CHUNK", 4)
    monkeypatch.setattr(batches_module, "_AT_ONCE", at_once)
    holder = make_holder()
    holder.load(*PHONES)
    holder.epochs.seal_changes("fraud")
    assert len(table(holder)) >= len(PHONES)
    assert found(holder, PHONES[59])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.sampled_from([b"\x00" * 8, b"\xff" * 8, b"\x80"]) | st.binary(max_size=8), max_size=9)
    ),
    st.sampled_from([1, 2, 5, 100]),
    st.sampled_from([1, 3, 16]),
)
def test_runs_are_merged_whatever_the_tags(tmp_path, monkeypatch, runs, at_once, of_each):
    monkeypatch.setattr(batches_module, "_AT_ONCE", at_once)
    monkeypatch.setattr(batches_module, "_OF_EACH", of_each)
    filled = [sorted(tag.ljust(16, b"\x00") for tag in run) for run in runs]
    path = tmp_path / "removals"
    path.write_bytes(b"".join(tag for run in filled for tag in run) + b"not of any run")
    merged = [tag for part in batches_module._merged(path, 16, [len(run) for run in filled]) for tag in part]
    assert merged == sorted(tag for run in filled for tag in run)


def test_a_work_file_that_has_become_shorter_is_said(tmp_path):
    path = tmp_path / "removals"
    path.write_bytes(bytes(40))
    with pytest.raises(StorageError, match="shorter"):
        list(batches_module._merged(path, 16, [3]))


class _Crash(BaseException):
    """Not an Exception, as `kill -9` is none: nothing may catch it."""


@pytest.mark.parametrize("at", range(27))
def test_sealing_resumes_wherever_it_was_killed(make_holder, monkeypatch, at):
    """Crash before the nth durable step of sealing; a new process takes it up and the list is whole."""
    monkeypatch.setattr(epochs_module.limits, "SEAL_CHUNK", 16)
    monkeypatch.setattr(epochs_module.limits, "SEAL_TASK", 8)
    holder = make_holder()
    holder.load(*PHONES)
    steps = itertools.count()

    def crashing(real):
        def step(*arguments):
            if next(steps) == at:
                raise _Crash
            return real(*arguments)

        return step

    with monkeypatch.context() as patch:
        for name in ("replace", "fsync"):
            patch.setattr(os, name, crashing(getattr(os, name)))
        with pytest.raises(_Crash):
            holder.epochs.seal_changes("fraud")
    again = make_holder()
    again.epochs.seal_changes("fraud")
    (batch,) = again.epochs.batches("fraud", 1)
    assert batch.sealed == len(PHONES)
    assert all(found(again, row) for row in PHONES[::20])
    assert not list(again.folder.glob("lists/fraud/1/work-*"))


@pytest.mark.parametrize("spoil", ["shorter", "missing", "of another version"])
def test_work_that_is_not_what_it_says_is_done_anew(make_holder, monkeypatch, spoil):
    monkeypatch.setattr(epochs_module.limits, "SEAL_CHUNK", 16)
    holder = make_holder()
    holder.load(*PHONES)

    def crash(*_):
        raise _Crash

    with monkeypatch.context() as patch:
        patch.setattr(batches_module.BatchBuilder, "finish", crash)
        with pytest.raises(_Crash):
            holder.epochs.seal_changes("fraud")
    (folder,) = holder.folder.glob("lists/fraud/1/work-*")
    if spoil == "shorter":
        os.truncate(folder / "additions", 100)
    elif spoil == "missing":
        (folder / "additions").unlink()
    else:
        progress = json.loads((folder / "progress.json").read_text())
        (folder / "progress.json").write_text(json.dumps(progress | {"runs": 4, "sealed": 60}))
    again = make_holder()
    again.epochs.seal_changes("fraud")
    assert again.epochs.batches("fraud", 1)[0].sealed == len(PHONES)
    assert all(found(again, row) for row in PHONES[::20])


def test_an_entry_that_changes_while_it_is_sealed_goes_into_the_next_batch(make_holder, monkeypatch):
    monkeypatch.setattr(epochs_module.limits, "SEAL_CHUNK", 16)
    holder = make_holder()
    holder.load(*PHONES)
    real, changed = holder.store.changes, []

    def meanwhile(*arguments):
        page = real(*arguments)
        if not changed:
            changed.append(
                holder.store.set_status("fraud", [canonical(PHONES[59])], [], Status.SUSPENDED, Reason.OTHER)
            )
        return page

    monkeypatch.setattr(holder.store, "changes", meanwhile)
    holder.epochs.seal_changes("fraud")
    holder.epochs.seal_changes("fraud")
    # It was never in the table, and is removed all the same: harmless, and seen only after such a crash.
    assert found(holder, PHONES[59], strict=False) is None
    assert found(holder, PHONES[58], strict=False)


def test_a_list_that_does_not_exist(holder):
    with pytest.raises(NotFound):
        holder.epochs.rotate("nothing", close_now=False)


ACCOUNT = {"kind": "account", "value": "6222021234567", "institution": "102100099996"}


def in_force(holder, folder, institutions):
    """A directory as if the member list named it."""
    directory = Directory(institutions)
    path = folder / f"{directory.hash.hex()}.tsv"
    path.write_bytes(directory.encode())
    file = DirectoryFile(path, directory.hash)
    holder.store._directory = lambda: file
    return file


def said_form(holder, epoch):
    return holder.epochs.form(next(each for each in holder.epochs.all("fraud") if each.number == epoch))


def test_a_new_directory_comes_into_force_with_a_new_epoch(holder, tmp_path):
    holder.load(ACCOUNT, PHONES[0])
    holder.epochs.seal_changes("fraud")
    assert said_form(holder, 1) == form()
    file = in_force(holder, tmp_path, {"ICBKCNBJ": ["102*"]})
    holder.store.renormalise("fraud")
    holder.epochs.seal_changes("fraud")
    assert said_form(holder, 2) == file.form == holder.store.form("fraud")
    assert holder.epochs.all("fraud")[0].state == "closed"  # it could not list what is written so
    mapped = normalise("account", ACCOUNT["value"], "", "ICBKCNBJ").canonical
    output = voprf.evaluate_inputs(holder.epochs.key("fraud", 2).secret, [mapped])[0]
    assert sealed.tag_of(output) in table(holder, 2)
    assert found(holder, PHONES[0], 2) is not None
    # What is imported under the new one is in the new epoch, and the entry is the same under another code.
    outcome = holder.load({**ACCOUNT, "institution": "ICBKCNBJSHA"}, directory=file)
    assert (outcome.added, outcome.unchanged) == (0, 1)


def test_entries_of_an_institution_that_a_directory_lacks_stay(holder, tmp_path):
    holder.load(ACCOUNT)
    in_force(holder, tmp_path, {"BKCHCNBJ": ["104*"]})
    assert holder.store.renormalise("fraud") == (0, 0)
    assert holder.store.count_live("fraud") == 1
    assert holder.store.institutions("fraud") == {"102100099996": 1}
    in_force(holder, tmp_path, {"BKCHCNBJ": ["104*"], "ICBKCNBJ": ["102*"]})
    assert holder.store.renormalise("fraud") == (1, 0)
    assert holder.store.institutions("fraud") == {"ICBKCNBJ": 1}


def test_two_codes_of_one_account_become_one_entry(holder, tmp_path):
    holder.load(ACCOUNT, {**ACCOUNT, "institution": "ICBKCNBJ"})
    in_force(holder, tmp_path, {"ICBKCNBJ": ["102*"]})
    assert holder.store.renormalise("fraud") == (0, 1)
    assert holder.store.institutions("fraud") == {"ICBKCNBJ": 1}


def test_an_epoch_that_was_opened_for_another_form_is_not_sealed(holder, tmp_path):
    holder.load(ACCOUNT)
    assert holder.epochs.open("fraud") == 1  # and then the node was killed, and a directory came
    file = in_force(holder, tmp_path, {"ICBKCNBJ": ["102*"]})
    holder.store.renormalise("fraud")
    holder.epochs.seal_changes("fraud")
    assert [(each.number, each.state) for each in holder.epochs.all("fraud")] == [(1, "closed"), (2, "open")]
    assert said_form(holder, 2) == file.form
