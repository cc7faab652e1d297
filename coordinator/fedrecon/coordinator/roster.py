"""All tasks of a deployment: one runner for each, started when the task is registered."""

from __future__ import annotations

import asyncio

from fedrecon.coordinator.entries import REGISTRY_STREAM, REGISTRY_TASK, registry_entries
from fedrecon.coordinator.runner import Runner
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.ops.journal import JournalUnavailable
from fedrecon.ops.logs import logger_of

_TAIL_MILLISECONDS = 30_000
_AFTER_OUTAGE_MILLISECONDS = 500

_log = logger_of(__name__)


class Roster:
    """Runs every registered task.

    Args:
        around: What its runners work with.

    Attributes:
        runners: Runners at work, by task; those that are ready hold their task's lease.
    """

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.runners: dict[str, Runner] = {}
        self._has_read = False

    async def run(self) -> None:
        """Follows the registry, and runs what it names, until it is cancelled."""
        version, wait = 0, 0
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    recorded = await self.around.journal.tail(REGISTRY_TASK, REGISTRY_STREAM, version, wait)
                except JournalUnavailable:
                    _log.warning("journal away")
                    now = self.around.clock.now_milliseconds()
                    await self.around.clock.sleep_until(now + _AFTER_OUTAGE_MILLISECONDS)
                    continue
                wait = 0 if recorded else _TAIL_MILLISECONDS
                self._has_read = self._has_read or not recorded
                for each in recorded:
                    version = each.version
                    name = registry_entries.decode(each.event).event.name
                    if name not in self.runners:
                        self.runners[name] = Runner(name, self.around)
                        group.create_task(self._run(self.runners[name]), name=f"task {name}")

    def of_population(self, population: str) -> list[Runner]:
        """Returns the runners of a population's tasks that can answer devices, by name."""
        return [
            runner
            for _, runner in sorted(self.runners.items())
            if runner.can_answer and runner.spec.population == population
        ]

    def ready_runner(self, task: str) -> Runner | None:
        """Returns the runner of a task, if it is at work here."""
        runner = self.runners.get(task)
        return runner if runner is not None and runner.is_ready.is_set() else None

    @property
    def is_settled(self) -> bool:
        """Whether the registry and all its tasks were read: only then is a missing task really missing."""
        return self._has_read and all(runner.can_answer for runner in self.runners.values())

    async def _run(self, runner: Runner) -> None:
        try:
            await runner.run()
        finally:
            del self.runners[runner.name]
