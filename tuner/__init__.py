"""Which way of running SGD trains this network fastest, and is the difference real?

In reading order, from argv to the table; what stands lower never imports what stands higher:

    search          the command, and run_search for Python
    command_line    argv -> SearchSpec
    plan            SearchSpec: what a search is
    preflight       everything that can be wrong, found before anything exists
    run_folder      the search's folder: its spec and its lock
    cluster         starts or joins Ray
    session         one program's work on a search: opens, trains, concludes
    tuning          the one Ray Tune run
    searcher        Tune's questions, answered from the ledger
    ledger          what happens to trials: planned, run, judged, ended
    study           one Optuna study a variant
    sampling        where trials are placed: a random arm, then TPE
    objectives      what is optimized
    rungs           who is stopped early
    tracking        everything into MLflow, once
    display         the live display
    leaderboard     the table and the picture at the end
    trial           the Ray actor that trains
    trial_folder    a trial's log and checkpoint
    train           train(spec): pure PyTorch, like everything below
    optimizers      update rules
    schedules       learning rate, momentum and p as functions of time
    order           which batches, in which order
    workloads       data and models
    convergence     how fast and how steadily a curve converged
    spec            what one training is
    errors          bad input
"""
