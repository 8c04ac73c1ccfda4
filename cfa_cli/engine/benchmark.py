"""The verb `benchmark`: every category, backbone and seed; resumable, and in parallel."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2
import numpy as np
import torch

from cfa_cli import __version__
from cfa_cli.config import FitConfig
from cfa_cli.data.datasets import Dataset
from cfa_cli.data.ignore import IgnoreMasks, find_ignore_masks
from cfa_cli.engine.backbone import load_backbone
from cfa_cli.engine.cluster import check_ray, connected
from cfa_cli.engine.cluster_benchmark import outcomes_on_cluster
from cfa_cli.engine.evaluate import Job, data_digest, evaluate
from cfa_cli.errors import CfaError, UsageError, is_out_of_memory
from cfa_cli.model.device import choose_device
from cfa_cli.records import Progress
from cfa_cli.results.benchmark import Evaluation, Failure, Results, versions_text
from cfa_cli.results.benchmark_files import read_results, write_results
from cfa_cli.results.folder import locked


@dataclass(frozen=True)
class BenchmarkProgress:
    """Where a benchmark is."""

    done: int  # evaluations, those of earlier sessions included
    total: int
    current: str | None  # which evaluation `step` is of: "bottle (resnet18, seed 0)"
    step: Progress | None  # None when an evaluation has ended


Do = Callable[[Sequence[Job], Callable[[Job, Progress], None]], Generator[tuple[Job, Evaluation | Failure], None, None]]
BenchmarkCallback = Callable[[BenchmarkProgress], None]


def benchmark(
    dataset: Dataset,
    config: FitConfig | None = None,
    *,
    out: Path,
    backbones: Sequence[str] = (),
    seeds: Sequence[int] = (),
    jobs: int = 1,
    ray: str | None = None,
    save_models: bool = False,
    save_maps: bool = False,
    ignore: str | Path | None = None,
    force: bool = False,
    command: str = "",
    progress: BenchmarkCallback = lambda step: None,
    notify: Callable[[str], None] = lambda note: None,
) -> Results:
    """Fit and test each category of `dataset` with each of `backbones` and `seeds` (`config`'s own if empty).

    After each evaluation `out` has `results.json`, `.csv`, `.md` and `.html`; those that are there, of the same options
    and data, are not done again, unless `force` starts over. `save_models` keeps the models in `out/models`,
    `save_maps` the score maps in `out/maps`, as MVTec's evaluator reads them: NAME/CATEGORY/test/KIND/NAME.tiff,
    float32, at the image's size. `ignore` names what is not looked at and in no pixel metric, as for `fit`. `jobs` > 1
    takes as many processes at a time, on all GPUs in turn; `ray`, the address of a Ray cluster as `predict` takes it,
    as many as the cluster has room for, whose workers must see the data and `out`. `command` is kept with the results.
    `out` is held: another benchmark cannot write to it meanwhile.

    An evaluation that fails is reported in the results' failures and stops no other. Raises what is wrong with all
    before the first: UsageError, WeightsError, DeviceError, and InputError where `out` holds other results, is held by
    another process or cannot be written.
    """
    config = config or FitConfig()
    backbones, seeds = list(dict.fromkeys(backbones or [config.backbone])), list(dict.fromkeys(seeds or [config.seed]))
    if jobs < 1:
        raise UsageError(f"--jobs {jobs} is too small.", "Use for example --jobs 2.")
    masks = None if ignore is None else find_ignore_masks(ignore)
    check_ray(ray, config.device, jobs)
    weights = _check(config, backbones, notify, here=ray is None)
    results = Results(
        name_data(dataset, masks), replace(config, backbone=backbones[0], seed=seeds[0]), (), (), versions()
    )
    wanted = [
        Job(
            category,
            replace(config, backbone=backbone, seed=seed),
            out / "models" / f"{backbone}-seed{seed}" / f"{category.name}.safetensors" if save_models else None,
            out / "maps" / f"{backbone}-seed{seed}" if save_maps else None,
            samples=out,
            ignore=masks,
        )
        for backbone in backbones
        for seed in seeds
        for category in dataset.categories
    ]
    with locked(out), nullcontext() if ray is None else connected(ray):
        if not force:
            results = _still_valid(read_results(out, results), dataset, weights, masks)
        do = partial(_outcomes, jobs=jobs) if ray is None else partial(_outcomes_on_cluster, notify=notify)
        return _evaluate_all(wanted, results, out, do, command, progress, notify)


def name_data(dataset: Dataset, ignore: IgnoreMasks | None) -> str:
    """Name a data set, and what is ignored of it: results of the one are not those of the other."""
    return dataset.name if ignore is None else f"{dataset.name}, without what {ignore.path.name} ignores"


def _still_valid(results: Results, dataset: Dataset, weights: dict[str, str], ignore: IgnoreMasks | None) -> Results:
    """Keep the evaluations whose data and weights are still the same."""
    data = {category.name: data_digest(category, ignore) for category in dataset.categories}
    current = [
        each
        for each in results.evaluations
        if data.get(each.category, each.data_sha256) == each.data_sha256
        and weights.get(each.backbone, each.weights_sha256) == each.weights_sha256
    ]
    return replace(results, evaluations=tuple(current))


def _evaluate_all(
    wanted: Sequence[Job],
    results: Results,
    out: Path,
    do: Do,
    command: str,
    progress: BenchmarkCallback,
    notify: Callable[[str], None],
) -> Results:
    """`do` the jobs that `results` lacks, and write all after each of them."""
    finished = {each.key for each in results.evaluations}
    order = {job.key: place for place, job in enumerate(wanted)}
    pending = [job for job in wanted if job.key not in finished or not all(path.exists() for path in job.outputs())]
    write_results(out, results)
    done = len(wanted) - len(pending)
    progress(BenchmarkProgress(done, len(wanted), None, None))

    def report(job: Job, step: Progress) -> None:
        progress(BenchmarkProgress(done, len(wanted), job.label, step))

    with closing(do(pending, report)) as outcomes:
        for job, outcome in outcomes:
            if isinstance(outcome, Evaluation):
                new = replace(outcome, command=command, versions=versions_text(results.versions))
                evaluations = [*(each for each in results.evaluations if each.key != new.key), new]
                evaluations.sort(key=lambda each: order.get(each.key, len(order)))  # as asked for, whichever ends first
                results = replace(results, evaluations=tuple(evaluations))
            else:
                results = replace(results, failures=(*results.failures, outcome))
                notify(f"{job.label} failed: {outcome.error}")
            write_results(out, results)
            done += 1
            progress(BenchmarkProgress(done, len(wanted), job.label, None))
    return results


def versions() -> dict[str, str]:
    """What the figures depend on besides the options."""
    return {
        "cfa": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": metadata.version("timm"),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "platform": platform.platform(),
        "processors": str(os.cpu_count()),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _check(config: FitConfig, backbones: Sequence[str], notify: Callable[[str], None], here: bool) -> dict[str, str]:
    """Find what would fail in every evaluation before the first: options, device, weights. Return their sha256.

    here: whether they run on this machine.
    """
    if here:
        choose_device(config.device)
    digests = {}
    for backbone in backbones:
        _, info = load_backbone(replace(config, backbone=backbone), notify)
        digests[backbone] = info.sha256
    return digests


def _outcomes(
    pending: Sequence[Job], report: Callable[[Job, Progress], None], *, jobs: int
) -> Generator[tuple[Job, Evaluation | Failure], None, None]:
    """Do all jobs; yield each one's outcome as it ends."""
    if jobs == 1 or not pending:
        for job in pending:
            yield job, _attempt(job, partial(report, job))
        return
    processes: set[BaseProcess] = set()
    device = pending[0].config.device
    gpus = torch.cuda.device_count() if ":" not in device and choose_device(device).type == "cuda" else 0
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="cfa-benchmark")
    try:
        futures: dict[Future[Evaluation | Failure], Job] = {}
        for index, job in enumerate(pending):
            if gpus > 1:
                job = replace(job, config=replace(job.config, device=f"cuda:{index % gpus}"))
            futures[pool.submit(_attempt_in_process, job, threads, processes, partial(report, job))] = job
        waiting = set(futures)
        while waiting:
            # With a limit: on Windows, Ctrl-C does not interrupt a wait without one.
            done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(processes):  # on Ctrl-C
            process.terminate()


def _outcomes_on_cluster(
    pending: Sequence[Job], report: Callable[[Job, Progress], None], *, notify: Callable[[str], None]
) -> Generator[tuple[Job, Evaluation | Failure], None, None]:
    """Do the same on the cluster that is connected, from where no steps are reported."""
    yield from outcomes_on_cluster(pending, partial(_attempt, report=lambda step: None), _failure, notify)


def _attempt(job: Job, report: Callable[[Progress], None]) -> Evaluation | Failure:
    try:
        return evaluate(job, report)
    except CfaError as error:
        return _failure(job, " ".join(filter(None, (error.message, error.hint))))
    except Exception as error:  # one category's bug, or lack of memory, does not lose the others
        if is_out_of_memory(error):
            return _failure(job, "There was not enough memory. Choose a smaller --size, or fewer --jobs.")
        return _failure(job, f"{type(error).__name__}: {error}", traceback.format_exc())


def _failure(job: Job, error: str, trace: str | None = None) -> Failure:
    return Failure(job.config.backbone, job.config.seed, job.category.name, error, trace)


def _attempt_in_process(
    job: Job, threads: int, processes: set[BaseProcess], report: Callable[[Progress], None]
) -> Evaluation | Failure:
    """Run a job in a process of its own, which takes its memory with it when it ends, or when it is killed."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork, and neither do threads
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, threads, sender), daemon=True)
    process.start()
    processes.add(process)
    sender.close()
    try:
        while isinstance(message := receiver.recv(), Progress):
            report(message)
        outcome: Evaluation | Failure = message
        return outcome
    except EOFError:
        process.join()
        return _failure(
            job,
            f"Its process was ended from outside (exit code {process.exitcode}); most often memory ran out. "
            "Use fewer --jobs.",
        )
    finally:
        process.join()
        processes.discard(process)
        receiver.close()


def _work(job: Job, threads: int, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends its processes
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    with suppress(BrokenPipeError):  # the parent was killed
        sender.send(_attempt(job, sender.send))
