"""What Ray is told through the environment: some of it is read when it is imported, the rest when a node starts.

Nodes that are started by hand should have the same settings; docs/scaling.md lists them.
"""

from __future__ import annotations

import os
import secrets

OWN = "auto"
"""In place of a cluster's address: one of the daemon's own, on this machine."""

SETTINGS = {
    # An argument goes with the call up to so many bytes; beyond, it takes the way through the object store, which costs
    # 4 ms. It is 100 kB by default, and an image has 150.
    "RAY_max_direct_call_object_size": "4000000",
    # Workers run as the daemon does. Ray runs them at 15 by default, which leaves them little beside other processes.
    "RAY_worker_niceness": "0",
    # A node that does not answer for two seconds is lost; by default that takes 66.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    # Who misses the cluster's control service for longer ends itself, the daemon among them.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


_OWN_SETTINGS = {
    # All of an own cluster is on this machine, and listens to this machine alone: a switch that Ray has for systems
    # where it runs no other clusters.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}


def prepare(address: str) -> None:
    """Sets what is not set yet.

    Args:
        address: Address of the cluster, or `OWN`.
    """
    own = _OWN_SETTINGS | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}  # or Ray would keep one in the user's home
    for name, value in (SETTINGS | (own if address == OWN else {})).items():
        os.environ.setdefault(name, value)
