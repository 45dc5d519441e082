"""The batches known on this side: the requests of each, and which of them are still open.

One file per batch, written before its job is created and again once the job's id is known. So after a kill no
request is put into a second job: its batch is found here, and a job whose id was not saved is found on the
server by the fingerprint in its metadata.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nlicot.data.atomic_write import write_json
from nlicot.errors import DataError, DiskFull


@dataclass(slots=True, kw_only=True)
class Batch:
    """The requests of one job.

    `attempt` counts earlier batches of exactly these requests, such as one that expired; `intended_at` is the
    time from which the job may exist; `open_keys` are the requests whose answers were not delivered yet.
    """

    fingerprint: str
    attempt: int
    num_requests: int
    open_keys: set[str]
    intended_at: float = 0.0
    job_id: str | None = None

    @property
    def name(self) -> str:
        """The unique name of its file."""
        return f"{self.fingerprint[:32]}-{self.attempt}"

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata by which its job is found."""
        return {"nlicot_fingerprint": self.fingerprint, "nlicot_attempt": str(self.attempt)}


class Ledger:
    """The batches of one folder.

    Raises:
        DataError: a file in it is not a record of a batch.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._holding: dict[str, Batch] = {}
        self._num_attempts: Counter[str] = Counter()
        self._unwritten: dict[str, Batch] = {}
        for path in sorted(folder.glob("*.json")):
            self._hold(_read(path))

    def path(self, batch: Batch) -> Path:
        """Return the path of a batch's file."""
        return self._folder / f"{batch.name}.json"

    def holding(self, key: str) -> Batch | None:
        """Return the batch in which a request waits for its answer."""
        return self._holding.get(key)

    def draft(self, keys: Iterable[str]) -> Batch:
        """Make a batch of these requests; it is recorded only once it is saved."""
        keys = sorted(keys)
        fingerprint = hashlib.sha256("\n".join(keys).encode()).hexdigest()
        return Batch(
            fingerprint=fingerprint,
            attempt=self._num_attempts[fingerprint],
            num_requests=len(keys),
            open_keys=set(keys),
        )

    def save(self, batch: Batch) -> None:
        """Write a batch atomically.

        Raises:
            DiskFull: it cannot be written.
        """
        self._hold(batch)
        self._write(batch)

    def forget(self, batch: Batch) -> None:
        """Delete a batch whose job was never created."""
        for key in batch.open_keys:
            self._holding.pop(key, None)
        self._num_attempts[batch.fingerprint] -= 1
        self._unwritten.pop(batch.name, None)
        self.path(batch).unlink(missing_ok=True)

    def close_key(self, key: str) -> None:
        """Note that a request's answer was delivered; `write_closed` saves it."""
        batch = self._holding.pop(key, None)
        if batch is not None:
            batch.open_keys.discard(key)
            self._unwritten[batch.name] = batch

    def write_closed(self) -> None:
        """Save which requests have been closed; raises as `save`."""
        while self._unwritten:
            self._write(self._unwritten.popitem()[1])

    def _hold(self, batch: Batch) -> None:
        self._holding.update(dict.fromkeys(batch.open_keys, batch))
        attempts = max(self._num_attempts[batch.fingerprint], batch.attempt + 1)
        self._num_attempts[batch.fingerprint] = attempts

    def _write(self, batch: Batch) -> None:
        fields = {name: getattr(batch, name) for name in Batch.__slots__}
        try:
            write_json(self.path(batch), fields | {"open_keys": sorted(batch.open_keys)})
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFull(
                f"{self.path(batch)}: cannot be written ({error.strerror}); all answers so far are saved, "
                "free some disk space and run the same command again"
            ) from None


def _read(path: Path) -> Batch:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Batch(**(fields | {"open_keys": set(fields["open_keys"])}))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"not a record of a batch ({error}); move it away to send its requests again", path=path
        ) from None
