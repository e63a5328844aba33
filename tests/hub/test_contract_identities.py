"""Identities, as every hub keeps them."""

import pytest
from azure.iot.hub.models import Twin

from tests.hub.conftest import refused

pytestmark = pytest.mark.wire


def test_a_device_is_made_once_read_changed_under_its_etag_and_deleted(registry, new_id):
    device_id = new_id()
    made = registry.create_device_with_sas(device_id, None, None, "enabled")
    assert (made.device_id, made.status, made.connection_state) == (device_id, "enabled", "Disconnected")
    assert made.authentication.type == "sas"
    assert refused(lambda: registry.create_device_with_sas(device_id, None, None, "enabled")) == (409, "Conflict")
    keys = made.authentication.symmetric_key
    changed = registry.update_device_with_sas(
        device_id, made.etag, keys.primary_key, keys.secondary_key, "disabled", status_reason="lost"
    )
    assert (changed.status, changed.status_reason) == ("disabled", "lost")
    assert changed.generation_id == made.generation_id
    assert changed.etag != made.etag
    assert refused(lambda: registry.delete_device(device_id, made.etag)) == (412, "Precondition Failed")
    assert registry.get_device(device_id).etag == changed.etag
    registry.delete_device(device_id, changed.etag)
    assert refused(lambda: registry.get_device(device_id)) == (404, "Not Found")


def test_a_device_made_again_under_its_name_is_another_generation(registry, new_id):
    device_id = new_id()
    first = registry.create_device_with_sas(device_id, None, None, "enabled")
    registry.update_twin(device_id, Twin(tags={"site": "north"}))
    registry.delete_device(device_id)
    second = registry.create_device_with_sas(device_id, None, None, "enabled")
    assert second.generation_id != first.generation_id
    assert registry.get_twin(device_id).tags is None


def test_a_device_with_a_certificate_has_no_keys(registry, new_id):
    made = registry.create_device_with_x509(new_id(), "A" * 40, "B" * 40, "enabled").authentication
    assert (made.type, made.symmetric_key.primary_key) == ("selfSigned", None)
    assert made.x509_thumbprint.primary_thumbprint == "A" * 40


def test_a_module_lives_on_its_device_and_goes_with_it(registry, new_id):
    device_id = new_id()
    missing = (404, "Not Found")
    assert refused(lambda: registry.create_module_with_sas(device_id, "m1", "", None, None)) == missing
    registry.create_device_with_sas(device_id, None, None, "enabled")
    made = registry.create_module_with_sas(device_id, "m1", "someone", None, None)
    assert (made.device_id, made.module_id, made.managed_by) == (device_id, "m1", "someone")
    assert [module.module_id for module in registry.get_modules(device_id)] == ["m1"]
    registry.delete_device(device_id)
    assert refused(lambda: registry.get_module(device_id, "m1")) == missing


def test_an_edge_device_brings_its_system_modules(registry, new_id):
    device_id = new_id()
    made = registry.create_device_with_sas(device_id, None, None, "enabled", iot_edge=True)
    assert made.capabilities.iot_edge is True
    modules = sorted(module.module_id for module in registry.get_modules(device_id))
    assert modules == ["$edgeAgent", "$edgeHub"]


@pytest.mark.parametrize("device_id", ["with space", "slash/ed", "x" * 129])
def test_what_is_no_id_is_refused(registry, device_id):
    status, _reason = refused(lambda: registry.create_device_with_sas(device_id, None, None, "enabled"))
    assert status in (400, 404)
