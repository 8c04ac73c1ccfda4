"""What can go wrong, and the exit code of each.

    CfaError                    70  never raised itself
    ├── UsageError               2  the command line asks for something that does not fit together
    ├── InputError               3  images, folders or output places
    │   └── ImageError           3  one image; in a batch it is reported in its row and the batch goes on
    ├── BundleError              4  a model file
    ├── WeightsError             5  backbone names and weights
    ├── DeviceError              6  a processor or accelerator that is not there
    └── ExportError              7  an export that failed or did not verify

Every message is one plain sentence; `hint` says what to type or do next.
"""

from __future__ import annotations

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of `cfa`."""

    DONE = 0
    ANOMALY = 1  # under --fail-on-anomaly alone
    USAGE = 2
    INPUT = 3
    BUNDLE = 4
    WEIGHTS = 5
    DEVICE = 6
    EXPORT = 7
    PARTIAL = 8  # some images could not be read: they are listed, the rest is written
    BUG = 70
    INTERRUPTED = 130


class CfaError(Exception):
    """Base of all errors that `cfa` raises on purpose."""

    exit_code = ExitCode.BUG

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CfaError):
    """Options that do not fit together."""

    exit_code = ExitCode.USAGE


class InputError(CfaError):
    """A path, folder or set of images that cannot be used."""

    exit_code = ExitCode.INPUT


class ImageError(InputError):
    """One image that cannot be read."""


class BundleError(CfaError):
    """A model file that cannot be used."""

    exit_code = ExitCode.BUNDLE


class WeightsError(CfaError):
    """Backbone weights that cannot be had, or do not fit."""

    exit_code = ExitCode.WEIGHTS


class DeviceError(CfaError):
    """A device that is not there."""

    exit_code = ExitCode.DEVICE


class ExportError(CfaError):
    """An export that failed or whose scores differ."""

    exit_code = ExitCode.EXPORT


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "insufficient memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, in whatever form a library says it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, for accelerators
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower() if isinstance(error, RuntimeError) or type(error).__module__ == "cv2" else ""
    return any(
        words in text for words in ("can't allocate memory", "out of memory", "insufficient memory", "bad_alloc")
    )
