"""Start a run when the files of a source are there: `elt_dag(..., schedule=when_delivered("stores"))`.

Airflow's triggerer watches the source's folder, on disk or in an object store; a set of files that belong together is
one event of an asset, and so one run. Optional: no other DAG needs this file.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetWatcher
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from include.settings import in_warehouse

if TYPE_CHECKING:
    from include.dlt_pipelines.deliveries import Seen, Watch

_SECONDS, _STORE_SECONDS = 1.0, 5.0


def when_delivered(source: str, deadline: timedelta = timedelta(hours=1)) -> Callable[[str], list[Asset]]:
    """Return the schedule, for `elt_dag`, of a DAG that runs as soon as the files of a source have been delivered.

    Args:
        source: name of a source of files.
        deadline: how long after the first file of a set an alert tells which ones are missing.
    """
    return functools.partial(_assets, source, deadline)


def _assets(source: str, deadline: timedelta, warehouse: str) -> list[Asset]:
    # One for each warehouse: several may load the same files, and one's load says nothing about another's.
    trigger = FilesDelivered(source, deadline.total_seconds(), warehouse)
    return [Asset(f"{warehouse}.{source}.delivered", watchers=[AssetWatcher(name=f"{source}_files", trigger=trigger)])]


class FilesDelivered(BaseEventTrigger):
    """An event for each set of files that has been delivered."""

    def __init__(self, source: str, deadline_seconds: float, warehouse: str) -> None:
        """Watch nothing yet; the arguments are as for `when_delivered`, and the warehouse whose loads count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.source, self.deadline_seconds, self.warehouse = source, deadline_seconds, warehouse

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer makes it again from."""
        names = ("source", "deadline_seconds", "warehouse")
        return "deliveries.FilesDelivered", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at the folder again and again."""
        from include.dlt_pipelines.deliveries import Watch
        from include.dlt_pipelines.load import find_source

        watch = Watch(await asyncio.to_thread(find_source, self.source), self.deadline_seconds)  # type: ignore[arg-type]
        while True:
            seen = await asyncio.to_thread(self._look, watch)
            if seen.is_late:
                await asyncio.to_thread(self._alert, seen.files, seen.missing)
            if seen.is_complete:
                self.log.info("Delivered: %s", ", ".join(seen.files))
                found = {"source": self.source, "files": list(seen.files[:20])}
                yield TriggerEvent(found)  # type: ignore[no-untyped-call]
            await asyncio.sleep(_STORE_SECONDS if watch.is_store else _SECONDS)

    def _look(self, watch: "Watch") -> "Seen":
        with in_warehouse(self.warehouse):
            return watch.look()

    def _alert(self, files: tuple[str, ...], missing: tuple[str, ...]) -> None:
        reason = (
            f"{self.source}: {', '.join(files[:5])} came more than {timedelta(seconds=self.deadline_seconds)} ago, and "
            f"nothing yet for {', '.join(missing)}. No run starts before it does, unless you start one."
        )
        self.log.warning("%s", reason)
        try:
            import alerts
        except ModuleNotFoundError:  # the file may be deleted
            return
        with in_warehouse(self.warehouse):
            alerts.send("warned", reason, runbook="Files are missing from a delivery")
