"""Ray: a cluster of machines, or this one's cores. Nothing of it is imported before it is asked for."""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cfa_cli import __version__
from cfa_cli.errors import DeviceError, UsageError
from cfa_cli.records import Prediction, Source

LOCAL = "local"  # in place of an address: this machine alone
_ADDRESS = re.compile(r"local|auto|(ray://)?([\w.-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")
ANSWER_SECONDS = 10  # that a cluster's head may take
MOST_CORES = 8  # of an actor without a GPU: it computes as many images side by side


def is_address(text: str) -> bool:
    """Whether a text has the form of a cluster's address."""
    return _ADDRESS.fullmatch(text) is not None


def check_ray(address: str | None, device: str, jobs: int = 1) -> None:
    """Raise UsageError for what is no address of a cluster, or does not go with one; DeviceError without Ray."""
    if address is None:
        return
    if not is_address(address):
        raise UsageError(
            f"--ray takes the address of a Ray cluster, not '{address}'.",
            "Write HOST:PORT, or auto for the cluster that this machine is part of, or nothing for this machine alone.",
        )
    if address.startswith("ray://"):
        raise UsageError(
            f"{address} is an address of Ray Client, over which no data is spread.",
            "Run cfa on one of the cluster's machines, with --ray auto.",
        )
    if ":" in device:
        raise UsageError(
            f"--device {device} does not go with --ray, which gives each worker its own GPU.", "Write --device cuda."
        )
    if jobs > 1:
        raise UsageError("--jobs is for one machine; --ray takes what the cluster has room for.", "Leave one out.")
    if importlib.util.find_spec("ray") is None:
        raise DeviceError("--ray needs Ray, which is not installed.", "Install it: pip install 'cfa-cli[ray]'")


Named = tuple[Source, str]  # an image, and the name of its files


@dataclass(frozen=True)
class Outcome:
    """What a worker made of a list of images."""

    predictions: Sequence[Prediction]  # of all of them, in order, without arrays
    attempt: int  # from 1
    warnings: Sequence[str]


@dataclass(frozen=True)
class Share:
    """What one worker takes of a cluster."""

    cpus: int
    gpus: int
    workers: int  # that the cluster has room for at present

    def options(self) -> dict[str, int]:
        """Return it as Ray's options of tasks and actors."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a cluster within the block; one that is connected before stays so.

    Raises DeviceError where it cannot be reached.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it reports to Ray's makers otherwise
    import ray

    if ray.is_initialized():
        yield
        return
    _silence()
    _check_answers(address)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address,
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            configure_logging=False,
            logging_level="CRITICAL",
        )
    except Exception as error:  # of any kind: ConnectionError, RuntimeError, ValueError, their own
        ray.shutdown()
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        if address == LOCAL:
            raise DeviceError(f"Ray does not start on this machine: {reason}.", "Leave --ray out.") from error
        raise DeviceError(
            f"The Ray cluster at {address} cannot be used: {reason}.",
            "See `ray status` there, and that its Ray and Python are those of this machine.",
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray's own would change the exit code
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise DeviceError where nothing answers at HOST:PORT: Ray would try for minutes."""
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DeviceError(
            f"No Ray cluster answers at {address}: {reason}.", "Its head says its address: `ray start --head`."
        ) from error


def _silence() -> None:
    """Keep what Ray says of its own work off the terminal. It sets up its topmost loggers anew whenever it starts."""
    for name in ("ray._private", "ray._common", "ray.data._internal"):
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
    import ray

    ray._private.worker._worker_logs_enabled = False  # what its daemons complain of would be printed on stdout


def share_of_worker(device: str) -> Share:
    """Return what each worker takes: a GPU where there are some and `device` does not forbid it, else some cores.

    The cores are those of the smallest machine, at most 8; with a GPU its part of them.
    Raises DeviceError where `device` is "cuda" and the cluster has no GPU.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    with_gpu = [node for node in nodes if node.get("GPU")]
    if device == "cuda" and not with_gpu:
        raise DeviceError("The Ray cluster has no GPU.", "Use --device auto or cpu.")
    if with_gpu and device in ("auto", "cuda"):
        cpus = max(1, min(int(node["CPU"] // node["GPU"]) for node in with_gpu))
        return Share(cpus, 1, int(sum(min(node["GPU"], node["CPU"] // cpus) for node in with_gpu)) or 1)
    cpus = int(min([MOST_CORES, *(node["CPU"] for node in nodes)])) or 1
    return Share(cpus, 0, int(sum(node["CPU"] // cpus for node in nodes)) or 1)


def versions() -> dict[str, str]:
    """Return what scores depend on, of this process."""
    import torch

    return {"cfa": __version__, "torch": torch.__version__, "python": platform.python_version()}


def differing(driver: Mapping[str, str], worker: Mapping[str, str], host: str) -> str | None:
    """Say in a sentence in what a worker's versions differ from those of the driver; None if they do not."""
    names = [name for name in driver if driver[name] != worker.get(name)]
    if not names:
        return None
    theirs, ours = (", ".join(f"{name} {of.get(name)}" for name in names) for of in (worker, driver))
    return f"The worker on {host} has {theirs}, this machine {ours}: its results may differ."


def use_cores(cpus: int) -> None:
    """Let this process compute on so many cores; it would take all of its machine's."""
    import cv2
    import torch

    torch.set_num_threads(cpus)
    cv2.setNumThreads(cpus)


class Attempts:
    """Counts how often something was begun and not ended: an actor, which outlives the workers that count with it."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def begin(self, what: str) -> int:
        """Return how often this was begun since it was last ended, this time included."""
        self._counts[what] += 1
        return self._counts[what]

    def end(self, what: str) -> None:
        """Forget it."""
        del self._counts[what]
