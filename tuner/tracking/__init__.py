"""MLflow: runs, metrics and models; the only room that imports it.

MLflow reads some settings from the environment when it is imported.  They are set here, before any module of this room
imports it; a value that the user has set stays.
"""

import os

# MLflow reports its use to a host outside.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its client would retry for minutes inside one call; the tracker retries by itself, after a look at what was taken.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# It would print two lines into the display for each run that ends.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
