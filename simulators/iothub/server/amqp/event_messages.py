"""An event of the log as Event Hubs readers get it.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-messages-construct.
"""

from datetime import datetime
from typing import Any

from simulators.iothub.core.event_readers import enqueued_ms
from simulators.iothub.core.events import Event, Partition
from simulators.iothub.core.registry import Identity
from simulators.iothub.wire.amqp.messages import Message, Properties
from simulators.iothub.wire.amqp.values import Symbol, Timestamp

# What Event Hubs writes where a time has never been: the year 1.
NEVER_MS = -62_135_596_800_000
# System properties that become annotations; the others have a place in the properties section.
_ANNOTATIONS = {
    "interfaceId": "iothub-interface-id",
    "outputName": "iothub-outputname",
    "creationTimeUtc": "iothub-creation-time-utc",
    "componentName": "dt-subject",
}


def event_message(event: Event, identity: Identity | None, partition: Partition | None, now: float) -> Message:
    """The message for an event; with `partition` it says how far the partition has got, as a reader may ask."""
    return Message(
        delivery_annotations=runtime_metrics(partition, now) if partition else None,
        annotations=_annotations(event, identity),
        properties=_properties(event.system_properties),
        application_properties=dict(event.properties) or None,
        data=(event.body,),
    )


def runtime_metrics(partition: Partition, now: float) -> dict[Any, Any]:
    return {
        Symbol("last_enqueued_sequence_number"): partition.last_number,
        Symbol("last_enqueued_offset"): str(partition.last_offset),
        Symbol("last_enqueued_time_utc"): last_enqueued(partition),
        Symbol("runtime_info_retrieval_time_utc"): Timestamp(enqueued_ms(now)),
    }


def last_enqueued(partition: Partition) -> Timestamp:
    return Timestamp(NEVER_MS if partition.last_number < 0 else enqueued_ms(partition.last_enqueued_at))


def _annotations(event: Event, identity: Identity | None) -> dict[Any, Any]:
    enqueued = Timestamp(enqueued_ms(event.enqueued_at))
    annotations: dict[str, Any] = {
        "x-opt-sequence-number": event.number,
        "x-opt-offset": str(event.offset),
        "x-opt-enqueued-time": enqueued,
        "iothub-connection-device-id": event.source_id.device_id,
        "iothub-connection-auth-method": _auth_method(event, identity),
        "iothub-connection-auth-generation-id": event.generation_id,
        "iothub-enqueuedtime": enqueued,
        "iothub-message-source": event.source,
    }
    if event.source_id.module_id:
        annotations["iothub-connection-module-id"] = event.source_id.module_id
    for key, name in _ANNOTATIONS.items():
        if value := event.system_properties.get(key):
            annotations[name] = value
    return {Symbol(name): value for name, value in annotations.items()}


def _auth_method(event: Event, identity: Identity | None) -> str:
    kind = identity.authentication_type if identity else "sas"
    scope = "module" if event.source_id.module_id else "device"
    is_certificate = kind in ("selfSigned", "certificateAuthority")
    issuer = "external" if is_certificate else "iothub"
    text = "x509Certificate" if is_certificate else "sas"
    return f'{{"scope":"{scope}","type":"{text}","issuer":"{issuer}","acceptingIpFilterRule":null}}'


def _properties(system: dict[str, str]) -> Properties | None:
    """Only what the device has set."""
    user_id, expires = system.get("userId"), system.get("expiryTimeUtc")
    properties = Properties(
        message_id=system.get("messageId"),
        user_id=user_id.encode(errors="replace") if user_id is not None else None,
        to=system.get("to"),
        correlation_id=system.get("correlationId"),
        content_type=_ascii(system.get("contentType")),
        content_encoding=_ascii(system.get("contentEncoding")),
        absolute_expiry_time_ms=_milliseconds(expires) if expires else None,
    )
    return None if properties == Properties() else properties


def _ascii(text: str | None) -> str | None:
    """These are symbols in AMQP, and symbols are ASCII."""
    return None if text is None else text.encode("ascii", errors="replace").decode()


def _milliseconds(text: str) -> int | None:
    """A device may write what it likes there; what is no time is left out."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        return None
