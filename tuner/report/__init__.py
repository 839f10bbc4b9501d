"""The report of a search: ``python -m tuner.report NAME [NAME ...]``.  A search writes it when it ends, too.

The modules in reading order; imports go down the list.

    __main__          the command
    page              writes a report: as one HTML file (page.html), as Markdown, its pictures as SVG and PNG
    outline           the sections of the report and their order
    leaderboard       the variants in order, by their confirmed runs and by their trials
    claims            the comparisons in words: verdicts, claims against their controls, tuned against default
    verdict           the answer in sentences: who is fastest, or what it would take to know
    race_figures      the race in pictures, and a table of all pairs
    budgets           what a search spent, how it was made, and its limitations
    curves            pictures of lines: convergence, tuning curves, schedules, performance profiles
    theory_check      theory against measurement, for the workload diagonal
    critical_lr_check the predicted critical learning rate against the trials that diverged
    scatter           pictures of dots and bars: times to target, learning rates, importance
    findings          further findings: divergence, steadiness, edges of the spaces, importance of the settings
    figures           the style of the pictures
    profiles          performance profiles over several searches
    tuning_curves     the best objective as a function of the number of rounds, with confidence bands
    bands             the confidence bands
    cost_order        gradient evaluations and seconds side by side
    comparison        time to target, and which differences are real
    costs             what a training costs to a target, in each unit
    intervals         the statistics
    document          the parts of a report: sections, tables, pictures
"""
