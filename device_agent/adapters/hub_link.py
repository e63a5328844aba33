"""The hub, by the vendor's device SDK. One `AzureHubLink` is one connection; a new one is made for the next.

The SDK's own reconnecting is turned off: it ends for good on the first refusal, does not subscribe again, and leaves
requests for a twin waiting for ever. Here every connection subscribes, reads the twin and is thrown away when lost.
"""

import asyncio
import logging
import ssl
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from azure.iot.device import X509, Message, MethodResponse
from azure.iot.device.aio import IoTHubDeviceClient, IoTHubModuleClient
from azure.iot.device.exceptions import (
    ClientError,
    CredentialError,
    OperationCancelled,
    OperationTimeout,
    ServiceError,
)

from device_agent.config.identities import CertificateFiles, Identity
from device_agent.errors import (
    AgentError,
    ConfigurationError,
    CredentialsRefusedError,
    LinkError,
    RefusedMessageError,
    ThrottledError,
)
from device_agent.ports import LinkHandler

CONNECT_TIMEOUT_S = 75.0  # the SDK itself waits 60 s for the hub's answer
ANSWER_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0
# The SDK renews its token by disconnecting and connecting again; that is no loss.
RENEWAL_GRACE_S = 2.0
_REFUSED_FOR_GOOD = ("400", "413")
# Too many requests, and an overloaded hub (learn.microsoft.com/azure/iot-hub/iot-hub-devguide-quotas-throttling).
_ASKS_FOR_PATIENCE = ("429", "503")
SDK_OPTIONS: dict[str, Any] = {"connection_retry": False, "auto_connect": False, "ensure_desired_properties": False}

_log = logging.getLogger(__name__)

ClientFactory = Callable[[], Any]

_open_links: "weakref.WeakSet[AzureHubLink]" = weakref.WeakSet()


def client_of_connection_string(connection_string: str, module_id: str, ca_file: Path | None) -> ClientFactory:
    """How to make clients for a device or, with a module id, for a module of it."""
    kind = IoTHubModuleClient if module_id else IoTHubDeviceClient
    options = dict(SDK_OPTIONS)
    if ca_file is not None:
        options["server_verification_cert"] = ca_file.read_text()

    def make() -> Any:
        try:
            return kind.create_from_connection_string(connection_string, **options)
        except (ValueError, TypeError) as err:
            # The SDK's sentence may quote the string with its key, so it stays out of ours.
            raise ConfigurationError(
                "The connection string is malformed.",
                hint="Copy the primary connection string of the module identity again.",
            ) from err

    return make


def client_of_certificate(identity: Identity, files: CertificateFiles, ca_file: Path | None) -> ClientFactory:
    """How to make clients for a device or module that shows a certificate."""
    kind = IoTHubModuleClient if identity.module_id else IoTHubDeviceClient
    options = dict(SDK_OPTIONS)
    if ca_file is not None:
        options["server_verification_cert"] = ca_file.read_text()
    if identity.module_id:
        options["module_id"] = identity.module_id

    def make() -> Any:
        # Read at every connection, so that a renewed certificate is used without a restart.
        return kind.create_from_x509_certificate(
            x509=sdk_certificate(files), hostname=identity.host_name, device_id=identity.device_id, **options
        )

    return make


def sdk_certificate(files: CertificateFiles) -> X509:
    """The files as the SDK takes them; raises ConfigurationError where they do not fit together.

    Tried here first: the SDK would try again and again to connect with a key that it cannot read.
    """
    try:
        # An empty phrase in place of none, or OpenSSL would ask for one at the terminal.
        ssl.create_default_context().load_cert_chain(files.certificate, files.private_key, files.pass_phrase or "")
    except (ssl.SSLError, OSError, ValueError) as err:
        raise ConfigurationError(
            f"The certificate {files.certificate} cannot be used with the key {files.private_key}: {err}.",
            hint="Give PEM files of one pair, readable by the agent; an encrypted key needs pass_phrase in [identity].",
        ) from err
    return X509(str(files.certificate), str(files.private_key), files.pass_phrase)


def client_of_edge_environment() -> ClientFactory:
    """How to make clients from what the IoT Edge runtime gives a module."""

    def make() -> Any:
        try:
            return IoTHubModuleClient.create_from_edge_environment(**SDK_OPTIONS)
        except ValueError as err:
            raise ConfigurationError("The IoT Edge environment is malformed.", hint=str(err)) from err
        except OSError as err:
            raise LinkError(f"The IoT Edge workload API did not answer: {err}.") from err

    return make


def watch_network_threads() -> None:
    """Treat the death of an MQTT thread as the end of the links; called once by the process that owns the agent.

    paho-mqtt 1.6 lets some errors of a cut TLS connection end its thread, and the SDK goes on saying that it is
    connected: https://github.com/Azure/azure-iot-sdk-python/issues/989. Without this the loss would only be seen when
    an answer is overdue.
    """
    previous = threading.excepthook

    def hook(died: threading.ExceptHookArgs) -> None:
        frames = traceback.walk_tb(died.exc_traceback)
        if not any(str(frame.f_globals.get("__name__", "")).startswith("paho.") for frame, _line in frames):
            previous(died)
            return
        _log.debug("the MQTT thread ended: %s", died.exc_value)
        for link in list(_open_links):
            link.thread_died()

    threading.excepthook = hook


class AzureHubLink:
    """Satisfies `ports.HubLink`."""

    def __init__(self, make_client: ClientFactory) -> None:
        self._make_client = make_client
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handler: LinkHandler | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def connect(self, handler: LinkHandler) -> None:
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        _open_links.add(self)
        client = self._client = await asyncio.to_thread(self._make_client)
        client.on_connection_state_change = self._on_state_changed
        client.on_background_exception = self._on_background_exception
        await answered(client.connect(), CONNECT_TIMEOUT_S, "connecting to the hub")
        # The setters subscribe and block until the hub has answered.
        await answered(asyncio.to_thread(self._subscribe), ANSWER_TIMEOUT_S, "subscribing")

    def _subscribe(self) -> None:
        self._client.on_twin_desired_properties_patch_received = self._on_desired_patch
        self._client.on_method_request_received = self._on_method

    async def twin(self) -> dict[str, Any]:
        twin: dict[str, Any] = await answered(self._live().get_twin(), ANSWER_TIMEOUT_S, "reading the twin")
        return twin

    async def report(self, patch: dict[str, Any]) -> None:
        await answered(
            self._live().patch_twin_reported_properties(patch), ANSWER_TIMEOUT_S, "writing the reported section"
        )

    async def send(self, message_id: str, body: bytes) -> None:
        message = Message(body, message_id=message_id, content_encoding="utf-8", content_type="application/json")
        try:
            await answered(self._live().send_message(message), ANSWER_TIMEOUT_S, "sending telemetry")
        except ValueError as err:
            raise RefusedMessageError(f"Message {message_id} is too large for the hub: {len(body):,} bytes.") from err

    def _live(self) -> Any:
        """The client; raises LinkError for a caller that was overtaken by the link's end."""
        if self._client is None:
            raise LinkError("The link is closed.")
        return self._client

    async def close(self) -> None:
        self._is_closed = True
        _open_links.discard(self)
        await self.let_go()

    async def let_go(self) -> None:
        """Shut the SDK's client down; the link may connect again by another one."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await client.shutdown()
        except (ClientError, OperationCancelled, OperationTimeout, TimeoutError, RuntimeError) as err:
            # The connection is of no more use either way, and the hub drops it when the next one comes.
            _log.debug("closing the link: %s", type(err).__name__)

    # Called by the SDK in threads of its own --------------------------------------------------------------------------

    def thread_died(self) -> None:
        self._on_loop(self._lost)

    def _on_state_changed(self) -> None:
        client = self._client
        if client is not None and not client.connected:
            self._on_loop(self._disconnected)

    def _on_desired_patch(self, patch: dict[str, Any]) -> None:
        self._on_loop(self._patched, patch)

    def _on_method(self, request: Any) -> None:
        self._on_loop(self._answer, request)

    def _on_background_exception(self, err: Exception) -> None:
        _log.debug("in the SDK's background: %s", type(err).__name__)

    def _on_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._loop is not None and not self._is_closed and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    # On the agent's loop ----------------------------------------------------------------------------------------------

    def _disconnected(self) -> None:
        assert self._loop is not None
        self._loop.call_later(RENEWAL_GRACE_S, self._lost_unless_back)

    def _lost_unless_back(self) -> None:
        if self._client is not None and not self._client.connected:
            self._lost()

    def _lost(self) -> None:
        if not self._is_closed and self._handler is not None:
            self._handler.lost()

    def _patched(self, patch: dict[str, Any]) -> None:
        if self._handler is not None and not self._is_closed:
            self._handler.desired_patched(patch)

    def _answer(self, request: Any) -> None:
        if self._handler is None or self._client is None:
            return
        task = asyncio.ensure_future(self._send_answer(self._handler, request))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _send_answer(self, handler: LinkHandler, request: Any) -> None:
        status, payload = await handler.method_called(request.name, request.payload)
        response = MethodResponse.create_from_method_request(request, status, payload)
        try:
            await answered(self._live().send_method_response(response), ANSWER_TIMEOUT_S, f"answering {request.name}")
        except AgentError as err:
            _log.warning("The caller of method %s gets no answer: %s", request.name, err)


async def answered(call: Awaitable[Any], timeout_s: float, doing: str) -> Any:
    """Await the SDK and turn what it raises into our two families: refused for good, or to be tried again."""
    doing = doing[0].upper() + doing[1:]
    try:
        async with asyncio.timeout(timeout_s):
            return await call
    except CredentialError as err:
        raise CredentialsRefusedError(
            "The hub does not accept this agent's identity or key.",
            hint="Check that the identity exists and is enabled, and copy its connection string again (or register the "
            "certificate's thumbprint); a wrong clock makes good keys look bad, too.",
        ) from err
    except ServiceError as err:
        if any(status in str(err) for status in _ASKS_FOR_PATIENCE):
            raise ThrottledError(f"{doing} has to wait: the hub takes no more at this moment ({err}).") from err
        if any(status in str(err) for status in _REFUSED_FOR_GOOD):
            raise RefusedMessageError(f"{doing} was refused by the hub: {err}.") from err
        raise LinkError(f"{doing} failed: {err}.") from err
    except (ClientError, OperationCancelled, OperationTimeout, TimeoutError) as err:
        raise LinkError(f"{doing} failed: {_reason(err)}.", hint=_hint(err)) from err


def _causes(err: BaseException) -> list[BaseException]:
    chain = [err]
    while chain[-1].__cause__ is not None and len(chain) < 8:
        chain.append(chain[-1].__cause__)
    return chain


def _reason(err: BaseException) -> str:
    if isinstance(err, TimeoutError | OperationTimeout):
        return "no answer in time"
    if _is_about_trust(err):
        return "the hub's certificate is not trusted"
    cause = _causes(err)[-1]
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause).rstrip(".") or type(cause).__name__


def _hint(err: BaseException) -> str:
    return "Give the file of its certificate authority as --ca-file." if _is_about_trust(err) else ""


def _is_about_trust(err: BaseException) -> bool:
    return any("Tls" in type(cause).__name__ or "CERTIFICATE_VERIFY_FAILED" in str(cause) for cause in _causes(err))
