"""Which images a command works on: from folders, files, globs and standard input."""

from __future__ import annotations

import difflib
import errno
import functools
import glob
import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from cfa_cli.data.own_output import holds_results, is_result
from cfa_cli.data.walk import cannot_list, is_hidden, is_image_name, walk
from cfa_cli.errors import InputError
from cfa_cli.notes import LeftOut
from cfa_cli.records import FORMATS, IMAGE_SUFFIXES, MODEL_SUFFIXES, Source
from cfa_cli.text import command_line


def find_images(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """All images in `folder` and below, sorted by their POSIX path relative to it.

    Hidden files and folders are left out; links to folders are followed, each real folder is visited once. Files of
    other formats, and what cfa wrote itself, are left out too, and added to `left_out`.
    Raises InputError if there is no such folder, if it or one below cannot be listed, and if no image is in it.
    """
    _require_folder(folder)
    left_out = LeftOut() if left_out is None else left_out
    here = LeftOut()
    images = [] if is_result(folder) else walk(folder, here)
    left_out.formats += here.formats
    left_out.results += here.results
    if not images:
        raise _no_images(folder, here)
    return images


def find_good_images(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The same for images to train on: a data set in MVTec's layout, whose test images are defects, is refused.

    Raises InputError as `find_images` does, and where `folder`, the folder above or one just below has `train/good`
    beside `test` or `ground_truth`.
    """
    images = find_images(folder, left_out)
    for root in _possible_datasets(folder):
        good = root / "train" / "good"
        if _is_folder(good) and any(_is_folder(root / name) for name in ("test", "ground_truth")):
            raise InputError(
                f"{folder} is, or belongs to, a data set in MVTec's layout: its test images show defects.",
                f"Train on its good images: cfa fit {command_line([str(good)])}",
            )
    return images


def find_products(parent: Path) -> list[Path]:
    """The sub-folders of `parent`, sorted; hidden ones, and those that cfa wrote results to, are left out.

    Raises InputError if there is no such folder, if it cannot be listed, and if no folder is in it.
    """
    _require_folder(parent)
    found = [path for path in sorted(parent.iterdir()) if _is_folder(path) and not is_hidden(path)]
    found = [path for path in found if not is_result(path) and not holds_results(path)]
    if not found:
        raise InputError(
            f"There are no folders in {parent}.", "--each takes a folder with a sub-folder for each product."
        )
    return found


def find_sources(
    inputs: Sequence[str], stdin: Iterable[str] | None = None, left_out: LeftOut | None = None
) -> list[Source]:
    """The images that `inputs` name, in input order, each once: files, folders, globs (`**` too), `-` for `stdin`.

    `stdin` gives a path a line; folders among them are searched as well. Folders, globs' matches and what is in them
    are sorted; of these only files with an image's suffix count. A file that is named is taken whatever its suffix,
    and one that is named on `stdin` even if it does not exist, so that it gets its row, with the error.

    `Source.name` is the path below the input: below the folder, below a glob's fixed part, or the bare name of a file.
    Where inputs lie in several folders it is the path below the deepest folder that contains all of them, so that
    `line1/a.jpg` and `line2/a.jpg` stay apart. It keeps the suffix, so that `a.jpg` and `a.png` stay apart too. Names
    that differ only in case or in Unicode form get `~2`, `~3`, ... after the stem.
    What cfa wrote itself is no input, not even where it is named; it is added to `left_out`, as are other formats.
    Raises InputError for a path argument that does not exist, a glob or folder without images, a model given as an
    image, and an empty `stdin`.
    """
    left_out = LeftOut() if left_out is None else left_out
    found: list[_Found] = []
    for text in dict.fromkeys(inputs):
        found += _from_stdin(stdin, left_out) if text == "-" else _from_argument(text, left_out)
    if not found:
        raise InputError("All that is given was written by cfa.", "Give the images that it was made from.")
    return _name(_once(found))


@dataclass(frozen=True, slots=True)
class _Found:
    path: str  # as the user would write it
    root: str  # the folder of the input that named it, absolute


def _from_argument(text: str, left_out: LeftOut) -> list[_Found]:
    path = Path(text)
    if path.suffix.lower() in MODEL_SUFFIXES:
        raise InputError(f"{text} is a model, not an image.", f"Give it with --model {command_line([text])}")
    try:
        path.lstat()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        # Windows says of a pattern that it is no valid name.
        if glob.has_magic(text) and (missing or error.errno == errno.EINVAL):
            return _from_glob(text, left_out)
        if missing:
            raise InputError(f"There is no file or folder {text}.", _did_you_mean(path)) from error
        # It may be there: reading it says what is wrong.
    except ValueError as error:  # a null character, from Python
        raise InputError(f"No path holds a null character: {text!r}.", "Check the path.") from error
    return _from_path(text, left_out)


def _from_path(text: str, left_out: LeftOut) -> list[_Found]:
    if _is_folder(Path(text)):
        root = _absolute(text)
        return [_Found(str(image), root) for image in find_images(Path(text), left_out)]
    if is_result(Path(text)):
        left_out.results.append(text)
        return []
    return [_Found(text, os.path.split(_absolute(text))[0])]


def _from_glob(pattern: str, left_out: LeftOut) -> list[_Found]:
    root = _absolute(PurePath(*itertools.takewhile(lambda part: not glob.has_magic(part), PurePath(pattern).parts)))
    found: list[_Found] = []
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  (pathlib's takes no absolute pattern)
    for match in matches:
        if is_result(Path(match)):
            left_out.results.append(match)
        elif _is_folder(Path(match)):
            found += [_Found(str(image), root) for image in walk(Path(match), left_out)]
        elif is_image_name(match):
            found.append(_Found(match, root))
    if not found and not left_out.results:
        raise InputError(f"The pattern {pattern} matches no images.", "Check the pattern, or give a folder.")
    return found


def _from_stdin(lines: Iterable[str] | None, left_out: LeftOut) -> list[_Found]:
    found: list[_Found] = []
    for line in lines or ():
        text = line.rstrip("\r\n")
        if "\0" in text:
            raise InputError("The paths on standard input are separated by null characters.", "Give one path a line.")
        if text:
            found += _from_path(text, left_out)
    if not found and not left_out.results:
        raise InputError(
            "There are no paths on standard input.", "For example: find parts -name '*.png' | cfa predict -"
        )
    return found


def _once(found: Iterable[_Found]) -> Iterator[_Found]:
    """Without repetitions of a file, however its folder is written."""
    real = functools.cache(os.path.realpath)
    seen: set[tuple[str, str]] = set()
    for item in found:
        folder, name = os.path.split(item.path)
        if (identity := (os.path.normcase(real(folder)), os.path.normcase(name))) not in seen:
            seen.add(identity)
            yield item


def _name(found: Iterable[_Found]) -> list[Source]:
    items = [(item, *os.path.split(_absolute(item.path))) for item in found]
    base = _common_folder({item.root for item, _, _ in items} | {folder for _, folder, _ in items})

    @functools.cache
    def prefix(folder: str) -> tuple[str, ...]:
        path = PurePath(folder)
        if not base:  # Windows, several drives
            return (path.drive.strip(":\\?.").replace("\\", "_"), *path.parts[1:])
        return path.parts[len(base) :]

    taken: set[str] = set()
    return [Source(Path(item.path), _unique("/".join((*prefix(folder), name)), taken)) for item, folder, name in items]


def _common_folder(folders: set[str]) -> tuple[str, ...]:
    """The parts of the deepest folder that contains all of `folders`; () if they are on several drives."""
    try:
        return PurePath(os.path.commonpath(folders)).parts
    except ValueError:
        return ()


def _unique(name: str, taken: set[str]) -> str:
    """`name`, or the next free `stem~N.suffix`: some file systems ignore case and Unicode form."""
    # Bytes that are no text would fail when the table of results is written.
    candidate = name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    number = 1
    while (key := unicodedata.normalize("NFC", candidate).casefold()) in taken:
        number += 1
        path = PurePath(name)
        candidate = path.with_name(f"{path.stem}~{number}{path.suffix}").as_posix()
    taken.add(key)
    return candidate


def _absolute(path: str | PurePath) -> str:
    """From the root, without `..`; links are not followed."""
    return os.path.abspath(path)  # noqa: PTH100  (Path.absolute() keeps the "..")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a folder above may not be searched
        return False


def _require_folder(folder: Path) -> None:
    try:
        os.scandir(folder).close()
    except FileNotFoundError as error:
        raise InputError(f"There is no folder {folder}.", _did_you_mean(folder)) from error
    except NotADirectoryError as error:
        raise InputError(
            f"{folder} is a file, not a folder.", f"Give the folder that holds it: {folder.parent}"
        ) from error
    except OSError as error:
        cannot_list(error)


def _possible_datasets(folder: Path) -> Iterator[Path]:
    yield folder
    if folder.resolve().name in ("test", "ground_truth"):
        yield folder.resolve().parent
    yield from sorted(child for child in folder.iterdir() if _is_folder(child))


def _no_images(folder: Path, left_out: LeftOut) -> InputError:
    looked_for = ", ".join(IMAGE_SUFFIXES)
    if left_out.results or is_result(folder):
        return InputError(
            f"There are no images in {folder} but those that cfa wrote.", "Give the images that they were made from."
        )
    if not left_out.formats:
        return InputError(f"There are no files in {folder} (looked for {looked_for}).", "Check the path.")
    seen = ", ".join(f"{count} x {kind}" for kind, count in left_out.formats.most_common(3))
    return InputError(
        f"There are no images in {folder} (looked for {looked_for}; other files: {seen}).",
        f"Convert them to {FORMATS}, or give another folder.",
    )


def _did_you_mean(path: Path) -> str:
    """A hint for a path that is not there."""
    try:
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    except OSError:
        near = []
    return f"Did you mean {path.parent / near[0]}?" if near else f"Check the path; it was looked for from {Path.cwd()}."
