"""What a search says: ``python -m tuner.report NAME [NAME ...]``, and the same at the end of a search.

In reading order; imports go down the list.

    __main__          the command
    writing           the report of a search, into its folder
    page              a report as one HTML file (page.html), as Markdown, and its pictures as SVG and PNG
    outline           what stands in the report, in which order
    leaderboard       the variants in order, by their confirmed runs and by their trials
    claims            what the comparisons say in words: verdicts, claims beside their controls, what tuning was worth
    budgets           what a search spent, what it was made with, and what it cannot say
    curves            pictures of lines: convergence, tuning curves, schedules, performance profiles
    theory_check      theory over measurement, for the workload diagonal
    critical_lr_check the predicted critical learning rate, and what diverged
    scatter           pictures of dots and bars: times to target, learning rates, importance
    findings          what else a reader must know: divergence, steadiness, edges of spaces, importance
    figures           how the pictures look
    profiles          performance profiles over several searches
    tuning_curves     the best as a function of the number of trials, with confidence bands
    bands             the bands, and how often they hold
    comparison        time to target, and which differences are real
    intervals         the statistics
    document          what a report is made of
"""
