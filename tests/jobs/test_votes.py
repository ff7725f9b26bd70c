"""The votes file: append-only, for many at once, and not a vote lost by a kill."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.jobs.test_protocol import protocol
from vqdq.errors import UserError
from vqdq.jobs.votes import VoteStore

ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from vqdq.jobs.votes import VoteStore
store, name = VoteStore.open(sys.argv[1]), sys.argv[2]
test = store.tests()[0][0]
for number in range(100000):
    vote = store.add(test, name, f"ballot {number}", "overall", "a", shown={"pair": number})
    print(vote, flush=True)
"""


@pytest.fixture
def store(tmp_path):
    made = VoteStore.open(tmp_path / "votes.sqlite")
    yield made
    made.close()


@pytest.fixture
def test(store):
    return store.freeze(protocol())


def add(store, test, *, person="Ana", ballot="b1", question="overall", choice="a", **values):
    return store.add(test, person, ballot, question, choice, shown={"pair": "p"}, **values)


def test_votes_come_back_as_given(store, test):
    first = store.add(
        test, "  Ana ", "b1", "beauty", "both bad", shown={"a": "é"}, context={"zoom": 2.5}
    )
    second = add(store, test, person="Ben", choice="skip")
    one, two = store.votes(test)
    assert (one.id, two.id) == (first, second)
    assert (one.assessor, one.ballot, one.question, one.choice) == (
        "Ana",
        "b1",
        "beauty",
        "both bad",
    )
    assert (one.shown, one.context) == ({"a": "é"}, {"zoom": 2.5})
    assert one.time <= two.time
    assert store.votes(test, "ana") == (one,)
    assert store.assessors(test) == ("Ana", "Ben")


def test_one_vote_a_person_and_question(store, test):
    add(store, test)
    with pytest.raises(UserError, match="answered before"):
        add(store, test, person="ana", choice="b")
    add(store, test, question="beauty")
    add(store, test, ballot="b2")
    add(store, test, person="Ben")
    assert len(store.votes(test)) == 4


def test_undo_takes_back_the_latest_and_keeps_the_log(store, test):
    add(store, test, choice="a")
    add(store, test, person="Ben")
    taken = store.withdraw_last(test, "Ana")
    assert (taken.choice, taken.withdrawn) == ("a", True)
    add(store, test, choice="b")  # the same question again
    assert [v.choice for v in store.votes(test, "Ana")] == ["b"]
    assert [(v.choice, v.withdrawn) for v in store.log(test, "Ana")] == [("a", True), ("b", False)]
    store.withdraw_last(test, "Ana")
    with pytest.raises(UserError, match="no vote to take back"):
        store.withdraw_last(test, "Ana")
    assert len(store.votes(test, "Ben")) == 1


def test_after_the_end_nothing_changes(store, test):
    add(store, test)
    assert store.revealed(test) is None
    store.reveal(test, early=True)
    store.reveal(test, early=False)
    assert store.revealed(test).early  # the first word counts
    for late in (lambda: add(store, test, ballot="b9"), lambda: store.withdraw_last(test, "Ana")):
        with pytest.raises(UserError, match="no longer blind"):
            late()
    assert len(store.log(test)) == 1


def test_rows_cannot_be_changed_or_removed(store, test):
    add(store, test)
    store.withdraw_last(test, "Ana")
    store.reveal(test, early=False)
    db = sqlite3.connect(store.path, isolation_level=None)
    for table in ("tests", "votes", "withdrawals", "reveals"):
        column = db.execute(f"SELECT * FROM {table}").description[0][0]
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET {column} = {column}"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(statement)
    db.close()


def test_a_test_is_frozen_once(store, test):
    assert store.freeze(protocol()) == test
    other = store.freeze(protocol(margin=0.2))
    assert {digest for digest, _ in store.tests()} == {test, other}
    assert store.protocol(test) == protocol()
    with pytest.raises(UserError, match="no such test"):
        store.protocol("0" * 64)
    with pytest.raises(UserError, match="no such test"):
        add(store, "0" * 64)


def test_a_forged_protocol_is_noticed(store, test):
    db = sqlite3.connect(store.path, isolation_level=None)
    db.execute("DROP TRIGGER tests_update")
    forged = json.dumps(protocol().to_json() | {"margin": 0.3})
    db.execute("UPDATE tests SET protocol = ?", (forged,))
    db.close()
    with pytest.raises(UserError, match="changed after it was frozen"):
        store.protocol(test)


def test_no_vote_is_lost_when_the_writer_is_killed(store, test):
    """Two processes vote until they are killed with SIGKILL; what was confirmed is there."""
    confirmed = {}
    writers = {
        name: subprocess.Popen(
            [sys.executable, "-c", WRITER, str(store.path), name],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for name in ("Ana", "Ben")
    }  # fmt: skip
    for name, writer in writers.items():
        confirmed[name] = [int(writer.stdout.readline()) for _ in range(40)]
    for name, writer in writers.items():
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        rest = writer.stdout.read().split("\n")
        confirmed[name] += [int(line) for line in rest[:-1]]  # the last may be torn
        writer.stdout.close()
    store.close()
    again = VoteStore.open(store.path)
    for name, ids in confirmed.items():
        kept = again.votes(test, name)
        assert [v.id for v in kept][: len(ids)] == ids
        assert len(kept) - len(ids) in (0, 1)  # one may be on the disk and not yet confirmed
        assert [v.shown["pair"] for v in kept] == list(range(len(kept)))
    check = again.rows("PRAGMA integrity_check")
    assert check[0][0] == "ok"
    add(again, test, person="Ana", ballot="after")
    again.close()


def test_many_threads_and_one_question(store, test):
    """Eight clicks at once on one question are one vote."""
    refused = []

    def click(number):
        try:
            add(store, test, choice="a", context={"click": number})
        except UserError:
            refused.append(number)

    threads = [threading.Thread(target=click, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.log(test)) == 1
    assert len(refused) == 7


def test_a_damaged_file_is_left_alone(tmp_path):
    path = tmp_path / "votes.sqlite"
    path.write_bytes(b"this is no database at all" * 100)
    before = path.read_bytes()
    with pytest.raises(UserError, match="damaged"):
        VoteStore.open(path)
    assert path.read_bytes() == before


def test_a_newer_file_is_left_alone(store):
    store.freeze(protocol())
    store._db.execute("PRAGMA user_version = 7")
    with pytest.raises(UserError, match="version 7"):
        VoteStore.open(store.path)
    assert len(store.tests()) == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="cannot be opened"):
        VoteStore.open(tmp_path / "absent" / "votes.sqlite")


def test_a_full_disk_takes_no_vote(store, test):
    add(store, test)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(UserError, match="disk is full"):
        store.add(test, "Ana", "b2", "overall", "a", shown={"pad": "x" * 100_000})
    assert len(store.votes(test)) == 1
    store._db.execute("PRAGMA max_page_count = 100000")
    add(store, test, ballot="b2")
    assert len(store.votes(test)) == 2
