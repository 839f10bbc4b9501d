"""What is searched: data only.

Each module holds the variants of one idea.  A variant of your own is a :class:`Variant` in any module that can be
imported, given as ``--variants my_package.module:VARIANT``.
"""

from collections.abc import Iterable

from search_spaces.backward import BACKWARD, BACKWARD_FORWARD, BACKWARD_WINDOW
from search_spaces.baselines import ADAMW, LION, NESTEROV, ONE_CYCLE, SGD, SGDM
from search_spaces.composed import COMPOSED
from search_spaces.critical_damping import CRITICAL, CRITICAL_MATCHED, HYBRID
from search_spaces.lp_norm import LPSGD, LPSGDM, LPSGDM_DUAL, LPSGDM_FIXED, LPSGDM_RMS, LPSGDM_SIGN
from search_spaces.modern import LARS, MUON, NADAMW, PRODIGY, SAM, SCHEDULE_FREE, SHAMPOO, SOAP
from search_spaces.random_scaling import RANDOM_SCALING, RANDOM_SCALING_GAMMA
from search_spaces.variant import Value, Variant

SPACES: dict[str, Variant] = {
    "sgd": SGD,
    "sgdm": SGDM,
    "nesterov": NESTEROV,
    "adamw": ADAMW,
    "lion": LION,
    "one-cycle": ONE_CYCLE,
    "lpsgd": LPSGD,
    "lpsgdm": LPSGDM,
    "random-scaling": RANDOM_SCALING,
    "backward": BACKWARD,
    "backward-window": BACKWARD_WINDOW,
    "critical": CRITICAL,
    "hybrid": HYBRID,
    "lpsgdm-fixed": LPSGDM_FIXED,
    "lpsgdm-rms": LPSGDM_RMS,
    "lpsgdm-dual": LPSGDM_DUAL,
    "lpsgdm-sign": LPSGDM_SIGN,
    "random-scaling-gamma": RANDOM_SCALING_GAMMA,
    "backward-forward": BACKWARD_FORWARD,
    "critical-matched": CRITICAL_MATCHED,
    "composed": COMPOSED,
    "nadamw": NADAMW,
    "muon": MUON,
    "schedule-free": SCHEDULE_FREE,
    "soap": SOAP,
    "shampoo": SHAMPOO,
    "sam": SAM,
    "prodigy": PRODIGY,
    "lars": LARS,
}

_MODERN = ("nadamw", "muon", "schedule-free", "soap", "shampoo", "sam", "prodigy", "lars")

GROUPS: dict[str, tuple[str, ...]] = {
    "baselines": ("sgd", "sgdm", "nesterov", "adamw", "lion", "one-cycle"),
    "papers": ("lpsgd", "lpsgdm", "random-scaling", "backward", "backward-window", "critical", "hybrid"),
    "controls": (
        "lpsgdm-fixed",
        "lpsgdm-rms",
        "lpsgdm-dual",
        "lpsgdm-sign",
        "random-scaling-gamma",
        "backward-forward",
        "critical-matched",
    ),
    "modern": _MODERN,
    "all": tuple(name for name in SPACES if name not in _MODERN),
}
"""Names that stand for several variants.  ``all`` leaves out ``modern``, whose libraries are optional."""


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """The names with each group replaced by its variants, each name once, where it came first."""
    return tuple(dict.fromkeys(variant for name in names for variant in GROUPS.get(name, (name,))))


__all__ = ["GROUPS", "SPACES", "Value", "Variant", "expand"]
