"""When rounds happen on machines without cron; the only importer of `schedule`.

Guarantees: one round at a time; a round that takes longer than its interval delays the next one.

Leaves to others: the round itself, and stopping (an exception ends the loop).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import schedule

from schemas.errors import SettingsError


def run_forever(
    work: Callable[[], None],
    *,
    at: str,
    every_minutes: int | None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Call `work` daily at `at` (`HH:MM`, local time) or every so many minutes; returns never.

    Raises:
        SettingsError: `at` is not a time of day.
    """
    scheduler = schedule.Scheduler()
    try:
        if every_minutes is not None:
            scheduler.every(every_minutes).minutes.do(work)
        else:
            scheduler.every().day.at(at).do(work)
    except schedule.ScheduleValueError as error:
        raise SettingsError(f"{at} is not a time of day", hint="Write it as HH:MM, like 02:15.") from error
    while True:
        scheduler.run_pending()
        sleep(min(max(scheduler.idle_seconds or 1, 0.1), 60))
