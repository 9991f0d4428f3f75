"""What two runs come to.

The certificate of an upgrade says one of

| verdict    | code | when                                                                                            |
|------------|------|-------------------------------------------------------------------------------------------------|
| safe       | 0    | every check of both runs passes, or is waived, in both, and is equal in every bit or within the |
|            |      | noise floor; every first choice that flipped is explained by noise; nothing drifts              |
| regression | 1    | a check fails that did not, or is no longer verified, or vanished (a backend that is gone is a  |
|            |      | finding); a first choice flipped that noise does not explain; tokens of the text are lost       |
| changed    | 3    | neither: something moved within its allowance, drifts, is waived or passes or is there and was  |
|            |      | not before; or fails, or is unverified, in both: nobody is to read "safe" of it                 |
| refused    | 4    | the two cannot be compared: one is no run, or of another schema; seed, data, model, or what was |
|            |      | asked for, differ; or no check is in both                                                       |

Paired are checks of the same node id whose promise says the same. Of one that passes in both,

- bitwise equal: the checksum of its output, what was said of each token, and every number is the same;
- within the noise floor: they are not, but no number takes more of its allowance than before, or than the half that
  healthy stacks take of a calibrated one over many seeds; an interval's estimate lies within the interval of before;
- moved within the allowance: all others, and answers that are exact, such as a kernel's name, where they are new.

A flip is unexplained where either run had its first choice ahead by more than plain arithmetic in that dtype turns
around. Tokens are lost where McNemar's exact test of those of the text that are ranked first says so, corrected for how
many checks were asked (Bonferroni).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reports import drift, tokens
from reports.pairing import CHANGED, KINDS, REGRESSION, SAFE, Entry
from reports.record import Record

REFUSED = "refused"
EXIT = {SAFE: 0, REGRESSION: 1, CHANGED: 3, REFUSED: 4}
ALPHA = 0.01


@dataclass(frozen=True)
class Side:
    """A run as it lies in its folder. facts: run.json, empty where it was not written, or only records are given."""

    name: str
    records: Sequence[Record]
    facts: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Certificate:
    """What became of everything, and what changed in the stack: (what, before, after). refused: why it says nothing."""

    before: Side
    after: Side
    stack: list[tuple[str, str, str]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    flips: list[tokens.Flips] = field(default_factory=list)
    drifts: list[drift.Drift] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: str = ""

    @property
    def count(self) -> Counter[str]:
        """How many checks of each kind there are."""
        return Counter(e.kind for e in self.entries)

    @property
    def verdict(self) -> str:
        if self.refused:
            return REFUSED
        found = {KINDS[kind] for kind in self.count}
        lost = [f for f in self.flips if f.unexplained or (f.lost > f.won and self.significant(f))]
        if REGRESSION in found or lost:
            return REGRESSION
        return CHANGED if CHANGED in found or self.drifts or any(map(self.significant, self.flips)) else SAFE

    @property
    def exit_code(self) -> int:
        return EXIT[self.verdict]

    @property
    def sentence(self) -> str:
        """The verdict with its counts, the worst first."""
        if self.refused:
            return f"refused: {self.refused}"
        counts = [f"{self.count[kind]:,} {kind}" for kind in KINDS if self.count[kind]]
        flips = sum(f.flips for f in self.flips)
        if flips:
            asked, odd = sum(f.tokens for f in self.flips), sum(f.unexplained for f in self.flips)
            counts.append(f"{flips:,} of {asked:,} first choices flipped, {odd:,} unexplained")
        counts += [f"{len(self.drifts)} quantities drift"] * bool(self.drifts)
        return f"{self.verdict}: {'; '.join(counts)}"

    def significant(self, found: tokens.Flips) -> bool:
        """Whether more tokens were lost, or won, than chance makes of as many checks as were asked."""
        return found.p * len(self.flips) < ALPHA
