"""`cfa`: find and localise defects in product images after seeing good ones only.

>>> from cfa_cli import FitConfig, ResultWriter, fit, load_bundle, open_model, predict, save_bundle

The names are resolved when they are first used, so that importing the package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cfa_cli.bundle import load_bundle, save_bundle
    from cfa_cli.config import FitConfig
    from cfa_cli.engine.calibrate import calibrate
    from cfa_cli.engine.each import fit_each
    from cfa_cli.engine.fit import fit
    from cfa_cli.engine.model import Model, open_model
    from cfa_cli.engine.predict import predict
    from cfa_cli.engine.predictions import Predictions
    from cfa_cli.errors import CfaError
    from cfa_cli.records import Bundle, CalibrateResult, FitResult, Prediction, PredictSummary
    from cfa_cli.results.writer import ResultWriter

__all__ = [
    "Bundle",
    "CalibrateResult",
    "CfaError",
    "FitConfig",
    "FitResult",
    "Model",
    "PredictSummary",
    "Prediction",
    "Predictions",
    "ResultWriter",
    "calibrate",
    "fit",
    "fit_each",
    "load_bundle",
    "open_model",
    "predict",
    "save_bundle",
]

_HOMES = {
    "calibrate": "cfa_cli.engine.calibrate",
    "fit": "cfa_cli.engine.fit",
    "fit_each": "cfa_cli.engine.each",
    "Model": "cfa_cli.engine.model",
    "open_model": "cfa_cli.engine.model",
    "predict": "cfa_cli.engine.predict",
    "Predictions": "cfa_cli.engine.predictions",
    "CfaError": "cfa_cli.errors",
    "load_bundle": "cfa_cli.bundle",
    "save_bundle": "cfa_cli.bundle",
    "Bundle": "cfa_cli.records",
    "FitConfig": "cfa_cli.config",
    "CalibrateResult": "cfa_cli.records",
    "FitResult": "cfa_cli.records",
    "Prediction": "cfa_cli.records",
    "PredictSummary": "cfa_cli.records",
    "ResultWriter": "cfa_cli.results.writer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cfa_cli' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
