"""The verb `fit_each`: a model for each product, that is for each sub-folder of good images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfa_cli.bundle import check_free
from cfa_cli.config import FitConfig, check_max_pixels
from cfa_cli.data.inputs import find_good_images, find_products
from cfa_cli.errors import CfaError, is_out_of_memory
from cfa_cli.records import BUNDLE_SUFFIX, MAX_PIXELS, Progress

if TYPE_CHECKING:  # what loads torch is imported once the folders are checked
    from cfa_cli.engine.save import SavedFit


@dataclass(frozen=True)
class ProductFit:
    """What became of one sub-folder: its model, or why there is none."""

    name: str  # of the sub-folder, and of its model
    saved: SavedFit | None
    error: str | None = None

    def document(self) -> dict[str, Any]:
        """Return it for --json."""
        fitted = {} if self.saved is None else self.saved.document()
        return {"product": self.name, "error": self.error, **fitted}


def fit_each(
    parent: str | Path,
    out: str | Path = "models",
    config: FitConfig | None = None,
    *,
    report: bool = False,
    force: bool = False,
    max_pixels: float = MAX_PIXELS,
    progress: Callable[[Progress, str], None] = lambda step, product: None,
    notify: Callable[[str], None] = lambda note: None,
) -> Iterator[ProductFit]:
    """Train a model OUT/NAME.safetensors on the good images in each sub-folder PARENT/NAME, one after the other.

    A sub-folder without a model (too few images, a model that is there already) has the reason in its result; the
    others are fitted all the same. `report`: also write OUT/NAME.html. `progress` gets the product's name too. The
    other arguments are those of `fit`.

    >>> for product in cfa_cli.fit_each("photos/", "models/"):
    ...     print(product.name, product.error or product.saved.model)

    Raises, at the call, InputError where there is no such folder, or none within it, and UsageError.
    """
    config = config or FitConfig()
    check_max_pixels(max_pixels)
    folders = find_products(Path(parent))

    def run() -> Iterator[ProductFit]:
        for folder in folders:
            model = Path(out) / f"{folder.name}{BUNDLE_SUFFIX}"
            try:
                saved = _fit(folder, model, config, report, force, max_pixels, progress, notify)
            except CfaError as error:
                yield ProductFit(folder.name, None, error.message)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                yield ProductFit(folder.name, None, "There is not enough memory.")
            else:
                yield ProductFit(folder.name, saved)

    return run()


def _fit(
    folder: Path,
    model: Path,
    config: FitConfig,
    report: bool,
    force: bool,
    max_pixels: float,
    progress: Callable[[Progress, str], None],
    notify: Callable[[str], None],
) -> SavedFit:
    page = model.with_suffix(".html") if report else None
    for file in filter(None, (model, page)):
        check_free(file, force)
    find_good_images(folder)  # before torch is imported
    from cfa_cli.engine.fit import fit
    from cfa_cli.engine.save import save_fit

    def step(step: Progress) -> None:
        progress(step, folder.name)

    result = fit(folder, config, max_pixels=max_pixels, progress=step, notify=notify)
    return save_fit(
        result, folder, model, page, force=force, device=config.device, max_pixels=max_pixels, progress=step
    )
