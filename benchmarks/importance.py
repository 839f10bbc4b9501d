"""How many trials Optuna's importance (PED-ANOVA) needs.  One of five settings matters, or none.  It takes a minute.

objective = x_1^2 + noise z,   x uniform in [0, 1]^5,   noise .1;   or z alone
"""

from __future__ import annotations

import warnings

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.importance import get_param_importances

from benchmarks.recording import conditions, parser, record, show

SETTINGS = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(1, 6)}
NOISE = 0.1


def largest(num_trials: int, matters: bool, generator: np.random.Generator) -> tuple[str, float]:
    """The setting that Optuna ranks as most important in a study of random trials, and its share."""
    study = optuna.create_study()
    points = generator.random((num_trials, len(SETTINGS)))
    values = NOISE * generator.normal(size=num_trials) + (points[:, 0] ** 2 if matters else 0.0)
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=dict(zip(SETTINGS, point, strict=True)), distributions=dict(SETTINGS), value=float(value)
            )
            for point, value in zip(points.tolist(), values, strict=True)
        ]
    )
    with warnings.catch_warnings(action="ignore"):  # Optuna warns that the trials are few
        shares = get_param_importances(study)
    first = max(shares, key=lambda name: shares[name])
    return first, shares[first]


def main() -> None:
    """Simulates studies and prints a table."""
    options = parser(__doc__, "importance")
    options.add_argument("--studies", type=int, default=200, help="simulated studies of each kind")
    chosen = options.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    before, generator = conditions(), np.random.default_rng(0)
    figures = {}
    for num_trials in (8, 16, 32, 50):
        found = [largest(num_trials, True, generator)[0] for _ in range(chosen.studies)]
        noise = [largest(num_trials, False, generator)[1] for _ in range(chosen.studies)]
        figures[str(num_trials)] = {
            "names the right one": found.count("x1") / chosen.studies,
            "median of the largest share of noise": float(np.median(noise)),
            "95th percentile": float(np.quantile(noise, 0.95)),
        }
    lines = [[num, *(f"{value:.1%}" for value in line.values())] for num, line in figures.items()]
    show(f"{chosen.studies} studies each", ["trials", *figures["8"]], lines)
    record(chosen.out, before, figures)


if __name__ == "__main__":
    main()
