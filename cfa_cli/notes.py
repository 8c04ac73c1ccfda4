"""FLOOR 0, what users are told about their images: what was left out, and what is unlike the training images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Misfit:
    """One way in which an image is not like those that a model was trained on; it follows "this image is"."""

    what: str  # without the image's figures, so that images can be counted: "far smaller than the training images"
    figures: str | None = None  # "64 x 40 against 1130 x 460 px"

    def __str__(self) -> str:
        return f"{self.what} ({self.figures})" if self.figures else self.what


def misfit_text(misfits: Iterable[Misfit]) -> str | None:
    """Write in what an image is not like the training images as one text; None if in nothing."""
    return "; ".join(map(str, misfits)) or None


@dataclass
class LeftOut:
    """What was found beside images and is not read: filled in while inputs are searched."""

    formats: Counter[str] = field(default_factory=Counter)  # files by their suffix: {".heic": 10}
    results: list[str] = field(default_factory=list)  # folders and files that cfa wrote itself

    def sentences(self) -> Iterator[str]:
        """Say what was left out, in at most two sentences."""
        if self.formats:
            kinds = ", ".join(f"{count} x {suffix}" for suffix, count in self._by_count())
            total = self.formats.total()
            yield f"{total} {'file' if total == 1 else 'files'} left out, of formats that cfa does not read: {kinds}."
        if self.results:
            more = f" and {len(self.results) - 3} more" if len(self.results) > 3 else ""
            yield f"Left out, because cfa wrote it: {', '.join(self.results[:3])}{more}."

    def document(self) -> dict[str, object]:
        """Return it for --json."""
        return {"formats": dict(self._by_count()), "results": self.results}

    def _by_count(self) -> list[tuple[str, int]]:
        return sorted(self.formats.items(), key=lambda item: (-item[1], item[0]))
