"""Serves Prometheus metrics over HTTP, on either side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import start_http_server

from loadpart_common.errors import SettingsError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from loadpart_common.wire.credentials import ServerTls


class MetricsServer:
    """An HTTP server for one registry.

    Attributes:
        address: Where it listens, `HOST:PORT`.
    """

    def __init__(self, listen: str, registry: CollectorRegistry, tls: ServerTls | None = None) -> None:
        """Starts to serve.

        Args:
            listen: `HOST:PORT`; port 0 picks a free one.
            registry: The metrics.
            tls: Where it is given with authorities for clients, whoever asks must show a certificate of theirs; None
                serves in the clear.

        Raises:
            SettingsError: It is no address, or cannot be bound.
        """
        host, _, port = listen.rpartition(":")
        try:
            self._server, self._thread = start_http_server(
                int(port), host.strip("[]"), registry, **(_tls_options(tls) if tls else {})
            )
        except (ValueError, OverflowError) as error:
            raise SettingsError(f"metrics_listen: expected HOST:PORT, got {listen!r} ({error})") from error
        except OSError as error:  # TLS errors are among them
            raise SettingsError(f"metrics_listen: cannot listen on {listen}: {error.strerror or error}") from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _tls_options(tls: ServerTls) -> dict[str, Any]:
    client_ca = str(tls.client_ca) if tls.client_ca else None
    return {
        "certfile": str(tls.certificate),
        "keyfile": str(tls.key),
        "client_cafile": client_ca,
        "client_auth_required": client_ca is not None,
    }
