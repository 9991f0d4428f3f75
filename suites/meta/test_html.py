"""The page: what it opens with, that everything in it is escaped and leads somewhere, and that it stays small."""

import dataclasses
import json
import re
import time
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from reports import figures, html, junit, render
from reports.record import Record, read
from suites.meta.conftest import ROOT

BAD = "<script>alert('&')</script>"
RUN = {
    "verdict": {"name": "non-conformant", "sentence": "non-conformant: 1 passed, 1 failed (all areas)", "exit_code": 1},
    "deployment": f"chat {BAD}",
    "model": f"{BAD}, sha256 0123",
    "not_here": {f"{BAD} does not run on cpu": 3},
    "notes": [f"no GPU is usable: {BAD}"],
    "terms": {"owed": ["A-1", "A-2", "B-9"], "scope": "all areas"},
    "command": f"pytest --model={BAD}",
    "suite": "0123abc-dirty",
    "seed": 7,
    "slacks": {
        "A-1": {"gain": {BAD: {"slack": 0.5, "healthy": 0.25, "samples": 1600, "measured": "2026-11-01", "where": BAD}}}
    },
}
ENVIRONMENT = {
    "python": "3.11",
    "driver": "580",
    "gpus": [{"name": BAD, "capability": "9.0"}],
    "versions": {"torch": "2"},
}


def record(number, outcome="passed", promise="A-1", headroom=0.5, **more):
    judged = {
        "quantity": f"worst {BAD}{'x' * 300 * (number == 1)}",
        "measured": 1.0,
        "allowed": 2.0,
        "headroom": headroom,
        "outcome": outcome,
    }
    about = {"promise": promise, "statement": "it MUST hold", "area": "attention", "outcome": outcome, "message": BAD}
    check = f"suites/a/test_a.py::test_a[{number}-{BAD}-cpu]"
    return Record(
        **{"check": check, "subject": BAD, "judgements": (judged,), "rerun": f"pytest '{check}'", **about, **more}
    )


WAIVER = {"reason": BAD, "owner": "me", "link": "javascript:alert(1)", "expires": "2999-01-01"}
CURVE = {"figure": "reference models", "line": BAD, "unit": "nats", "trained": 128, "points": [[64, 1.0], [256, 3.9]]}
AGREED = {"mean KL divergence": [0.02, 0.01, 0.03], "top-1 agreement": [0.9, 0.88, 0.92]}
MARGIN = {"quantity": "mean KL divergence", "measured": 0.02, "allowed": "≤ 0.05", "high": 0.05, "headroom": 0.6}
BYTES = {"quantity": "bytes of the cache", "measured": 4096, "allowed": 2048, "unit": "bytes", "headroom": None}
PAIRS = [("sdpa", "mha"), ("sdpa", "gqa"), (BAD, "mha")]
RECORDS = [
    record(1),
    record(2, "failed", headroom=float("inf"), crash=True),
    record(3, "waived", "A-2", 3.0, waiver=WAIVER),
    record(4, "inconclusive", "A-2", 1.1),
    record(5, "unverified", "A-2", None),
    record(6, evidence={"curve": CURVE}),
    record(7, evidence={"agreement": AGREED}, judgements=(MARGIN,), parameters={"quantizer": BAD}),
    record(8, promise="B-2", judgements=(BYTES,), area="memory"),
    *[
        record(f"{a}-{p}", promise="ATTN-1", parameters={"attention": a, "problem": p, "dtype": "float32"})
        for a, p in PAIRS
    ],
    record(9, "failed", "A-3", "nan"),
]


class Page(HTMLParser):
    """What a page holds: its tags, its text, its ids, and where its links lead."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.ids, self.links, self.attributes = [], "", [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name == "href"]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page():
    claim = SimpleNamespace(
        claim=f"4-bit fits {BAD}", claimed="9.5", measured="9.1", unit="GiB", word="CONFIRMED", detectable="9.6 GiB",
        evidence=(RECORDS[0].check, "suites/gone.py::test"),
    )  # fmt: skip
    return Page(html.page(RECORDS, RUN, ENVIRONMENT, [claim]))


def test_it_opens_with_the_verdict_the_stack_and_what_was_not_verified(page):
    told = page.text.split("What did not pass")[0]

    places = [told.index(word) for word in (RUN["verdict"]["sentence"], "sha256 0123", "driver 580", "no check of B-9")]
    assert places == sorted(places)
    assert "no GPU is usable" in told
    assert "does not run on cpu" in told


def test_it_says_what_was_allowed_and_why(page):
    told = page.text.split("1 slacks.")[1].split("Reproduce")[0]

    assert f"A-1, gain, {BAD}0.50.251,6002026-11-01{BAD}" in told


def test_nothing_that_a_run_says_is_markup(page):
    assert "script" not in page.tags
    assert page.text.count(BAD) > 30
    assert not [value for _, value in page.attributes if value and value.startswith("javascript:")]
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_it_needs_nothing_from_elsewhere(page):
    assert not {"script", "img", "iframe", "object", "embed"} & set(page.tags)
    assert not [value for name, value in page.attributes if name == "src"]
    outside = {link for link in page.links if not link.startswith("#")}
    assert outside == {"records.jsonl", "environment.json", "run.json", "data:,"}


def test_every_link_leads_to_one_place(page):
    inside = {link[1:] for link in page.links if link.startswith("#")}

    assert inside <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert {f"line-{n}" for n in range(1, len(RECORDS) + 1)} <= set(page.ids)


def test_every_record_stands_with_its_rerun_command(page):
    assert all(r.rerun in page.text for r in RECORDS)


@pytest.mark.parametrize(
    "title",
    [
        "Headroom of each promise",
        "ATTN-1: backend × dtype × shape",
        "mean KL divergence, by quantizer",
        "top-1 agreement, by quantizer",
        "By length of context: reference models",
        "Estimated against measured memory",
        "Claims",
    ],
)
def test_it_shows_what_was_measured_as_pictures(page, title):
    assert title in page.text


def test_no_outcome_is_told_by_colour_alone(page):
    for outcome in ("passed", "failed", "waived", "inconclusive", "unverified"):
        assert f"{html.SYMBOLS[outcome]} {outcome}" in page.text


def test_a_map_shows_the_worst_of_a_cell():
    about = {"attention": "sdpa", "problem": "mha", "dtype": "float32"}
    more = [record(i, o, "ATTN-1", h, parameters=about) for i, o, h in ((1, "passed", 0.9), (2, "failed", 0.4))]
    other = record(3, promise="ATTN-1", parameters=about | {"problem": "gqa"})

    (found,) = figures.maps(list(enumerate([*more, other], 1)))

    assert found.columns == ["gqa", "mha"]
    assert [(c.told, c.outcome, c.line) for c in found.rows[0][1]] == [("0.50", "passed", 3), ("failed", "failed", 2)]


def test_a_check_is_shown_by_what_decided_it():
    tight = {"quantity": "gain", "measured": 0.9, "allowed": 1.0, "headroom": 0.9, "outcome": "passed"}
    wrong = {"quantity": "bytes", "measured": 1, "allowed": 2, "headroom": None, "outcome": "failed"}

    assert html.deciding(record(1, judgements=(tight,)))["quantity"] == "gain"
    assert html.deciding(record(1, "failed", judgements=(tight, wrong)))["quantity"] == "bytes"
    assert html.deciding(record(1, "unverified", judgements=())) == {}
    assert figures.headroom([(1, record(1, "failed", judgements=(tight, wrong)))])[0].outcome == "failed"


def test_an_interval_lies_between_its_ends_and_before_its_margin():
    ((_, (row,)), _) = figures.agreement([(1, RECORDS[6])])

    assert row.track.low < row.track.at < row.track.high < row.track.limits[0]


def test_memory_that_is_not_what_was_estimated_lies_off_the_line():
    found = figures.memory([(1, RECORDS[7])])

    assert (found.dots[0].off, found.apart) == (True, 1)
    assert found.dots[0].y > found.dots[0].x


@pytest.mark.parametrize(
    ("count", "told"), [(1, "1 bytes"), (999, "999 bytes"), (2048, "2.048 kB"), (5.4e8, "540 MB"), (3.1e10, "31 GB")]
)
def test_bytes_are_told_by_powers_of_a_thousand(count, told):
    assert figures.size(count) == told


def test_five_thousand_records_are_a_page_of_a_few_megabytes_within_seconds():
    many = [
        record(n, parameters={"attention": f"a{n % 9}", "problem": f"p{n % 27}", "dtype": "float32"})
        for n in range(5000)
    ]
    began = time.monotonic()

    source = html.page(many, RUN, ENVIRONMENT)

    assert time.monotonic() - began < 10
    assert len(source.encode()) < 5e6


def test_published_records_are_a_page():
    for folder in (ROOT / "reports" / "published").iterdir():
        if folder.is_dir():
            run, environment = (json.loads((folder / f"{n}.json").read_text("utf-8")) for n in ("run", "environment"))
            records = read(folder / "records.jsonl")
            found = Page(html.page(records, run, environment))
            assert f"line-{len(records)}" in found.ids
            assert ElementTree.fromstring(junit.xml(records, run)).findall("testsuite/testcase")


def test_junit_is_red_where_the_run_is_not_conformant():
    root = ElementTree.fromstring(junit.xml(RECORDS, RUN))

    kinds = {case.get("name")[7]: [c.tag for c in case] for case in root.iter("testcase") if "[" in case.get("name")}
    assert (kinds["1"], kinds["2"], kinds["3"], kinds["4"], kinds["5"]) == (
        [], ["error"], ["skipped"], ["error"], ["error"],
    )  # fmt: skip
    verdict = root.find("testsuite[@name='spiritlevel']/testcase[@name='verdict']/error")
    assert verdict.get("message") == RUN["verdict"]["sentence"]
    assert root.find("testsuite[@name='attention']").get("errors") == "3"


def test_junit_is_green_where_a_partial_run_was_allowed():
    run = {"verdict": {"name": "partial", "sentence": "partial: …", "exit_code": 0}}

    root = ElementTree.fromstring(junit.xml([RECORDS[0], *RECORDS[2:5]], run))

    assert not root.findall(".//error") + root.findall(".//failure")
    assert len(root.findall(".//skipped")) == 3


def test_junit_can_be_read_whatever_a_message_holds():
    coloured = dataclasses.replace(RECORDS[1], message="\x1b[31mred\x1b[0m\x00 \ud800")

    assert "red" in ElementTree.fromstring(junit.xml([coloured], RUN)).find(".//error").text


def test_the_short_form_says_what_a_job_must_know():
    many = [record(n, "failed") for n in range(40)]

    told = render.short([*RECORDS, *many], RUN)

    assert "**non-conformant: 1 passed, 1 failed (all areas)**" in told
    assert "- no check of B-9" in told
    assert "| failed " in told
    assert "more, in report.html" in told
    assert "<script" not in told


def luminance(colour):
    """Relative luminance of #rgb or #rrggbb (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_its_paper(scheme):
    css = (html.TEMPLATES / "style.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]+);", css.split(":root")[scheme + 1].split("}")[0]))

    for paper in ("paper", "card"):
        for ink in ("ink", "faint", "mark", "passed", "failed", "waived", "inconclusive", "unverified"):
            low, high = sorted(luminance(colours[name]) for name in (paper, ink))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)
