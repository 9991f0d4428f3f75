"""Every check rejects the faults it exists for, and is quiet without them."""

from functools import cache

import pytest
import torch

from fixtures.questions import Problem
from reports import promises, teeth
from reports.files import write_text
from suites.meta.asking import Asker
from suites.meta.conftest import ROOT
from suites.meta.faults import FAULTS
from suites.meta.faults import fault as register
from suites.meta.faults.equivalent import EQUIVALENT, attended, shown
from suites.meta.teeth import Journal, common


@pytest.mark.teeth
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_is_rejected_by_its_promise(fault, asked):
    ends = asked["devices"]

    assert teeth.misses([asked]) == []
    assert [end["alarms"] for end in ends.values()] == [[]] * len(ends)
    assert {end["rejected"][0] for end in ends.values() if end["outcome"] == "detected"} == {fault.promise}


@pytest.fixture
def asked(fault, asker, journal, pytestconfig):
    """What a fault came to; to whom asks with `-m teeth`, what cannot act on a stack is no failure of it."""
    row = asker.ask(fault)
    journal.add(row)
    lacking = [end["why"] for end in row["devices"].values() if end["outcome"] == "not applicable here"]
    if pytestconfig.option.markexpr == "teeth" and len(lacking) == len(row["devices"]):
        pytest.skip(lacking[0])
    return row


@pytest.fixture(scope="session")
def asker(tmp_path_factory):
    return Asker(tmp_path_factory.mktemp("teeth"))


@pytest.fixture(scope="session")
def journal(tmp_path_factory, pytestconfig):
    """Where a run with `-m teeth` leaves what it saw: where reports look for it."""
    folder = teeth.FOLDERS[0] if pytestconfig.option.markexpr == "teeth" else tmp_path_factory.mktemp("journal")
    journal = Journal(folder / "teeth.jsonl", common())
    yield journal
    write_text(folder / "teeth.md", teeth.markdown(journal.rows()))


@pytest.mark.parametrize("mutant", EQUIVALENT.values(), ids=EQUIVALENT)
def test_equivalent_mutant_changes_nothing(mutant):
    acted, judge = shown(mutant)

    judge.conclude()
    assert acted


# Under a fault's own `unseen` condition there is nothing to see, and beside it there is.
UNSEEN = {
    "grouped_heads_are_tiled": ([Problem("mha", 4, 4, 100), Problem("mqa", 4, 1, 100)], Problem("gqa", 4, 2, 100)),
    "key_index_wraps": ([Problem("128", 4, 4, 128)], Problem("129", 4, 4, 129)),
    "last_tile_is_dropped": ([Problem("256", 4, 4, 256)], Problem("257", 4, 4, 257)),
    "heads_beyond_four_of_a_group_are_the_fourth": ([Problem("4", 8, 2, 33)], Problem("5", 10, 2, 33)),
    "head_index_wraps": ([Problem("16", 16, 4, 17)], Problem("20", 20, 4, 17)),
    "row_index_wraps": ([Problem("8", 2, 2, 17, batch=8)], Problem("9", 2, 2, 17, batch=9)),
    "last_half_fragment_of_features_is_dropped": (
        [Problem("80", 2, 2, 33, head_dim=80)],
        Problem("72", 2, 2, 33, head_dim=72),
    ),
    "values_are_those_of_the_next_head": ([Problem("mqa", 4, 1, 257)], Problem("mha", 4, 4, 257)),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_fault_cannot_be_seen_where_it_says_so(name):
    unseen, seen = UNSEEN[name]
    plain = [attended(problem)(torch.float32) for problem in (*unseen, seen)]

    with FAULTS[name].inject():
        *same, other = [attended(problem)(torch.float32) for problem in (*unseen, seen)]

    assert all(map(torch.equal, same, plain))
    assert not torch.equal(other, plain[-1])


@cache
def known():
    return {p.id for p in promises.find(ROOT / "suites")}


def test_every_promise_has_at_least_two_faults():
    count = {promise: sum(f.promise == promise for f in FAULTS.values()) for promise in known()}

    assert {promise: n for promise, n in count.items() if n < 2} == {}


@pytest.mark.parametrize("checks", [("positions/test_alibi.py",), ("positions/test_alibi.py", "cpu", "float32")])
def test_a_fault_asks_one_path_by_words(checks):
    with pytest.raises(TypeError, match="positional argument"):
        register("POS-2", *checks, source="our own", unseen="never")


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_says_what_it_is(fault):
    assert fault.statement
    assert fault.source
    assert fault.unseen
    assert fault.promise in known()
