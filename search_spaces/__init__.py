"""What is searched: data only.

Each module holds the variants of one idea.  A variant of your own is a :class:`Variant` anywhere importable, given as
``--variants my_package.module:VARIANT``.
"""

from search_spaces.baselines import ADAMW, SGDM
from search_spaces.critical_damping import CRITICAL
from search_spaces.lp_norm import LPSGDM
from search_spaces.variant import Variant

SPACES: dict[str, Variant] = {
    "sgdm": SGDM,
    "adamw": ADAMW,
    "lpsgdm": LPSGDM,
    "critical": CRITICAL,
}

__all__ = ["SPACES", "Variant"]
