"""Pictures of the race: evidence as it grows, the share of rounds won, and what each variant cost until it was out.

A function returns None if there is nothing to draw.  A picture's title is its caption.
"""

from __future__ import annotations

import itertools
import math

from tuner.race import evidence as evidence_of
from tuner.race import interval
from tuner.report.document import Picture, Section, Table
from tuner.report.figures import GREY, SMALL, budget, label, mark, numbers, panels, styles
from tuner.report.verdict import standing
from tuner.study.results import Search


def race(search: Search) -> Section:
    """The race in pictures and as a table of all pairs."""
    if not search.race.rounds:
        return Section("Race")
    drawn = (growth(search), shares(search), costs(search))
    return Section("Race", pictures=tuple(picture for picture in drawn if picture), tables=(pairs(search),))


def pairs(search: Search) -> Table:
    """Rounds won and lost, share, and evidence of each pair."""
    rows = []
    for i, j in itertools.combinations([variant.name for variant in search.variants], 2):
        won, lost = search.race.wins[i, j], search.race.wins[j, i]
        low, high = interval(won, lost)
        both = len(search.race.shared(i, j))
        rows.append(
            (
                i,
                j,
                str(won),
                str(lost),
                str(both - won - lost),
                f"[{low:.0%}, {high:.0%}]",
                f"{search.race.evidence(i, j):.3g}",
                f"{search.race.evidence(j, i):.3g}",
                f"{search.race.pair_threshold(i, j):.3g}",
            )
        )
    columns = ("variant", "against", "won", "lost", "neither", "share won", "evidence", "evidence against", "out at")
    note = (
        "A round counts for neither where both took longer than it was watched, or equally long. The interval of the "
        "share holds at 95% after any number of rounds. Evidence is 1 before the first round. A variant is out once "
        "the evidence of another against it reaches the last column."
    )
    return Table("race", "Rounds won", columns, tuple(rows), note)


def growth(search: Search) -> Picture | None:
    """The largest evidence against each variant, by the number of rounds."""
    pairs = [(best, variant.name) for variant in search.variants if (best := _strongest(search, variant.name))]
    if not pairs:
        return None
    looks = styles(variant.name for variant in search.variants)
    figure, places = panels([f"{i} over {j}" for i, j in pairs])
    for axes, (i, j) in zip(places, pairs, strict=True):
        rounds, evidence = _growth(search, i, j)
        colour, dashes = looks[j]
        axes.plot(rounds, evidence, color=colour, linestyle=dashes, linewidth=1.8)
        axes.plot(rounds[-1], evidence[-1], mark(colour, dashes), color=colour, markersize=5.5)
        if math.isfinite(threshold := search.race.pair_threshold(i, j)):
            axes.axhline(threshold, color=GREY, linewidth=0.9, linestyle=":")
    places[0].set_yscale("log")
    places[0].set_xlim(0, 1.04 * len(search.race.rounds))
    for axes in places:
        numbers(axes.xaxis, "count")
        numbers(axes.yaxis, "log")
    label(figure, "number of rounds", "evidence")
    title = (
        "Evidence that one variant is faster than another, by the number of rounds. A variant is out once a line "
        "against it reaches the dotted line. Of the lines against a variant, the highest at its end is drawn."
    )
    return Picture("evidence", title if search.race.timed else title.replace("faster", "better"), figure)


def _strongest(search: Search, variant: str) -> str | None:
    """The variant with the most evidence against this one; None if none won more rounds of the two than it."""
    wins = search.race.wins
    ahead = [i for i, j in wins if j == variant and wins[i, j] > wins[j, i]]
    return max(ahead, key=lambda name: search.race.evidence(name, variant), default=None)


def _growth(search: Search, i: str, j: str) -> tuple[list[int], list[float]]:
    """Numbers of rounds, and the evidence of i against j after them, from the first round that both were in."""
    won = lost = 0
    rounds, evidence = list[int](), list[float]()
    for one in search.race.shared(i, j):
        rounds, evidence = rounds or [one.number], evidence or [1.0]
        result = one.result(i, j)
        won, lost = won + (result == 1), lost + (result == -1)
        rounds.append(one.number + 1)
        evidence.append(evidence_of(won, lost))
    return rounds, evidence


def shares(search: Search) -> Picture | None:
    """The share of rounds that each variant won against the baseline, with its interval."""
    base = search.baseline
    names = [variant.name for variant in search.variants if variant.name != base]
    names = [name for name in names if search.race.wins[name, base] + search.race.wins[base, name]]
    if not names:
        return None
    looks = styles(variant.name for variant in search.variants)
    figure, (axes,) = panels([""], height=0.3 * len(names) + 0.8)
    for y, name in enumerate(names):
        won, lost = search.race.wins[name, base], search.race.wins[base, name]
        low, high = interval(won, lost)
        colour, dashes = looks[name]
        axes.plot([low, high], [y, y], color=colour, linewidth=1.8, linestyle=dashes)
        axes.plot(won / (won + lost), y, mark(colour, dashes), color=colour, markersize=6)
    axes.axvline(0.5, color=GREY, linewidth=0.9, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    numbers(axes.xaxis, "percent")
    label(figure, f"share of rounds won against {base}")
    title = (
        f"Share of the rounds that ordered a variant and {base} which the variant won, with its 95% interval. The "
        "interval holds after any number of rounds."
    )
    return Picture("rounds_won", title, figure)


def costs(search: Search) -> Picture | None:
    """What each variant's race cost, in full trainings."""
    if not any(record.history for record in search.trainings()):
        return None
    whole = budget(search)
    spent = {variant.name: 0.0 for variant in search.variants}
    for record in list(search.records.values()):
        if record.phase == "race":
            spent[record.variant] += record.gradient_evaluations / whole
    looks = styles(spent)
    figure, (axes,) = panels([""], height=0.3 * len(spent) + 0.8)
    axes.barh(range(len(spent)), list(spent.values()), color=[looks[name][0] for name in spent], alpha=0.3, height=0.8)
    for y, (name, cost) in enumerate(spent.items()):
        axes.text(0.015, y, f"{cost:.1f} ({standing(search, name)})", va="center", fontsize=SMALL,
                  transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_yticks(range(len(spent)), list(spent))
    axes.set_ylim(len(spent) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    numbers(axes.xaxis, "plain")
    label(figure, "cost of the race, in full trainings")
    title = (
        "What the race cost each variant until it was out or the race ended, in full trainings: gradient evaluations "
        "over the budget of one training."
    )
    return Picture("race_cost", title, figure)
