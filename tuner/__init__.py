"""Which way of running SGD trains this network fastest, and is the difference real?

In reading order, from argv to the table.  Imports go down the list; a rule that lint-imports holds.

    search           the command, and run_search for Python
    session          one program's work on a search: opens, trains, concludes
    dry_run          what is shown with nothing started: all variants, or the plan and its cost
    command_line     argv -> SearchSpec, and every mistake in one line
    tuning           the one Ray Tune run
    display          the live display
    leaderboard      the table and the picture at the end
    console          the terminal for the display, all else into a file
    run_folder       the search's folder: its spec and its lock
    preflight        everything that can be wrong, found before anything exists
    searcher         Tune's questions, answered from the ledger
    ledger           what happens to trials: planned, run, judged, ended
    cluster          starts or joins Ray
    study            one Optuna study a variant
    tracking         everything into MLflow, once
    mlflow_database  MLflow's SQLite file, made whole or not at all
    trial            the Ray actor that trains
    train_command    python -m tuner.train
    variants         names, a user's own variants, changed ranges
    sampling         where trials are placed: a random arm, enqueued points, then TPE
    objectives       what is optimized
    rungs            who is stopped early
    trial_folder     a trial's spec, log and checkpoint
    plan             SearchSpec: what a search is
    train            train(spec): pure PyTorch, like everything below
    network          model, optimizer and average: what a step changes
    knobs            what the knobs stand at in each step
    optimizers       update rules: the direction and the length of a step
    workloads        data and models
    schedules        learning rate, momentum and p as functions of time
    order            which batches, and how their steps are composed
    curvature        the loss's largest and mean curvature
    convergence      how fast and how steadily a curve converged
    damping          under-, critically or over-damped
    spec             what one training is
    optimizer_spec   how SGD's knobs are turned
    settings         specs by dotted names and as plain data
    errors           bad input

Beside the list, autoscaling tells a cluster which machine to start next.
"""
