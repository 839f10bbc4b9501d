"""What a search says: ``python -m tuner.report NAME [NAME ...]``, and the same at the end of a search.

In reading order; imports go down the list.

    __main__       the command
    writing        the report of a search, into its folder
    page           a report as one HTML file, as Markdown, and its tables as CSV
    contents       what stands in the report, in which order
    figures        the pictures
    findings       what else a reader must know, as sentences and tables
    profiles       performance profiles over several searches
    tuning_curves  the best as a function of the number of trials, with confidence bands
    comparison     time to target, and which differences are real
    intervals      the statistics
    document       what a report is made of
"""
