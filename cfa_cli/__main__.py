"""The command's entry: the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import difflib
import errno
import gc
import json
import os
import re
import sys
import traceback
from datetime import UTC, datetime

from cfa_cli.errors import CfaError, DeviceError, ExitCode, InputError, UsageError, is_out_of_memory
from cfa_cli.text import printable, shorten

_HINTS = {  # of the operating system's errors
    errno.ENOSPC: "Make room on the disk, and run the command again.",
    errno.EACCES: "Close the program that has it open, or check its permissions.",
    errno.EPERM: "Close the program that has it open, or check its permissions.",
    errno.EROFS: "Choose a place that can be written, with --out.",
}
_PLAIN_WORDS = [  # for those of the parser's validation
    (r"Value error, ", ""),
    (r"Input should be a valid integer.*", "it takes a whole number"),
    (r"Input should be a valid number.*", "it takes a number"),
    (r"Input should be greater than or equal to", "it takes at least"),
    (r"Input should be", "it should be"),
    (r"unexpected extra argument\(s\)", "an argument too many"),
]


def main(arguments: list[str] | None = None) -> None:
    """Run `cfa` with `arguments` (default: the process's) and exit with its code."""
    from cfa_cli.cli.streams import libraries_to_the_log

    with libraries_to_the_log():
        code = run(sys.argv[1:] if arguments is None else arguments)
    gc.freeze()  # before it ends, Python would look for garbage among all of torch's objects, for half a second
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run `cfa` with `arguments` and return its exit code; errors are told on stderr, under --json on stdout too."""
    from cfa_cli.cli.streams import lasting_streams

    with lasting_streams():
        try:
            from cfa_cli.cli.app import app
            from cfa_cli.cli.options import complete_ray

            result = app(args=complete_ray(arguments), prog_name="cfa", standalone_mode=False)
        except KeyboardInterrupt:
            result = ExitCode.INTERRUPTED
        except SystemExit as end:  # the shell completion's
            return end.code if isinstance(end.code, int) else ExitCode.DONE
        except Exception as error:
            return _tell(_explain(error, arguments), arguments)
        if result == ExitCode.INTERRUPTED:  # Typer gives it back for Ctrl-C
            return _tell(_InterruptedError("Interrupted."), arguments)
        return result if isinstance(result, int) else ExitCode.DONE


class _InterruptedError(CfaError):
    exit_code = ExitCode.INTERRUPTED


def _explain(error: Exception, arguments: list[str]) -> CfaError:
    """Return what to say of an exception: of the parser's own, of memory and disks, and of bugs."""
    if isinstance(error, CfaError):
        return error
    # By their form: the parser's classes have moved from one package to another.
    if type(error).__name__ == "Abort":
        return _InterruptedError("Interrupted.")
    format_message = getattr(error, "format_message", None)
    if callable(format_message):
        return _explain_usage(str(format_message()), error)
    if is_out_of_memory(error):
        return DeviceError("There is not enough memory.", "Choose a smaller --size, or --device cpu.")
    if isinstance(error, OSError) and error.strerror:
        where = f" {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else " a file"
        hint = _HINTS.get(error.errno or 0) or f"The details are in {_log(arguments)}."
        return InputError(f"Cannot read or write{where}: {error.strerror}.", hint)
    what = "".join(traceback.format_exception_only(error)).strip()  # also where str(error) fails
    return CfaError(f"This is a bug in cfa: {what}", f"The details are in {_log(arguments)}.")


def _explain_usage(message: str, error: Exception) -> UsageError:
    """Return the parser's message as one plain sentence, with one suggestion as the hint where there is one."""
    command = getattr(getattr(error, "ctx", None), "command_path", "cfa")
    sentence = " ".join(re.split(r"Did you mean|\(Possible options", message)[0].split()).rstrip(" .?!(")
    for words, plain in _PLAIN_WORDS:
        sentence = re.sub(words, plain, sentence)
    near = list(getattr(error, "possibilities", None) or re.findall(r"Did you mean '([^']+)'", message))
    if choice := re.search(r"'([^']*)' is not one of (.+)", sentence):
        near = difflib.get_close_matches(choice[1], re.findall(r"'([^']+)'", choice[2]), n=1)
    hint = f"Did you mean {near[0]}? See `{command} --help`." if near else f"See `{command} --help`."
    return UsageError(f"{sentence}.", hint)


def _log(arguments: list[str]) -> str:
    """Append the traceback to the log file and return where it is; where that fails, show it."""
    details = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} cfa {' '.join(arguments)}\n{traceback.format_exc()}\n"
    try:
        from cfa_cli.cli.streams import log_file

        path = log_file()
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(details)
    except Exception:  # the log is the last resort: whatever is wrong with it must not hide the error
        sys.stderr.write(details)
        return "the lines above"
    return str(path)


def _tell(error: CfaError, arguments: list[str]) -> int:
    """Say what went wrong, and return the exit code."""
    code = int(error.exit_code)
    if "--json" in arguments:
        said = {"message": error.message, "hint": error.hint, "exit_code": code}
        sys.stdout.write(json.dumps({"version": 1, "error": said}) + "\n")
    sys.stderr.write(f"Error: {shorten(printable(error.message))}\n")
    if error.hint:
        sys.stderr.write(f"Hint: {shorten(printable(error.hint))}\n")
    return code


if __name__ == "__main__":
    main()
