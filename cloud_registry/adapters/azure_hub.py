"""The hub's service side through Microsoft's azure-iot-hub, unmodified: for Azure, and for whatever speaks like it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cloud_registry.errors import (
    ConflictError,
    HubError,
    HubUnreachableError,
    NotFoundError,
    RegistryError,
    TrustError,
    UsageError,
)
from cloud_registry.ports import ModuleTwin

# A hub that does not answer is reported within this time; the rollout goes on at a later tick.
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 15.0
QUERY_PAGE_ITEMS = 1000  # the service's own limit
CONFIGURATIONS_MAX = 100  # as many as a hub may have; a list of them has no pages

_Result = TypeVar("_Result")


class AzureHub:
    """A FleetHub and a DeploymentHub. The SDK is loaded and the connection made at first use.

    A CA file is used for this client alone; nothing is put into the environment of the process.
    """

    def __init__(self, connection_string: str, ca_file: Path | None = None) -> None:
        self._connection_string = connection_string
        self._ca_file = ca_file
        self._manager: Any = None

    def device_ids(self, condition: str) -> Sequence[str]:
        # The condition is the user's own, for a read that their key allows anyway.
        where = "" if condition.strip() in ("", "*") else f" WHERE {condition}"
        try:
            return [item.device_id for item in self._query(f"SELECT deviceId FROM devices{where}")]  # noqa: S608
        except HubError as err:
            if err.status != 400 or not where:
                raise
            raise UsageError(
                f"the hub does not understand the target {condition!r}: {err.message}",
                hint="Write an IoT Hub condition, for example: --target \"tags.site = 'north'\"",
            ) from err

    def module_twins(self, module_id: str) -> Sequence[ModuleTwin]:
        quoted = module_id.replace("'", "''")
        query = f"SELECT * FROM devices.modules WHERE moduleId = '{quoted}'"  # noqa: S608
        return [_module_twin(item) for item in self._query(query)]

    def module_twin(self, device_id: str, module_id: str) -> ModuleTwin:
        doing = f"reading the twin of {device_id}/{module_id}"
        return _module_twin(self._call(doing, lambda manager: manager.get_module_twin(device_id, module_id)))

    def patch_desired(self, device_id: str, module_id: str, patch: dict[str, Any], etag: str = "") -> None:
        from azure.iot.hub.models import Twin, TwinProperties

        twin = Twin(properties=TwinProperties(desired=patch))
        self._call(
            f"writing the twin of {device_id}/{module_id}",
            lambda manager: manager.update_module_twin(device_id, module_id, twin, etag or None),
        )

    def invoke_method(self, device_id: str, module_id: str, name: str, payload: Any, timeout_s: int) -> Any:
        from azure.iot.hub.models import CloudToDeviceMethod

        # The SDK cannot tell "no payload" from null; the hub takes an empty text for it.
        request = CloudToDeviceMethod(
            method_name=name,
            payload="" if payload is None else payload,
            response_timeout_in_seconds=timeout_s,
            connect_timeout_in_seconds=0,
        )
        doing = f"calling {name} on {device_id}/{module_id}"
        read_timeout_s = timeout_s + READ_TIMEOUT_S
        result = self._call(
            doing,
            lambda manager: manager.protocol.modules.invoke_method(
                device_id, module_id, request, timeout=(CONNECT_TIMEOUT_S, read_timeout_s)
            ),
            is_repeatable=False,
        )
        if result.status is not None and result.status >= 400:
            raise HubError(f"{doing}: the device answered {result.status}", status=result.status)
        return result.payload

    def device_twins(self, *, edge_only: bool = False) -> Sequence[Mapping[str, Any]]:
        where = " WHERE capabilities.iotEdge = true" if edge_only else ""
        return [item.serialize(keep_readonly=True) for item in self._query(f"SELECT * FROM devices{where}")]  # noqa: S608

    def device_twin(self, device_id: str) -> Mapping[str, Any]:
        twin = self._call(f"reading the twin of {device_id}", lambda manager: manager.get_twin(device_id))
        document: dict[str, Any] = twin.serialize(keep_readonly=True)
        return document

    def configurations(self) -> Sequence[Mapping[str, Any]]:
        doing = "asking the hub for its configurations"
        found = self._call(doing, lambda manager: manager.protocol.configuration.get_configurations(CONFIGURATIONS_MAX))
        return [item.serialize(keep_readonly=True) for item in found]

    def _query(self, text: str) -> Iterator[Any]:
        from azure.iot.hub.models import QuerySpecification

        token: str | None = None
        while True:
            specification = QuerySpecification(query=text)
            page = self._call("asking the hub for its devices", _page_reader(specification, token))
            yield from page.items or ()
            token = page.continuation_token
            if not token:
                return

    def _call(self, doing: str, action: Callable[[Any], _Result], *, is_repeatable: bool = True) -> _Result:
        """Call the SDK and turn its errors into ours.

        A connection kept from an earlier call may have been closed by the hub meanwhile, so that a repeatable call is
        made once more; nothing else is retried here.
        """
        from msrest.exceptions import ClientException, ClientRequestError, HttpOperationError

        manager = self._open()
        for is_last in (not is_repeatable, True):
            try:
                return action(manager)
            except HttpOperationError as err:
                raise _refusal(doing, err.response) from err
            except ClientRequestError as err:
                if is_last or not _is_stale_connection(err.inner_exception):
                    raise _unreachable(doing, self._host_name(), err.inner_exception) from err
            except ClientException as err:
                raise HubError(f"{doing}: the hub's answer could not be read ({err})") from err
        raise AssertionError("unreachable")

    def _open(self) -> Any:
        if self._manager is not None:
            return self._manager
        if self._ca_file is not None and not self._ca_file.is_file():
            raise UsageError(f"the CA file {self._ca_file} is not there", hint="Set SLIPWAY_CA_FILE to the hub's CA.")
        from azure.iot.hub import IoTHubRegistryManager

        try:
            manager = IoTHubRegistryManager.from_connection_string(self._connection_string)
        except (ValueError, KeyError):
            # Not chained: a parser's message may hold the text, and with it the key.
            raise UsageError(
                "the hub's connection string cannot be read",
                hint="It looks like HostName=...;SharedAccessKeyName=...;SharedAccessKey=... with a base64 key. "
                "Set IOTHUB_CONNECTION_STRING.",
            ) from None
        config = manager.protocol.config
        config.connection.timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        if self._ca_file is not None:
            config.connection.verify = str(self._ca_file)
        # The SDK would retry a dead hub for many seconds, and hide the status of a busy one.
        config.retry_policy.retries = 0
        config.retry_policy.policy.status_forcelist = frozenset()
        config.keep_alive = True
        self._manager = manager
        return manager

    def _host_name(self) -> str:
        fields = dict(field.partition("=")[::2] for field in self._connection_string.split(";"))
        return fields.get("HostName", "the hub")


def _page_reader(specification: Any, token: str | None) -> Callable[[Any], Any]:
    return lambda manager: manager.query_iot_hub(specification, token, str(QUERY_PAGE_ITEMS))


def _module_twin(item: Any) -> ModuleTwin:
    properties = item.properties
    return ModuleTwin(
        device_id=item.device_id,
        module_id=item.module_id,
        is_connected=str(item.connection_state).lower() == "connected",
        desired=(properties.desired if properties else None) or {},
        reported=(properties.reported if properties else None) or {},
        etag=item.etag or "",
    )


def _refusal(doing: str, response: Any) -> RegistryError:
    status = int(response.status_code)
    seen = f"{doing}: the hub answered {status} {response.reason or ''}".rstrip()
    code = response.headers.get("iothub-errorcode")
    if code:
        seen += f" ({code})"
    if status in (401, 403) and code != "IotHubQuotaExceeded":
        return TrustError(
            seen, hint="The key or its policy is not accepted, or a clock is wrong: check IOTHUB_CONNECTION_STRING."
        )
    if status == 404 and code != "DeviceNotOnline":
        return NotFoundError(seen, hint="Check the device's name, and that it has the module.")
    if status == 412:
        return ConflictError(seen, hint="The twin changed meanwhile; it is read again.")
    if status == 429:
        return HubError(seen, hint="The hub's tier allows no more calls just now: wait a minute.", status=status)
    return HubError(seen, status=status)


def _unreachable(doing: str, host: str, cause: Any) -> RegistryError:
    import requests

    if isinstance(cause, requests.exceptions.SSLError):
        return TrustError(
            f"{doing}: the certificate of {host} is not trusted",
            hint="Set SLIPWAY_CA_FILE to the CA of the hub, and check that HostName is the name in its certificate.",
        )
    if isinstance(cause, requests.exceptions.Timeout):
        seen = f"{host} did not answer in time"
    elif "NameResolution" in repr(cause):
        seen = f"the name {host} is not known"
    else:
        seen = f"{host} cannot be reached"
    return HubUnreachableError(
        f"{doing}: {seen}", hint="Check that the hub runs, and the HostName in IOTHUB_CONNECTION_STRING."
    )


def _is_stale_connection(cause: Any) -> bool:
    import requests

    return (
        isinstance(cause, requests.exceptions.ConnectionError)
        and not isinstance(cause, requests.exceptions.SSLError | requests.exceptions.Timeout)
        and ("RemoteDisconnected" in repr(cause) or "ConnectionReset" in repr(cause) or "BrokenPipe" in repr(cause))
    )
