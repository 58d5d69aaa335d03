"""A sweep in MLflow: one parent run that holds nothing itself, and a child for each combination."""

from __future__ import annotations

from tuner.tracking.mirror import create_in_mlflow
from tuner.tracking.store import TrackerError, explained, open_store


def create_parent(name: str) -> str | None:
    """The id of a new parent run, ended from the start; None while MLflow is away: the children then stand alone."""
    try:
        with explained():
            client = open_store()
            parent = create_in_mlflow(client, "", name, {"tuner.sweep": name})
            client.set_tag(parent, "state", "finished")
            client.set_terminated(parent, "FINISHED")
    except TrackerError:
        return None
    return parent
