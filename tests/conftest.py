"""Named campaigns: the same tests, larger.

    @pytest.mark.campaign("faults", small=5, large=300)
    def test_kill(campaign_size: int, campaign_seed: int) -> None: ...

runs with 5 in the default run, with 300 under `--campaign faults`, with N under `--campaign faults --size N`.
With `only=True` a test is left out of the default run. A failure prints size and seed; `--seed` repeats it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

SEED = 20261124

settings.register_profile("any machine", deadline=None)  # a time limit for one example says how busy it is
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("campaigns")
    group.addoption("--campaign", metavar="NAME", help="run the tests of this campaign only, in full size")
    group.addoption("--size", type=int, metavar="N", help="size of each test of the campaign")
    group.addoption("--seed", type=int, metavar="N", default=SEED, help=f"seed of its choices ({SEED})")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--campaign")
    left: list[pytest.Item] = []
    names = set()
    for item in items:
        mark = item.get_closest_marker("campaign")
        names |= set(mark.args) if mark else set()
        if (mark is None or wanted not in mark.args) if wanted else (mark and mark.kwargs.get("only")):
            left.append(item)
        elif wanted:
            item.add_marker(pytest.mark.timeout(0))  # a campaign takes as long as it takes
    if wanted and wanted not in names:
        raise pytest.UsageError(f"no campaign {wanted!r} here; there are: {', '.join(sorted(names))}")
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


@pytest.fixture
def campaign_seed(request: pytest.FixtureRequest) -> int:
    """Where a test takes its choices from."""
    return int(request.config.getoption("--seed"))


@pytest.fixture
def campaign_size(request: pytest.FixtureRequest) -> int:
    """How much a test does: `small` of its marker, in the campaign `large` or what `--size` says."""
    mark = request.node.get_closest_marker("campaign")
    assert mark is not None, "campaign_size belongs to the marker `campaign`"
    if not request.config.getoption("--campaign"):
        return int(mark.kwargs["small"])
    return int(request.config.getoption("--size") or mark.kwargs["large"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    values: dict[str, Any] = getattr(item, "funcargs", {})
    told = {name: values[name] for name in ("campaign_size", "campaign_seed") if name in values}
    if report.failed and told:
        size = f" --size {told['campaign_size']}" if "campaign_size" in told else ""
        seed = f" --seed {told['campaign_seed']}" if "campaign_seed" in told else ""
        report.sections.append(("to repeat it", f"--campaign …{size}{seed}"))
    return report
