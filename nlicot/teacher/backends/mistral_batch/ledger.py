"""What this side knows about batch jobs: which requests each one holds, and which of them are still open.

One file a batch, written before its job is created and again when the job's id is known. So after a kill no
request is put into a second job: its batch is found here, and a job whose id was not noted any more is found
on the server by the fingerprint in its metadata.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlicot.data.atomic_write import write_json
from nlicot.errors import DataError, DiskFull

MOST_REQUESTS = 10_000
"""In one batch; so many must be in flight for a batch to be full."""


@dataclass(slots=True, kw_only=True)
class Batch:
    """The requests of one job.

    `attempt` counts earlier batches of the very same requests, such as one that expired. `intended_at` is
    the time from which on the job may exist. `open_keys` are those whose answers were not handed on yet.
    """

    fingerprint: str
    attempt: int
    num_requests: int
    open_keys: set[str]
    intended_at: float = 0.0
    job_id: str | None = None

    @property
    def name(self) -> str:
        """Tells this batch from every other one; its file's name."""
        return f"{self.fingerprint[:32]}-{self.attempt}"

    @property
    def metadata(self) -> dict[str, str]:
        """What its job carries, to be found by."""
        return {"nlicot_fingerprint": self.fingerprint, "nlicot_attempt": str(self.attempt)}


class Ledger:
    """The batches of one folder.

    Raises:
        DataError: a file in it is no record of a batch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._holding: dict[str, Batch] = {}
        self._num_attempts: Counter[str] = Counter()
        self._unwritten: dict[str, Batch] = {}
        for path in sorted(folder.glob("*.json")):
            self._hold(_read(path))

    def path(self, batch: Batch) -> Path:
        """Where a batch is written down."""
        return self.folder / f"{batch.name}.json"

    def holding(self, key: str) -> Batch | None:
        """The batch in which a request waits for its answer; None where it is in none."""
        return self._holding.get(key)

    def draft(self, keys: Iterable[str]) -> Batch:
        """A batch of these requests, which is on record only once it is kept."""
        held = sorted(keys)
        fingerprint = hashlib.sha256("\n".join(held).encode()).hexdigest()
        return Batch(
            fingerprint=fingerprint,
            attempt=self._num_attempts[fingerprint],
            num_requests=len(held),
            open_keys=set(held),
        )

    def keep(self, batch: Batch) -> None:
        """Write a batch down, for the first time or anew, whole or not at all.

        Raises:
            DiskFull: it cannot be written.
        """
        self._hold(batch)
        self._write(batch)

    def forget(self, batch: Batch) -> None:
        """A batch whose job was never created."""
        for key in batch.open_keys:
            self._holding.pop(key, None)
        self._num_attempts[batch.fingerprint] -= 1
        self._unwritten.pop(batch.name, None)
        self.path(batch).unlink(missing_ok=True)

    def close_key(self, key: str) -> None:
        """A request's answer was handed on; on record with the next `write_closed`."""
        batch = self._holding.pop(key, None)
        if batch is not None:
            batch.open_keys.discard(key)
            self._unwritten[batch.name] = batch

    def write_closed(self) -> None:
        """Write down which requests have been closed; raises as `keep`."""
        while self._unwritten:
            _, batch = self._unwritten.popitem()
            self._write(batch)

    def _hold(self, batch: Batch) -> None:
        self._holding.update(dict.fromkeys(batch.open_keys, batch))
        attempts = max(self._num_attempts[batch.fingerprint], batch.attempt + 1)
        self._num_attempts[batch.fingerprint] = attempts

    def _write(self, batch: Batch) -> None:
        fields: dict[str, Any] = {name: getattr(batch, name) for name in Batch.__slots__}
        try:
            write_json(self.path(batch), fields | {"open_keys": sorted(batch.open_keys)})
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFull(
                f"{self.path(batch)}: cannot be written ({error.strerror}); what was answered so far is "
                "kept, free some space and start the same command again"
            ) from None


def _read(path: Path) -> Batch:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Batch(**(fields | {"open_keys": set(fields["open_keys"])}))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"no record of a batch ({error})",
            "one that the program wrote",
            path=path,
            remedy="move it away to have its requests asked anew",
        ) from None
