"""Strong optimizers of recent years, from libraries: what a new idea has to beat.

They need the extra ``optimizers``.  Each is tuned over its learning rate, warm-up, decay and momentum, as the baselines
are.  The ranges surround the defaults of the library or of the paper and are ours.
"""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.baselines import ADAMW, SGDM
from search_spaces.variant import Variant

_SCHEDULE = {name: SGDM.searched[name] for name in ("lr.schedule", "lr.warmup")}
_SCHEDULED = {name: SGDM.default[name] for name in _SCHEDULE}
_MOMENTUM, _COUPLED = SGDM.searched["momentum.value"], SGDM.searched["decay.weight"]
_DECOUPLED = ADAMW.searched["decay.weight"]
_BETAS = ("(0.9, 0.95)", "(0.9, 0.99)", "(0.9, 0.999)")

NADAMW = Variant(
    name="nadamw",
    idea="AdamW with Nesterov momentum",
    source="Dozat 2016; the baseline of Dahl et al. 2023, arXiv 2306.07179",
    optimizer="torch.optim:NAdam",
    fixed={"momentum.schedule": "constant", "arguments.decoupled_weight_decay": True},
    searched={
        "lr.peak": FloatDistribution(3e-4, 3e-2, log=True),
        **_SCHEDULE,
        "momentum.value": _MOMENTUM,
        "arguments.betas": CategoricalDistribution(_BETAS),
        "arguments.weight_decay": _DECOUPLED,
    },
    default={
        "lr.peak": 2e-3,
        **_SCHEDULED,
        "momentum.value": 0.9,
        "arguments.betas": "(0.9, 0.999)",
        "arguments.weight_decay": 1e-2,
    },
)

MUON = Variant(
    name="muon",
    idea="momentum made orthogonal, matrix by matrix; AdamW for vectors",
    source="Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982",
    optimizer="timm.optim:Muon",
    fixed={"momentum.schedule": "constant", "arguments.nesterov": True},
    searched={
        "lr.peak": FloatDistribution(3e-4, 1e-1, log=True),
        **_SCHEDULE,
        "momentum.value": _MOMENTUM,
        "arguments.weight_decay": _DECOUPLED,
    },
    default={
        "lr.peak": 1e-2,
        **_SCHEDULED,
        "momentum.value": 0.95,
        "arguments.weight_decay": 1e-2,
    },
)

# An average takes the place of the decay of the learning rate.
SCHEDULE_FREE = Variant(
    name="schedule-free",
    idea="AdamW whose evaluated weights are an average, without a schedule",
    source="Defazio et al., NeurIPS 2024, arXiv 2405.15682",
    optimizer="schedulefree:AdamWScheduleFree",
    fixed={"lr.schedule": "constant"},
    searched={
        "lr.peak": FloatDistribution(5e-4, 5e-2, log=True),
        "lr.warmup": _SCHEDULE["lr.warmup"],
        "arguments.betas": CategoricalDistribution((*_BETAS, "(0.95, 0.99)", "(0.98, 0.999)")),
        "arguments.weight_decay": _DECOUPLED,
    },
    default={
        "lr.peak": 2.5e-3,
        "lr.warmup": 0.05,
        "arguments.betas": "(0.9, 0.999)",
        "arguments.weight_decay": 1e-2,
    },
)

SOAP = Variant(
    name="soap",
    idea="Adam in the eigenbases of Shampoo's preconditioners",
    source="Vyas et al., ICLR 2025, arXiv 2409.11321",
    optimizer="pytorch_optimizer:SOAP",
    searched={
        "lr.peak": FloatDistribution(3e-4, 3e-2, log=True),
        **_SCHEDULE,
        "arguments.betas": CategoricalDistribution(("(0.9, 0.95)", "(0.95, 0.95)", "(0.95, 0.99)")),
        "arguments.precondition_frequency": CategoricalDistribution((1, 10)),
        "arguments.weight_decay": _DECOUPLED,
    },
    default={
        "lr.peak": 3e-3,
        **_SCHEDULED,
        "arguments.betas": "(0.95, 0.95)",
        "arguments.precondition_frequency": 10,
        "arguments.weight_decay": 1e-2,
    },
)

# Not the library's ScalableShampoo, which has grafting: its state cannot be read back from a checkpoint.
SHAMPOO = Variant(
    name="shampoo",
    idea="gradients preconditioned along each dimension of a tensor",
    source="Gupta et al., ICML 2018, arXiv 1802.09568",
    optimizer="pytorch_optimizer:Shampoo",
    # With older preconditioners, its first steps diverge at every learning rate (digits).
    fixed={"momentum.schedule": "constant", "arguments.preconditioning_compute_steps": 1},
    searched={
        "lr.peak": FloatDistribution(0.1, 10.0, log=True),
        **_SCHEDULE,
        "momentum.value": _MOMENTUM,
        "arguments.weight_decay": _COUPLED,
    },
    default={
        "lr.peak": 1.0,
        **_SCHEDULED,
        "momentum.value": 0.9,
        "arguments.weight_decay": 5e-4,
    },
)

SAM = Variant(
    name="sam",
    idea="SGD with momentum, at the gradient of a point where the loss is higher nearby; two gradients per step",
    source="Foret et al., ICLR 2021, arXiv 2010.01412",
    optimizer="tuner.optimizers.sam:sam",
    fixed={"momentum.schedule": "constant"},
    searched={
        "lr.peak": FloatDistribution(1e-2, 1.0, log=True),
        **_SCHEDULE,
        "momentum.value": _MOMENTUM,
        "arguments.rho": FloatDistribution(1e-2, 0.5, log=True),
        "arguments.weight_decay": _COUPLED,
    },
    default={
        "lr.peak": 0.1,
        **_SCHEDULED,
        "momentum.value": 0.9,
        "arguments.rho": 0.05,
        "arguments.weight_decay": 5e-4,
    },
)

PRODIGY = Variant(
    name="prodigy",
    idea="Adam that estimates the size of its steps",
    source="Mishchenko and Defazio, ICML 2024, arXiv 2306.06101",
    optimizer="prodigyopt:Prodigy",
    # The authors' advice: lr stays 1.
    fixed={"lr.peak": 1.0},
    searched={
        "lr.schedule": _SCHEDULE["lr.schedule"],
        "arguments.d_coef": FloatDistribution(0.25, 4.0, log=True),
        "arguments.betas": CategoricalDistribution(("(0.9, 0.99)", "(0.9, 0.999)")),
        "arguments.safeguard_warmup": CategoricalDistribution((False, True)),
        "arguments.use_bias_correction": CategoricalDistribution((False, True)),
        "arguments.weight_decay": _DECOUPLED,
    },
    default={
        "lr.schedule": "cosine",
        "arguments.d_coef": 1.0,
        "arguments.betas": "(0.9, 0.999)",
        "arguments.safeguard_warmup": False,
        "arguments.use_bias_correction": False,
        "arguments.weight_decay": 1e-2,
    },
)

LARS = Variant(
    name="lars",
    idea="SGD with momentum whose steps are as long as a share of each tensor's norm",
    source="You et al. 2017, arXiv 1708.03888",
    optimizer="timm.optim:Lars",
    fixed={"momentum.schedule": "constant"},
    searched={
        "lr.peak": FloatDistribution(0.3, 30.0, log=True),
        **_SCHEDULE,
        "momentum.value": _MOMENTUM,
        "arguments.trust_coeff": CategoricalDistribution((0.001, 0.01)),
        "arguments.weight_decay": _COUPLED,
    },
    default={
        "lr.peak": 3.0,
        **_SCHEDULED,
        "momentum.value": 0.9,
        "arguments.trust_coeff": 0.01,
        "arguments.weight_decay": 5e-4,
    },
)
