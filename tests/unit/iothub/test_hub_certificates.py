"""Certificates: which are let in by thumbprint, which by an authority, and what is said to the others."""

import datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hub_worlds import HOST, Client, World
from hypothesis import given
from hypothesis import strategies as st

from simulators.iothub.core.certificates import (
    AUTHORITIES_MAX,
    Authorities,
    ShownCertificate,
    plain_thumbprint,
    read_certificate,
    thumbprints_of,
)
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.device_certificates import Authority, KeyPair, make_authority, make_device_certificate
from simulators.iothub.wire.client import Connected, Event, Refused
from simulators.iothub.wire.mqtt import ConnackCode

NOW = datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)
NOON = NOW.timestamp()
DAY_S = 86_400
DAY = datetime.timedelta(days=1)
ROOT = make_authority("root", NOW)
LINE = make_authority("line", NOW, issuer=ROOT)
TWIN_ROOT = make_authority("root", NOW)


def ders(*parts: KeyPair | Authority) -> tuple[bytes, ...]:
    found = []
    for part in parts:
        content = part.certificate if isinstance(part, KeyPair) else part.pem.encode()
        found += [entry.public_bytes(Encoding.DER) for entry in x509.load_pem_x509_certificates(content)]
    return tuple(dict.fromkeys(found))


def shown(*parts: KeyPair | Authority) -> ShownCertificate:
    return ShownCertificate.read(ders(*parts))


D1 = make_device_certificate("d1", NOW)
UNDER_ROOT = make_device_certificate("d1", NOW, ROOT)
UNDER_LINE = make_device_certificate("d1", NOW, LINE)
SHORT_ROOT = make_authority("short", NOW, 2 * DAY)
UNDER_SHORT = make_device_certificate("d1", NOW, SHORT_ROOT)

CHAINS: dict[str, tuple[ShownCertificate, list[Authority], float, str | None]] = {
    "issued by the authority": (shown(UNDER_ROOT), [ROOT], NOON, None),
    "issued by an authority under it": (shown(UNDER_LINE), [ROOT], NOON, None),
    "the authority in the middle is the registered one": (shown(UNDER_LINE), [LINE], NOON, None),
    "one authority of several": (shown(UNDER_ROOT), [TWIN_ROOT, LINE, ROOT], NOON, None),
    "self-signed": (shown(D1), [ROOT], NOON, "no registered authority"),
    "no authority is registered": (shown(UNDER_ROOT), [], NOON, "no registered authority"),
    "an authority of the same name": (shown(UNDER_ROOT), [TWIN_ROOT], NOON, "no registered authority"),
    "the link in the middle is missing": (
        ShownCertificate(shown(UNDER_LINE).own, ()),
        [ROOT],
        NOON,
        "no registered authority",
    ),
    "a day too early": (shown(UNDER_ROOT), [ROOT], NOON - 2 * DAY_S, "begins at 2023-11-13 22:13:20"),
    "after its end": (shown(UNDER_ROOT), [ROOT], NOON + 396 * DAY_S, "'d1' ended at 2024-12-14 22:13:20"),
    "after the end of its authority": (shown(UNDER_SHORT), [SHORT_ROOT], NOON + DAY_S, "'short' ended at"),
}


@pytest.mark.parametrize("story", CHAINS)
def test_a_certificate_leads_to_an_authority(story: str) -> None:
    certificate, authorities, now, refusal = CHAINS[story]
    anchors = [authority.certificate for authority in authorities]
    if refusal is None:
        assert certificate.check_issued_under(anchors, now) in anchors
        return
    with pytest.raises(ServiceError, match=refusal) as refused:
        certificate.check_issued_under(anchors, now)
    assert refused.value.fault is Fault.IotHubUnauthorizedAccess


SHA1, SHA256 = thumbprints_of(ders(D1)[0])
THUMBPRINTS: dict[str, tuple[tuple[str | None, ...], float, bool]] = {
    "SHA-1": ((SHA1, None), NOON, True),
    "SHA-256, the second of two": (("AB" * 20, SHA256), NOON, True),
    "in small letters with colons": ((":".join(SHA1[i : i + 2] for i in range(0, 40, 2)).lower(), None), NOON, True),
    "another": (("AB" * 20, "CD" * 32), NOON, False),
    "none": ((None, None), NOON, False),
    "an empty one": (("", ""), NOON, False),
    "its own, after its end": ((SHA1, None), NOON + 397 * DAY_S, False),
}


@pytest.mark.parametrize("story", THUMBPRINTS)
def test_a_thumbprint_lets_in(story: str) -> None:
    registered, now, is_let_in = THUMBPRINTS[story]
    if is_let_in:
        shown(D1).check_thumbprint(registered, now)
        return
    with pytest.raises(ServiceError):
        shown(D1).check_thumbprint(registered, now)


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_any_bytes_are_a_certificate_or_a_refusal(parts: list[bytes]) -> None:
    with pytest.raises(ServiceError):
        ShownCertificate.read(tuple(parts))


@given(st.one_of(st.text(max_size=200), st.none(), st.integers(), st.binary(max_size=9)))
def test_any_text_is_a_certificate_or_a_refusal(text: Any) -> None:
    plain_thumbprint(text)
    with pytest.raises(ServiceError):
        read_certificate(text, "it")


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_certificate_with_a_changed_byte_is_never_believed(position: int, change: int) -> None:
    der = bytearray(ders(UNDER_ROOT)[0])
    position %= len(der)
    if der[position] == change:
        return
    der[position] = change
    with pytest.raises(ServiceError):
        ShownCertificate.read((bytes(der),)).check_issued_under([ROOT.certificate], NOON)


def test_a_name_of_a_kind_that_does_not_exist_is_a_refusal() -> None:
    der = ders(D1)[0]
    # The common name's type, a UTF8String, becomes a BIT STRING.
    broken = der.replace(b"\x06\x03\x55\x04\x03\x0c", b"\x06\x03\x55\x04\x03\x03")
    assert broken != der
    with pytest.raises(ServiceError, match="cannot be read"):
        ShownCertificate.read((broken,))


def test_a_hub_keeps_its_authorities_and_tells_of_each_change() -> None:
    touched: list[str] = []
    authorities = Authorities(touched.append)
    authorities.put("a", {"properties": {"certificate": ROOT.pem}}, NOON)
    authorities.put("b", {"properties": {"certificate": LINE.pem}}, NOON)
    authorities.delete("b")
    assert (touched, authorities.record("b")) == (["a", "b", "b"], None)
    restored = Authorities()
    restored.restore("a", authorities.record("a"))
    assert restored.documents() == authorities.documents()
    assert list(restored.certificates()) == [ROOT.certificate]
    assert restored.put("c", {"properties": {"certificate": LINE.pem}}, NOON)["etag"] != restored.get("a")["etag"]


def test_a_hub_has_room_for_so_many_authorities_and_no_more() -> None:
    authorities = Authorities()
    for number in range(AUTHORITIES_MAX):
        authorities.put(f"a{number}", {"properties": {"certificate": ROOT.pem}}, NOON)
    authorities.put("a0", {"properties": {"certificate": LINE.pem}}, NOON)
    with pytest.raises(ServiceError, match="at most"):
        authorities.put("more", {"properties": {"certificate": ROOT.pem}}, NOON)


def login(world: World, device_id: str, certificates: tuple[bytes, ...], password: bytes | None = None) -> list[Event]:
    user = f"{HOST}/{device_id}/?api-version=1"
    client = Client(world, IdentityId("d3"))
    return client.connect(certificates=certificates, client_id=device_id, username=user, password=password)


def test_an_identity_is_let_in_by_the_proof_that_it_was_registered_with_and_by_no_other() -> None:
    world = World()
    world.hub.authorities.put("factory", {"properties": {"certificate": ROOT.pem}}, NOON)
    thumbprint = {"x509Thumbprint": {"primaryThumbprint": SHA1}}
    world.register("d1", authentication={"type": "selfSigned", **thumbprint})
    world.register("d2", authentication={"type": "certificateAuthority"})
    world.register("d3")
    d2 = make_device_certificate("d2", NOW, ROOT)
    accepted, refused = [Connected(is_session_present=False)], [Refused(ConnackCode.NOT_AUTHORIZED)]
    assert login(world, "d1", ders(D1)) == accepted
    assert login(world, "d2", ders(d2)) == accepted
    assert login(world, "d1", ders(d2)) == refused
    assert login(world, "d2", ders(UNDER_ROOT)) == refused
    assert login(world, "d3", ders(D1)) == refused
    assert login(world, "d1", ()) == refused
    # Who has a password is judged by it.
    assert login(world, "d1", ders(D1), password=b"SharedAccessSignature sr=x&sig=y&se=1") == refused
