"""The command's entry: the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

from cfa_cli.errors import CfaError, ExitCode
from cfa_cli.text import printable


def main(arguments: list[str] | None = None) -> None:
    """Run `cfa` with `arguments` (default: the process's) and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run `cfa` with `arguments` and return its exit code; errors are told on stderr."""
    from cfa_cli.cli.app import app

    try:
        result = app(args=arguments, prog_name="cfa", standalone_mode=False)
        sys.stdout.flush()
    except CfaError as error:
        return _tell(error.message, error.hint, error.exit_code)
    except KeyboardInterrupt:
        result = ExitCode.INTERRUPTED
    except (BrokenPipeError, SystemExit):  # the reader of a pipe, like head, has had enough; typer exits then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit stays quiet
        return ExitCode.DONE
    except Exception as error:
        return _tell_other(error, arguments)
    if result == ExitCode.INTERRUPTED:  # typer gives it back for Ctrl-C
        return _tell("Interrupted.", None, ExitCode.INTERRUPTED)
    return result if isinstance(result, int) else ExitCode.DONE


def _tell_other(error: Exception, arguments: list[str]) -> int:
    """Tell of the command line's own errors, of memory that ran out, and of bugs."""
    kind = type(error).__name__
    # By their form: the parser's classes have moved from one package to another.
    if kind == "Abort":
        return _tell("Interrupted.", None, ExitCode.INTERRUPTED)
    format_message = getattr(error, "format_message", None)
    if callable(format_message):
        command = getattr(getattr(error, "ctx", None), "command_path", "cfa")
        return _tell(f"{str(format_message()).rstrip('.')}.", f"See `{command} --help`.", ExitCode.USAGE)
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        return _tell("There is not enough memory.", "Choose a smaller --size, or --device cpu.", ExitCode.DEVICE)
    return _tell(f"This is a bug in cfa: {kind}: {error}", f"The details are in {_log(arguments)}.", ExitCode.BUG)


def _log(arguments: list[str]) -> str:
    """Append the traceback to the log file and return where it is."""
    import platformdirs

    details = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} cfa {' '.join(arguments)}\n{traceback.format_exc()}\n"
    try:
        folder = Path(platformdirs.user_log_dir("cfa", ensure_exists=True))
        with (folder / "cfa.log").open("a", encoding="utf-8") as file:
            file.write(details)
    except OSError:
        sys.stderr.write(details)
        return "the lines above"
    return str(folder / "cfa.log")


def _tell(message: str, hint: str | None, code: int) -> int:
    sys.stderr.write(f"Error: {printable(message)}\n")
    if hint:
        sys.stderr.write(f"Hint: {printable(hint)}\n")
    return code


if __name__ == "__main__":
    main()
