"""MLflow: runs, metrics and models.  No other package of ``tuner`` imports MLflow.

MLflow reads some settings from the environment when it is imported.  They are set here, before any module of this
package imports it.  A value that the user has set stays.
"""

import os

# MLflow would report its use to a host outside.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its client would retry for minutes inside one call.  The tracker retries itself, after it has read what MLflow holds.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# MLflow would print two lines into the progress display for each run that ends.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
