"""Rules of section `tracking`: what types cannot say."""

from __future__ import annotations

import re
from collections.abc import Iterator

from funicular.launch.addresses import shown_address
from funicular.launch.config import Config
from funicular.launch.config_values import problem_at
from funicular.launch.problems import Problem

_CREDENTIALS = re.compile(r"^https?://[^/]*@|://[^/]*:[^/]*@|[?&]password=", re.IGNORECASE)
"""A user of http(s), who may be a token; elsewhere a password."""


def tracking_problems(config: Config) -> Iterator[Problem]:
    """What makes a run impossible. Whether MLflow answers is no such thing: training does not need it."""
    uri = config.tracking.mlflow_uri
    if uri is not None and _CREDENTIALS.search(uri):
        yield Problem(
            key="tracking.mlflow_uri",
            value=shown_address(uri),
            expected="it holds a user or a password, and recipes are stored with the run and shown in MLflow",
            nearest="Leave it out there and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN, in the environment (PGPASSWORD for Postgres without a server)",
        )
    name = config.tracking.registered_model
    if name is not None and (not name.strip() or "/" in name or ":" in name):
        expected = "MLflow takes no empty name, and none with / or :"
        yield problem_at(config, "tracking.registered_model", expected, "A word, such as the name of the product")
    if config.tracking.upload_model and name is None:
        expected = "only a registered model is copied to MLflow"
        nearest = "Set tracking.registered_model"
        yield problem_at(config, "tracking.upload_model", expected, nearest, "tracking.registered_model")
