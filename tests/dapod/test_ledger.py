"""The ledger's digest and its way over the wire."""

import hashlib

import pytest

from dapod.ledger import (
    LedgerEntry,
    check_plan,
    entry_from_proto,
    entry_of,
    entry_to_proto,
    plan_digest,
)
from dapod.v1 import buffer_pb2


def plan() -> buffer_pb2.BatchPlan:
    groups = [
        buffer_pb2.PlannedGroup(group_id="0-12", payload_sha256="aa"),
        buffer_pb2.PlannedGroup(group_id="0-3", payload_sha256="bb"),
    ]
    digest = plan_digest(7, 2, [("0-12", "aa"), ("0-3", "bb")])
    return buffer_pb2.BatchPlan(step=7, prompts_per_update=2, groups=groups, digest=digest)


def test_the_digest_is_over_step_cut_ids_and_payloads_in_order() -> None:
    text = b"7 2\n0-12 aa\n0-3 bb\n"
    assert plan().digest == hashlib.sha1(text).hexdigest()
    check_plan(plan())


@pytest.mark.parametrize("field", ["step", "prompts_per_update"])
def test_a_plan_whose_digest_does_not_fit_is_refused(field: str) -> None:
    changed = plan()
    setattr(changed, field, 9)
    with pytest.raises(ValueError, match="digest"):
        check_plan(changed)


def test_the_order_of_groups_counts() -> None:
    changed = plan()
    changed.groups.reverse()
    with pytest.raises(ValueError, match="digest"):
        check_plan(changed)


def test_an_entry_survives_the_wire() -> None:
    entry = entry_of(plan())
    assert entry == LedgerEntry(step=7, group_ids=("0-12", "0-3"), digest=plan().digest)
    assert entry_from_proto(entry_to_proto(entry)) == entry


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (buffer_pb2.LedgerEntry(digest="d"), "entry.group_ids"),
        (buffer_pb2.LedgerEntry(group_ids=["0-1", "0-1"], digest="d"), "entry.group_ids"),
        (buffer_pb2.LedgerEntry(group_ids=["0-1"]), "entry.digest"),
    ],
)
def test_a_broken_entry_is_refused_with_its_field(message, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        entry_from_proto(message)
