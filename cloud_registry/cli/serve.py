"""`slipway serve`: the artifact server, and the controller that drives rollouts."""

import gc
import logging
import signal
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloud_registry import server_wiring, wiring
from cloud_registry.cli.context import CommandContext, pass_context
from cloud_registry.errors import RegistryError, UsageError

if TYPE_CHECKING:
    from cloud_registry.web.controller import ControllerThread

# Downloads that are under way at a stop may go on for this long; a device resumes what is cut.
GRACE_S = 5
BACKLOG = 1024
# How often it is looked whether metadata must be signed again; it lives for days.
TRUST_INTERVAL_S = 3600.0
EXPIRY_WARNING = timedelta(days=14)
# For TLS 1.2, the oldest that Python takes; of uvicorn's own choice its clients get CBC with SHA-1 at best.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8444, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--certificate", type=_FILE, help="PEM file of the TLS certificate chain.")
@click.option("--key", type=_FILE, help="PEM file of its private key.")
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="ADDRESS",
    help="A proxy whose word is taken for who asks (X-Forwarded-For). Repeatable.",
)
@click.option("--no-controller", is_flag=True, help="Serve only and drive no rollouts.")
@click.option("--public-artifacts", is_flag=True, help="Give model files to whoever asks, whoever has keys.")
@click.option(
    "--audit-log", type=_FILE, metavar="FILE", help="Who asked what, a line each.  [default: HOME/audit.jsonl]"
)
@click.option(
    "--backup-url",
    "backup_urls",
    multiple=True,
    metavar="URL",
    help="Where `slipway registry backup` may be asked from elsewhere to back up to. Repeatable.",
)
@click.option(
    "--upload-max",
    "upload_bytes_max",
    default=20 * 1024**3,
    show_default="20 GiB",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Largest file that is taken.",
)
@click.option(
    "--rate",
    "requests_per_second",
    default=1000.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    metavar="N",
    help="Requests a second of one key or address, in the long run.",
)
@click.option(
    "--tick",
    "tick_s",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.05, 3600),
    metavar="SECONDS",
    help="How often the controller looks at the rollouts.",
)
@click.option(
    "--fleet-look",
    "fleet_look_s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0.05, 86400),
    metavar="SECONDS",
    help="How often it records what the whole fleet runs (slipway model history).",
)
@pass_context
def serve(
    context: CommandContext,
    /,
    address: str,
    port: int,
    certificate: Path | None,
    key: Path | None,
    trusted_proxies: tuple[str, ...],
    no_controller: bool,
    tick_s: float,
    fleet_look_s: float,
    **limits: Any,
) -> None:
    """Serve the registry over HTTPS: its API, model files and metadata to devices; and drive the rollouts under way.

    The API takes keys (slipway key create) and, with SLIPWAY_TOKEN_ISSUER, _AUDIENCE and _KEYS, an issuer's tokens.
    Model files are open until the first key is made.

    \b
    Example:
      slipway serve --address 127.0.0.1 --port 8444 --certificate hub.pem --key hub.key
    """
    _check_tls(certificate, key)
    if certificate:
        _tell_expiry(context, certificate)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    limits["is_public"] = limits.pop("public_artifacts")
    app = server_wiring.open_server(context.config, server_wiring.ServerLimits(**limits))
    listener = _listen(address, port)
    bound_port = listener.getsockname()[1]
    controller = None if no_controller else _controller(context, tick_s, fleet_look_s)
    refresher = _refresher(context)
    scheme = "https" if certificate else "http"
    if not limits["is_public"] and not wiring.open_keys(context.config).is_asked_for:
        context.say("Nobody has a key yet, so model files are open. Make one with: slipway key create")
    if not certificate and address not in ("127.0.0.1", "::1", "localhost"):
        context.say("Warning: without --certificate and --key everyone on the way can read and change what is served.")

    def is_ready() -> None:
        shown = f"[{address}]" if ":" in address else address
        click.echo(f"Serving artifacts on {scheme}://{shown}:{bound_port}/artifacts/")
        refresher.start()
        if controller is not None:
            controller.start()
            context.say(f"Driving rollouts, with a look at them every {tick_s:g} s.")

    try:
        _run(app, listener, is_ready, ssl_certfile=certificate, ssl_keyfile=key, trusted_proxies=trusted_proxies)
    finally:
        listener.close()
        refresher.stop()
        if controller is not None and not controller.stop():
            context.say("The controller was still waiting for the hub; its rollouts go on with the next start.")
    context.say("Stopped.")


def _check_tls(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise UsageError("TLS needs both --certificate and --key", hint="Give both, or none for plain HTTP.")
    if certificate is None or key is None:
        return
    for path in (certificate, key):
        if not path.is_file():
            raise UsageError(f"there is no file {path}", hint="The hub simulator keeps its own in its state folder.")
    try:
        # Without a passphrase of ours, OpenSSL would ask for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as err:
        raise UsageError(
            f"{certificate} and {key} are no certificate and its key: {err.reason or err}",
            hint="Both are PEM files, and the key is without a passphrase.",
        ) from err


def _tell_expiry(context: CommandContext, certificate: Path) -> None:
    from cryptography import x509

    leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    left = leaf.not_valid_after_utc - datetime.now(UTC)
    if left < EXPIRY_WARNING:
        expired = "expired" if left < timedelta(0) else "expires"
        context.say(
            f"Warning: the certificate {certificate} {expired} at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC."
        )


def _listen(address: str, port: int) -> socket.socket:
    """A bound socket; what does not work is said in one sentence."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError as err:
        listener.close()
        raise RegistryError(
            f"cannot listen on {address} port {port}: {err.strerror or err}",
            hint="Choose another --port (0 takes a free one), or stop what listens there.",
        ) from err
    return listener


def _controller(context: CommandContext, tick_s: float, fleet_look_s: float) -> "ControllerThread | None":
    from cloud_registry.web.controller import ControllerThread

    if context.config.hub_connection_string is None:
        context.say("No hub is configured (IOTHUB_CONNECTION_STRING), so no rollouts are driven.")
        return None
    rollouts = wiring.open_local_rollouts(context.config)
    watch = wiring.open_fleet_watch(context.config, fleet_look_s)

    def tick() -> None:
        rollouts.tick_all()
        watch.tick()

    return ControllerThread(tick, rollouts.release_all, tick_s)


def _refresher(context: CommandContext) -> "ControllerThread":
    """Keeps the signed metadata fresh, from the moment on when there is any."""
    from cloud_registry.web.controller import ControllerThread

    return ControllerThread(wiring.open_trust_desk(context.config).keep_fresh, lambda: None, TRUST_INTERVAL_S)


def _run(app: Any, listener: socket.socket, is_ready: Any, *, trusted_proxies: tuple[str, ...], **tls: Any) -> None:
    import uvicorn

    from cloud_registry.web.bounded_head import BoundedHead

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            # Modules and routes live as long as the process. Without them a full pass of the cycle collector takes
            # 2 ms in place of 50 (a search of 400 versions takes 30), and there is one every few requests.
            gc.collect()
            gc.freeze()
            is_ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # A TLS connection is waited for until its client says goodbye, which most never do. Those that have
            # nothing under way are cut, so that the grace is for downloads alone.
            for connection in list(self.server_state.connections):
                cycle = getattr(connection, "cycle", None)
                if cycle is None or cycle.response_complete:
                    connection.transport.abort()
            await super().shutdown(sockets)

    # uvicorn raises the signal that stopped it once more when it is done; a stop that was asked for is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        http=BoundedHead,
        # Whoever else says for whom he asks may say what he likes, and it would stand in the audit log.
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        ssl_ciphers=CIPHERS,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
        **tls,
    )
    Server(config).run(sockets=[listener])
