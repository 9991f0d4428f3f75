"""What is claimed of speed is what is measured: seconds, and how many times as fast one way is as another."""

import pytest

from fixtures.turns import in_turn, mean


@pytest.mark.capability("speed")
def test_speed_is_what_is_claimed(claim, case, device, sides, draw, judge):
    """CLAIM-5: a request MUST take the time, or be as many times as fast as another, as a claim says."""
    ids = [served.ids(draw, served.side.context + served.side.new_tokens) for served in sides]

    turns = in_turn(lambda: sides[0].takes(ids[0]), lambda: sides[-1].takes(ids[-1]))

    judge.evidence["seconds"] = turns._asdict()
    judge.claim(claim, {"time": mean([*turns.one, *turns.other]), "speed ratio": turns.ratio()}[claim.measure])
