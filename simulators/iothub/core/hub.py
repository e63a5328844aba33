"""The hub: identities, twins, sessions, methods and events as one thing.

Calls change it at once and leave behind effects: what is to be sent or closed. Whoever calls takes the effects
(`take_effects`) and carries them out, in order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from simulators.iothub.core.access import Gatekeeper, Policy
from simulators.iothub.core.certificates import Authorities, ShownCertificate
from simulators.iothub.core.cloud_to_device import CloudMessage, CloudToDevice, check_message, cloud_message_bag
from simulators.iothub.core.configurations import Configurations
from simulators.iothub.core.configured_fleet import ConfiguredFleet
from simulators.iothub.core.deliveries import CLOUD_TO_DEVICE, Deliveries, send_input
from simulators.iothub.core.effects import (
    CloseConnection,
    CloudDelivery,
    DesiredPatch,
    Effect,
    EndMethod,
    InFlight,
    InputMessage,
    RunExchange,
    SendDesired,
    SendInput,
    SendLater,
    SendMethod,
)
from simulators.iothub.core.events import Event, EventLog
from simulators.iothub.core.faults import Faults
from simulators.iothub.core.feedback import feedback_queue, notification_queue
from simulators.iothub.core.hub_events import HubEvents
from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.job_targets import JobTargets
from simulators.iothub.core.jobs import Jobs
from simulators.iothub.core.json_text import dump_json, parse_json
from simulators.iothub.core.ledger import Ledger
from simulators.iothub.core.methods import MethodCalls, MethodRequest, not_online
from simulators.iothub.core.ports import Entropy, chance_of
from simulators.iothub.core.provisioning import Provisioning
from simulators.iothub.core.query import run_query
from simulators.iothub.core.query.engine import Page
from simulators.iothub.core.query.expressions import Row
from simulators.iothub.core.registry import Identity, IdentityId, Registry, check_etag
from simulators.iothub.core.registry_exchange import RegistryExchange
from simulators.iothub.core.sessions import ConnectionId, Session, Sessions
from simulators.iothub.core.throttles import Operation, Throttles
from simulators.iothub.core.twin_index import TwinIndex
from simulators.iothub.core.twins import Twin, Twins
from simulators.iothub.core.uploads import Uploads
from simulators.iothub.errors import Fault, ServiceError

# https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-quotas-throttling: body, properties and their names.
MESSAGE_BYTES_MAX = 256 * 1024
# Targets that are looked at in one go after a configuration changed: some milliseconds of work.
WORK_SLICE = 200
# What a session listens to; the wire spells these as topic filters.
METHODS, TWIN_RESPONSES, DESIRED_PATCHES = "methods", "twinResponses", "desiredPatches"


@dataclass(frozen=True, slots=True)
class Admission:
    """A device that was let in, until its token ends (seconds since the epoch), if it came with one."""

    identity_id: IdentityId
    is_session_present: bool
    expires_at: float | None


class Hub:
    """The state of one hub.

    Args:
        host_names: the names it answers to; the first is the one it goes by.
        policies: its shared access policies.
        entropy: source of keys and ids.
        id_scope: that of its provisioning service.
        ledger: takes note of what changes, for whoever writes it down.
    """

    def __init__(
        self,
        host_names: tuple[str, ...],
        policies: tuple[Policy, ...],
        entropy: Entropy,
        ledger: Ledger | None = None,
        id_scope: str = "0ne00000000",
    ) -> None:
        self.host_name = host_names[0]
        self.gatekeeper = Gatekeeper(host_names, policies)
        self.ledger = ledger or Ledger()
        touching = self.ledger.toucher
        self.authorities = Authorities(touching("authorities"))
        self.registry = Registry(entropy, touching("identities"))
        self.provisioning = Provisioning(self, id_scope, entropy, touching("provisioning"))
        self.events = EventLog()
        self.own_events = HubEvents(self.host_name, self.events)
        self.methods = MethodCalls()
        self.uploads = Uploads(self.gatekeeper.policy("iothubowner").keys[0], entropy, touching("uploads"))
        self.feedback = feedback_queue(self.host_name, entropy, touching("feedback"))
        self.file_notifications = notification_queue(self.host_name, entropy, touching("fileNotifications"))
        self.cloud_to_device = CloudToDevice(
            self.feedback, entropy, self.registry.generation_of, self.registry.count, touching("cloudToDevice")
        )
        self._deliveries = Deliveries(self.cloud_to_device)
        self._entropy = entropy
        self._twins = Twins(touching("twins"))
        self._sessions: Sessions[InFlight] = Sessions(touching("sessions"))
        self._effects: list[Effect] = []
        self.index = TwinIndex(self.registry, self._twins, _twin_document)
        self.faults = Faults(lambda: chance_of(entropy), entropy.identifier, self.index.set_lag)
        self.throttles: Throttles | None = None
        self.fleet = ConfiguredFleet(self)
        self.configurations = Configurations(self.fleet, touching("configurations"))
        self.jobs = Jobs(JobTargets(self), touching("jobs"))
        self.exchange = RegistryExchange(
            self, entropy, lambda job_id: self._effects.append(RunExchange(job_id)), touching("exchange")
        )
        self._enroll()

    def _enroll(self) -> None:
        """Name what outlives a restart; a component comes after those that it looks into."""
        for name, component in (
            ("authorities", self.authorities),
            ("identities", self.registry),
            ("twins", self._twins),
            ("sessions", self._sessions),
            ("feedback", self.feedback),
            ("fileNotifications", self.file_notifications),
            ("cloudToDevice", self.cloud_to_device),
            ("uploads", self.uploads),
            ("configurations", self.configurations),
            ("provisioning", self.provisioning),
            ("jobs", self.jobs),
            ("exchange", self.exchange),
        ):
            self.ledger.enroll(name, component)

    def impose(self, throttles: Throttles) -> None:
        """Have the limits of a tier from now on."""
        self.throttles = throttles
        self.jobs.active_max = throttles.tier.jobs_max
        self.jobs.has_turn = lambda now: throttles.has_turn(Operation.JOB_DEVICE, now)
        self.configurations.count_max = throttles.tier.configurations_max

    def take_effects(self) -> list[Effect]:
        """What earlier calls left to be done; asked for again, it is empty."""
        effects, self._effects = self._effects, []
        for effect in effects:
            if isinstance(effect, EndMethod):
                self.jobs.method_ended(effect.result)
        return effects

    # --- identities -------------------------------------------------------------------------------------------------

    def put_identity(self, identity_id: IdentityId, document: Any, if_match: str | None, now: float) -> dict[str, Any]:
        """Create or replace a device or module; see `Registry.put`."""
        for identity in self.registry.put(identity_id, document, if_match, now):
            self._twins[identity.id] = Twin()
            self.own_events.created(identity, self._twins[identity.id], now)
            self._changed(identity.id, now)
        if not self.registry.is_enabled(identity_id):
            for affected in (self.registry.get(identity_id.device), *self.registry.modules_of(identity_id.device_id)):
                self._disconnect(affected.id, "the device was disabled")
        self._changed(identity_id, now)
        return self.registry.get(identity_id).document()

    def is_registered(self, identity_id: IdentityId) -> bool:
        return self.registry.find(identity_id) is not None

    def delete_identity(self, identity_id: IdentityId, if_match: str | None, now: float) -> None:
        check_etag(if_match, self.registry.get(identity_id).etag, identity_id.client_id)
        if not identity_id.module_id:
            self.cloud_to_device.purge(identity_id.device_id, now)
            self.cloud_to_device.forget(identity_id.device_id)
            self.uploads.forget(identity_id.device_id)
        leaving = {identity.id: identity for identity in self.registry.family(identity_id)}
        for gone in self.registry.delete(identity_id, if_match):
            self.own_events.deleted(leaving[gone], self._twins[gone], now)
            del self._twins[gone]
            self._changed(gone, now)
            self._end_calls(gone)
            connection = self._sessions.forget(gone)
            if connection is not None:
                self._effects.append(CloseConnection(connection, "the identity was deleted"))

    def service_statistics(self) -> dict[str, int]:
        return {"connectedDeviceCount": self._sessions.connected_count}

    # --- twins ------------------------------------------------------------------------------------------------------

    def twin(self, identity_id: IdentityId) -> Twin:
        self.registry.get(identity_id)
        return self._twins[identity_id]

    def twin_document(self, identity_id: IdentityId) -> dict[str, Any]:
        return _twin_document(self.registry.get(identity_id), self._twins[identity_id])

    def patch_twin(self, identity_id: IdentityId, body: Any, if_match: str | None, now: float) -> dict[str, Any]:
        self.write_twin(identity_id, body, if_match, now)
        return self.twin_document(identity_id)

    def write_twin(self, identity_id: IdentityId, body: Any, if_match: str | None, now: float) -> None:
        twin = self.twin(identity_id)
        patch = twin.patch(body, if_match, now)
        self._twins.touch(identity_id)
        self.own_events.updated(self.registry.get(identity_id), twin, body, now)
        if patch is not None:
            self._notify_desired(identity_id, patch)
        self._changed(identity_id, now)

    def replace_twin(self, identity_id: IdentityId, body: Any, if_match: str | None, now: float) -> dict[str, Any]:
        twin = self.twin(identity_id)
        desired = twin.replace(body, if_match, now)
        self._twins.touch(identity_id)
        self.own_events.replaced(self.registry.get(identity_id), twin, now)
        self._notify_desired(identity_id, desired)
        self._changed(identity_id, now)
        return self.twin_document(identity_id)

    def device_twin(self, identity_id: IdentityId, now: float) -> bytes:
        """A twin as its own device reads it: desired and reported properties with their versions, as JSON."""
        self._note_activity(identity_id, now)
        twin = self.twin(identity_id)
        return dump_json({"desired": twin.desired.device_document(), "reported": twin.reported.device_document()})

    def report(self, identity_id: IdentityId, payload: bytes, now: float) -> int:
        """Merge a device's reported patch; returns the section's new version."""
        self._note_activity(identity_id, now)
        twin, patch = self.twin(identity_id), parse_json(payload, "the reported patch")
        version = twin.report(patch, now)
        self._twins.touch(identity_id)
        self.own_events.reported(self.registry.get(identity_id), twin, patch, now)
        self._changed(identity_id, now)
        return version

    def set_model(self, identity_id: IdentityId, model_id: str) -> None:
        """Note the digital twin model that a device says it is."""
        twin = self.twin(identity_id)
        if twin.model_id != model_id:
            twin.model_id = model_id
            self._twins.touch(identity_id)

    def query(self, text: Any, continuation: str | None, count_max: int, now: float | None = None) -> Page:
        """A page of a query's result; see `run_query`. `now` matters where the index lags."""

        def rows(collection: str, after: int) -> Iterable[tuple[int, Row]]:
            return self.jobs.rows(after) if collection == "devices.jobs" else self.index.rows(collection, after, now)

        return run_query(text, rows, continuation, count_max)

    # --- connections ------------------------------------------------------------------------------------------------

    def connect(
        self,
        identity_id: IdentityId,
        credential: str,
        connection: ConnectionId,
        *,
        is_clean: bool,
        now: float,
        certificates: tuple[bytes, ...] = (),
    ) -> Admission:
        """Let a device in on a new connection, and an older connection of its out; see `authenticate`."""
        expires_at = self.authenticate(identity_id, credential, certificates, now)
        identity = self.registry.get(identity_id)
        opened = self._sessions.open(identity_id, connection, is_clean=is_clean)
        if opened.displaced is not None:
            self._end_calls(identity_id)
            if not identity_id.module_id:
                self.cloud_to_device.release(identity_id.device_id, now)
            self._effects.append(CloseConnection(opened.displaced, "the client connected again [MQTT-3.1.4-2]"))
        if not identity.is_connected:
            self.own_events.connected(identity, now)
        identity.is_connected = True
        identity.connection_updated_at = identity.last_activity_at = wire_time(now)
        self._changed(identity_id, now)
        return Admission(identity_id, opened.is_resumed, expires_at)

    def authenticate(
        self, identity_id: IdentityId, credential: str, certificates: tuple[bytes, ...], now: float
    ) -> float | None:
        """Check that a client is the device or module it says it is; returns when its token ends, if it has one.

        Args:
            credential: its token, empty where it has none.
            certificates: what it showed in the TLS handshake, in DER, its own first.

        Raises:
            ServiceError: the device is unknown or disabled, or the credential is not good.
        """
        identity = self.registry.get(identity_id)
        if not self.registry.is_enabled(identity_id):
            raise ServiceError(Fault.IotHubUnauthorizedAccess, f"device {identity_id.device_id} is disabled")
        if identity.authentication_type not in ("selfSigned", "certificateAuthority"):
            return self.gatekeeper.check_device(credential, identity.sas_keys, identity_id.path, now)
        shown = ShownCertificate.read(certificates)
        if identity.authentication_type == "selfSigned":
            shown.check_thumbprint(identity.thumbprints, now)
            return None
        if shown.common_name != identity_id.client_id:
            raise ServiceError(
                Fault.IotHubUnauthorizedAccess,
                f"the certificate is for {shown.common_name!r}, not for {identity_id.client_id!r}",
            )
        shown.check_issued_under(self.authorities.certificates(), now)
        return None

    def resume(self, identity_id: IdentityId, now: float) -> None:
        """Send what waits for a client that has just been let in, first what it has not acknowledged."""
        session = self._sessions.get(identity_id)
        if session is None or session.connection is None:
            return
        for packet_id, delivery in list(session.in_flight.items()):
            if isinstance(delivery, CloudDelivery):
                self._effects += self._deliveries.send_again(session, packet_id, delivery, now)
            elif isinstance(delivery, InputMessage):
                self._effects.append(SendInput(session.connection, identity_id, delivery, packet_id, is_duplicate=True))
            else:
                self._effects.append(SendDesired(session.connection, delivery, packet_id, is_duplicate=True))
        self._effects += self._deliveries.send(session, now)
        self._send_waiting_methods(session, now)

    def disconnect(self, identity_id: IdentityId, connection: ConnectionId, now: float) -> None:
        """A connection is gone, however it went."""
        if not self._sessions.close(identity_id, connection):
            return
        self._end_calls(identity_id)
        if not identity_id.module_id:
            self.cloud_to_device.release(identity_id.device_id, now)
        identity = self.registry.find(identity_id)
        if identity is not None:
            identity.is_connected = False
            self.own_events.disconnected(identity, now)
            identity.connection_updated_at = wire_time(now)
            self._changed(identity_id, now)

    def subscribe(self, identity_id: IdentityId, feature: str, qos: int, now: float) -> None:
        session = self._session(identity_id)
        self._sessions.subscribe(session, feature, qos)
        if feature == METHODS:
            self._send_waiting_methods(session, now)
        elif feature == CLOUD_TO_DEVICE:
            self._effects += self._deliveries.send(session, now)

    def unsubscribe(self, identity_id: IdentityId, feature: str) -> None:
        self._sessions.unsubscribe(self._session(identity_id), feature)

    def hears(self, identity_id: IdentityId, feature: str) -> bool:
        session = self._sessions.get(identity_id)
        return session is not None and session.hears(feature)

    def acknowledge(self, identity_id: IdentityId, packet_id: int, now: float) -> None:
        session = self._session(identity_id)
        delivery = session.land(packet_id)
        if isinstance(delivery, CloudDelivery):
            self._deliveries.acknowledge(session, delivery, now)
            self._effects += self._deliveries.send(session, now)

    def send_later(self, connection: ConnectionId, due_at: float, data: bytes) -> None:
        """Have an answer leave when an instant has come."""
        self._effects.append(SendLater(connection, due_at, data))

    def connection_of(self, identity_id: IdentityId) -> ConnectionId | None:
        session = self._sessions.get(identity_id)
        return session.connection if session else None

    # --- messages and methods ---------------------------------------------------------------------------------------

    def accept_event(
        self,
        identity_id: IdentityId,
        system_properties: dict[str, str],
        properties: dict[str, str],
        body: bytes,
        now: float,
    ) -> Event:
        """Put a device's message into the log; once this returns, it may be acknowledged.

        Raises:
            ServiceError: MessageTooLarge.
        """
        size = len(body)
        if system_properties or properties:
            counted = (*system_properties.values(), *properties.keys(), *properties.values())
            size += sum(len(text.encode()) for text in counted)
        if size > MESSAGE_BYTES_MAX:
            raise ServiceError(Fault.MessageTooLarge, f"the message is {size} bytes; {MESSAGE_BYTES_MAX} are allowed")
        identity = self.registry.get(identity_id)
        identity.last_activity_at = wire_time(now)
        return self.events.append(identity_id, identity.generation_id, system_properties, properties, body, now)

    def send_to_device(self, device_id: str, message: CloudMessage, now: float) -> str:
        """Queue a cloud-to-device message, and send it on where the device listens; returns its message id.

        Raises:
            ServiceError: DeviceNotFound, DeviceMaximumQueueDepthExceeded, MessageTooLarge or ArgumentInvalid.
        """
        self.registry.get(IdentityId(device_id))
        message_id = self.cloud_to_device.send(device_id, message, now)
        self.offer_messages(device_id, now)
        return message_id

    def send_to_input(self, identity_id: IdentityId, name: str, message: CloudMessage) -> None:
        """Send a message to an input of a connected module, as the runtime on a device does.

        Raises:
            ServiceError: ModuleNotFound, DeviceNotOnline where the module does not listen, MessageTooLarge.
        """
        self.registry.get(identity_id)
        check_message(message)
        session = self._sessions.get(identity_id)
        properties = cloud_message_bag(message)
        effect = send_input(session, InputMessage(name, properties, message.body)) if session else None
        if effect is None:
            raise ServiceError(
                Fault.DeviceNotOnline, f"{identity_id.client_id} is not connected, or does not listen to inputs"
            )
        self._effects.append(effect)

    def offer_messages(self, device_id: str, now: float) -> None:
        """Send what waits in a device's queue, where the device listens."""
        session = self._sessions.get(IdentityId(device_id))
        if session is not None:
            self._effects += self._deliveries.send(session, now)

    def expire_messages(self, now: float) -> None:
        """End the messages that waited too long, and take back those that were locked too long."""
        self.feedback.expire(now)
        self.file_notifications.expire(now)
        for device_id in self.cloud_to_device.expire(now):
            self.offer_messages(device_id, now)

    def invoke_method(self, identity_id: IdentityId, request: MethodRequest, now: float) -> str:
        """Call a method; returns the id under which `EndMethod` will give its result.

        Raises:
            ServiceError: 404 for an unknown device, or for one that is not listening when the call may not wait.
        """
        self.registry.get(identity_id)
        if not request.connect_timeout_s and not self.hears(identity_id, METHODS):
            raise not_online(identity_id)
        request_id = self._entropy.identifier()
        self.methods.start(request_id, identity_id, request, now)
        session = self._sessions.get(identity_id)
        if session is not None:
            self._send_waiting_methods(session, now)
        return request_id

    def answer_method(self, identity_id: IdentityId, request_id: str, status: int, payload: bytes, now: float) -> None:
        self._note_activity(identity_id, now)
        result = self.methods.answer(request_id, identity_id, status, payload)
        if result is not None:
            self._effects.append(EndMethod(result))

    def expire_methods(self, now: float) -> None:
        """End the calls whose time is over."""
        self._effects += map(EndMethod, self.methods.expire(now))

    # --- within -----------------------------------------------------------------------------------------------------

    def _session(self, identity_id: IdentityId) -> Session[InFlight]:
        session = self._sessions.get(identity_id)
        if session is None:
            raise RuntimeError(f"{identity_id.client_id} has no session")
        return session

    def _note_activity(self, identity_id: IdentityId, now: float) -> None:
        self.registry.get(identity_id).last_activity_at = wire_time(now)

    def _notify_desired(self, identity_id: IdentityId, patch: dict[str, Any]) -> None:
        # Nothing is kept for a device that is away: it reads its whole twin when it comes back.
        session = self._sessions.get(identity_id)
        if session is None or session.connection is None or not session.hears(DESIRED_PATCHES):
            return
        version = self._twins[identity_id].desired.version
        notification = DesiredPatch(version, dump_json({**patch, "$version": version}))
        packet_id = None
        if session.subscriptions[DESIRED_PATCHES] > 0:
            packet_id = session.take_off(notification)
            if packet_id is None:
                self._effects.append(CloseConnection(session.connection, "too many messages without a PUBACK"))
                return
        self._effects.append(SendDesired(session.connection, notification, packet_id))

    def _send_waiting_methods(self, session: Session[InFlight], now: float) -> None:
        if session.connection is None or not session.hears(METHODS):
            return
        for request_id in self.methods.waiting_for(session.identity_id):
            request = self.methods.send(request_id, now)
            self._effects.append(SendMethod(session.connection, request_id, request.name, request.payload))

    def _end_calls(self, identity_id: IdentityId) -> None:
        self._effects += map(EndMethod, self.methods.disconnected(identity_id))

    def _disconnect(self, identity_id: IdentityId, reason: str) -> None:
        connection = self.connection_of(identity_id)
        if connection is not None:
            self._effects.append(CloseConnection(connection, reason))

    def _changed(self, identity_id: IdentityId, now: float | None = None) -> None:
        """Tell whoever follows twins and identities that one has changed, come or gone."""
        self.index.changed(identity_id, now)
        self.configurations.twin_changed(identity_id, self.index.latest if now is None else now)

    def advance(self, now: float) -> bool:
        """Do a slice of what is done by and by; returns whether more waits."""
        is_more = self.jobs.advance(now, WORK_SLICE)
        return self.configurations.step(now, WORK_SLICE) or is_more


def _twin_document(identity: Identity, twin: Twin) -> dict[str, Any]:
    """A twin as the REST API shows it; tags are absent when there are none."""
    module = {"moduleId": identity.id.module_id} if identity.id.module_id else {}
    scope = {"deviceScope": identity.device_scope} if identity.device_scope and not module else {}
    return {
        "deviceId": identity.id.device_id,
        **module,
        "etag": twin.etag,
        "deviceEtag": identity.etag,
        "status": identity.status,
        **({"statusReason": identity.status_reason} if identity.status_reason else {}),
        "statusUpdateTime": identity.status_updated_at,
        "connectionState": identity.connection_state,
        "lastActivityTime": identity.last_activity_at,
        "cloudToDeviceMessageCount": identity.message_count,
        "authenticationType": identity.authentication_type,
        "x509Thumbprint": {
            "primaryThumbprint": identity.thumbprints[0],
            "secondaryThumbprint": identity.thumbprints[1],
        },
        "modelId": twin.model_id,
        "version": twin.version,
        **({"tags": twin.tags} if twin.tags else {}),
        "properties": {"desired": twin.desired.document(), "reported": twin.reported.document()},
        "capabilities": {"iotEdge": identity.is_edge},
        **scope,
        **({"configurations": twin.configurations} if twin.configurations else {}),
    }
