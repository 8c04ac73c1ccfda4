"""A benchmark's evaluations on a Ray cluster: one task each."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cfa_cli.engine.cluster import differing, share_of_worker, use_cores, versions
from cfa_cli.engine.evaluate import Job
from cfa_cli.results.benchmark import Evaluation, Failure

MOST_RETRIES = 2  # of an evaluation whose machine or process is lost

Attempt = Callable[[Job], Evaluation | Failure]
Fail = Callable[[Job, str], Failure]


def outcomes_on_cluster(
    pending: Sequence[Job], attempt: Attempt, fail: Fail, notify: Callable[[str], None]
) -> Iterator[tuple[Job, Evaluation | Failure]]:
    """Do all jobs on the cluster that is connected; yield each one's outcome as it ends.

    attempt: does a job, on a worker. fail: makes the failure of a job that was not done. notify: is told when a
    worker's versions are others than the driver's.
    """
    import ray

    if not pending:
        return
    share = share_of_worker(pending[0].config.device)
    # A process for each: its memory goes with it, and its peak is its own.
    task = ray.remote(max_calls=1, max_retries=MOST_RETRIES, **share.options())(_work)
    folder, own = str(Path.cwd()), versions()
    waiting = {task.remote(job, attempt, fail, folder, own, share.cpus): job for job in pending}
    told: set[str] = set()
    try:
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(done)
            try:
                outcome, note = ray.get(done)
            except ray.exceptions.RayError as error:
                reason = " ".join(str(error).split())[:300].rstrip(".")
                outcome, note = fail(job, f"The cluster lost it: {reason}."), None
            if note is not None and note not in told:
                told.add(note)
                notify(note)
            yield job, outcome
    finally:
        for reference in waiting:  # on Ctrl-C
            ray.cancel(reference, force=True)


def _work(
    job: Job, attempt: Attempt, fail: Fail, folder: str, driver: Mapping[str, str], cpus: int
) -> tuple[Evaluation | Failure, str | None]:
    """Do one job on a worker; return its outcome and what to know of the worker."""
    host = socket.gethostname()
    with suppress(OSError):  # no such folder here: what is relative to it will not be found
        os.chdir(folder)
    images = [*job.category.train, *(image.path for image in job.category.test)]
    for path in (images[0], *([job.samples / "results.json"] if job.samples is not None else [])):
        if not path.exists():
            reason = (
                f"{path} is not there on the worker {host}: data and results must lie where every worker sees them."
            )
            return fail(job, reason), None
    use_cores(cpus)
    return attempt(job), differing(driver, versions(), host)
