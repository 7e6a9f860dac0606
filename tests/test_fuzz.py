"""Whatever stands in bytes from outside, their readers return or raise one of our errors, and soon.

The default run tries a few changes for each reader, the same each time; `./scripts/test --campaign fuzz`
tries many, and `--seed N` others.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.kit.fuzz import TARGETS
from tests.kit.spoil import KINDS, Step, spoil

SECONDS = 20.0
"""Far above what the slowest takes, far below a hang."""

STEPS = st.lists(
    st.builds(
        Step,
        st.integers(0, KINDS - 1),
        st.floats(0, 1, exclude_max=True),
        st.one_of(st.integers(0, 16), st.integers(0, 5000)),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", TARGETS)
def test_an_example_is_accepted(name: str) -> None:
    for data in TARGETS[name].examples:
        assert TARGETS[name].survives(data)


@pytest.mark.campaign("fuzz", small=60, large=100_000)
@pytest.mark.parametrize("name", TARGETS)
def test_only_our_errors_come_out(name: str, campaign_size: int, campaign_seed: int) -> None:
    target = TARGETS[name]
    accepted = 0

    @seed(campaign_seed)
    @settings(
        max_examples=campaign_size, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(target.examples), STEPS)
    def attempt(example: bytes, steps: list[Step]) -> None:
        nonlocal accepted
        started = time.monotonic()
        accepted += target.survives(spoil(example, steps))
        assert time.monotonic() - started < SECONDS, "a hang"

    attempt()
    assert not target.errors or accepted < campaign_size, "nothing was ever refused: the changes are too weak"
