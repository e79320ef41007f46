"""certtrain: train image classifiers with certified robustness, verify them, and show how tight their bounds are.

The names below are the public Python API. They are imported when they are first
used, so that `import certtrain` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from certtrain.deprecation import warn_renamed
from certtrain.runtime.threads import wait_passively
from certtrain.version import __version__ as __version__

if TYPE_CHECKING:
    from certtrain.bounds.api import margin_bounds as margin_bounds
    from certtrain.bounds.api import output_bounds as output_bounds
    from certtrain.bounds.api import propagate as propagate
    from certtrain.bounds.trace import BoundTrace as BoundTrace
    from certtrain.diagnostics.networks import load_model as load_model
    from certtrain.errors import CerttrainError as CerttrainError
    from certtrain.interchange.foreign import load_network as load_network
    from certtrain.network.initialization import InitRecord as InitRecord
    from certtrain.network.initialization import ibp_init_ as ibp_init_
    from certtrain.network.saving import save_model as save_model
    from certtrain.render.sessions import resume as resume
    from certtrain.render.sessions import train as train
    from certtrain.render.sessions import verify_with_progress as verify  # noqa: F401 (another name there)
    from certtrain.spec.objective import AttackSection as AttackSection
    from certtrain.spec.preset import load_preset as load_preset
    from certtrain.spec.schedule import eps_at as eps_at
    from certtrain.training.context import RunContext as RunContext
    from certtrain.training.loss import LossTerms as LossTerms
    from certtrain.training.loss import objective_terms as objective_terms
    from certtrain.training.objectives.adversarial import InputAttack as InputAttack
    from certtrain.training.objectives.base import Objective as Objective
    from certtrain.training.objectives.base import RobustLosses as RobustLosses
    from certtrain.training.objectives.base import all_positive as all_positive
    from certtrain.training.objectives.base import margin_losses as margin_losses
    from certtrain.training.objectives.base import margins_of as margins_of
    from certtrain.training.passes import Passes as Passes
    from certtrain.training.passes import SignedAscent as SignedAscent
    from certtrain.verification.cascade import Limits as Limits
    from certtrain.verification.certificate import Certificates as Certificates
    from certtrain.verification.certificate import certify as certify
    from certtrain.verification.radii import verify_radii as verify_radii


wait_passively()  # here, since OpenMP reads this setting when torch is loaded

_MODULES = {
    "AttackSection": "spec.objective",
    "BoundTrace": "bounds.trace",
    "Certificates": "verification.certificate",
    "CerttrainError": "errors",
    "InitRecord": "network.initialization",
    "InputAttack": "training.objectives.adversarial",
    "LossTerms": "training.loss",
    "Limits": "verification.cascade",
    "Objective": "training.objectives.base",
    "Passes": "training.passes",
    "RobustLosses": "training.objectives.base",
    "RunContext": "training.context",
    "SignedAscent": "training.passes",
    "all_positive": "training.objectives.base",
    "certify": "verification.certificate",
    "eps_at": "spec.schedule",
    "ibp_init_": "network.initialization",
    "load_model": "diagnostics.networks",
    "load_network": "interchange.foreign",
    "load_preset": "spec.preset",
    "margin_bounds": "bounds.api",
    "margin_losses": "training.objectives.base",
    "margins_of": "training.objectives.base",
    "objective_terms": "training.loss",
    "output_bounds": "bounds.api",
    "propagate": "bounds.api",
    "resume": "render.sessions",
    "save_model": "network.saving",
    "train": "render.sessions",
    "verify": "render.sessions:verify_with_progress",
    "verify_radii": "verification.radii",
}
__all__ = sorted(_MODULES)
_RENAMED = {"Robust": "RobustLosses", "Search": "SignedAscent", "Surroundings": "RunContext"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warn_renamed(f"certtrain.{name}", f"certtrain.{_RENAMED[name]}")
        name = _RENAMED[name]
    if name not in _MODULES:
        raise AttributeError(f"module 'certtrain' has no attribute {name!r}")
    module, _, other_name = _MODULES[name].partition(":")
    return getattr(import_module(f"certtrain.{module}"), other_name or name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
