"""Ray itself: imported with settings for one machine, connected to a cluster, and asked for its resources."""

from __future__ import annotations

import os
import socket
from typing import Any

from deap_prune.errors import ConfigError, RunError


def cluster_resources() -> dict[str, float]:
    """CPUs, GPUs and memory of the cluster as it is now."""
    import ray

    resources: Any = ray.cluster_resources
    return dict(resources())


def worker_lost() -> tuple[type[Exception], ...]:
    """Ray's errors that say that a worker, its machine or its result is gone, not that the evaluation failed."""
    from ray import exceptions

    names = ("RayActorError", "OutOfMemoryError", "WorkerCrashedError", "NodeDiedError", "ObjectLostError")
    return tuple(getattr(exceptions, name) for name in names if hasattr(exceptions, name))


def import_ray(address: str) -> Any:
    """Import Ray; for a local cluster, set it up beforehand to listen on 127.0.0.1 alone."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns that it will change
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster for one run reports nothing
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray reads this on import: no other machine
    try:
        import ray
    except ImportError as error:
        raise ConfigError("Ray is not installed; pip install 'deap-prune[ray]'") from error
    return ray


def connect(address: str) -> None:
    """Start Ray on this machine alone (``"local"``), or connect to a cluster.

    Raises:
        RunError: If there is no cluster at the address, or Ray does not start on this machine.
    """
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    try:
        if address == "local":
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            if host and port.isdecimal():  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises plain ones, too
        if address == "local":
            advice = "try again when the machine is less loaded, or leave Ray out"
            raise RunError(f"Ray did not start on this machine: {error}; {advice}") from error
        raise RunError(f"no Ray cluster at '{address}': {error}; 'local' starts one on this machine") from error
