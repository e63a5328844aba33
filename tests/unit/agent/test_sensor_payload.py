"""What messages, rows and files say: tensors by name, or a sentence about what is wrong."""

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.core.payload import TensorRules, read_npy, read_payload, tensors_of_row
from device_agent.core.topics import check_pattern, check_template, matches, topic_filter, topic_of, wants
from device_agent.errors import ConfigurationError, UnreadableReadingError
from tests.tiny_models import npz

SIZE_MAX = 100_000
PLAIN = TensorRules()


def npy(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def read(body: bytes | str, rules: TensorRules = PLAIN):
    payload = read_payload(body.encode() if isinstance(body, str) else body, rules, SIZE_MAX)
    return payload.id, {name: (str(array.dtype), array.tolist()) for name, array in payload.tensors.items()}


FEATURES = TensorRules({"features": ("t", "h"), "mode": ("m",)}, "float32")

UNDERSTOOD = {
    "a number": ("21.5", PLAIN, ("", {"value": ("float64", [21.5])})),
    "a whole number": (" 7\n", PLAIN, ("", {"value": ("int64", [7])})),
    "an array": ("[1, 2.5]", PLAIN, ("", {"value": ("float64", [1, 2.5])})),
    "an array of arrays": ("[[1,2],[3,4]]", PLAIN, ("", {"value": ("int64", [[1, 2], [3, 4]])})),
    "numbers apart": ("1.5, 2;3 4", PLAIN, ("", {"value": ("float64", [1.5, 2, 3, 4])})),
    "an object": ('{"a": 1, "b": [2.5]}', PLAIN, ("", {"a": ("int64", [1]), "b": ("float64", [2.5])})),
    "an object with an id": ('{"id": "r7", "inputs": {"a": 1}}', PLAIN, ("r7", {"a": ("int64", [1])})),
    "a field that is called id": ('{"id": 7, "x": 1}', PLAIN, ("", {"id": ("int64", [7]), "x": ("int64", [1])})),
    "text": ('{"a": ["x", "yy"]}', PLAIN, ("", {"a": ("<U2", ["x", "yy"])})),
    "truth": ("[true, false]", PLAIN, ("", {"value": ("bool", [True, False])})),
    "a type": ("[1, 2]", TensorRules(dtype="uint8"), ("", {"value": ("uint8", [1, 2])})),
    "whole floats as a whole type": ("[1.0]", TensorRules(dtype="int8"), ("", {"value": ("int8", [1])})),
    "fields put together": (
        '{"t": 1, "h": 2, "m": [3], "more": "x"}',
        FEATURES,
        ("", {"features": ("float32", [1, 2]), "mode": ("float32", [3])}),
    ),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_text_is_understood(name):
    body, rules, expected = UNDERSTOOD[name]
    assert read(body, rules) == expected


REFUSED = {
    "nothing": ("", PLAIN, "neither JSON"),
    "words": ("hello", PLAIN, "neither JSON"),
    "no number": ("NaN", PLAIN, "neither JSON"),
    "a number beyond all": ("[1e999]", PLAIN, "neither JSON|no finite number"),
    "null": ('{"a": null}', PLAIN, "'a' holds something that is no number"),
    "an object in an object": ('{"a": {"b": 1}}', PLAIN, "'a' holds something that is no number"),
    "an empty object": ("{}", PLAIN, "no value"),
    "an empty object with an id": ('{"id": "x", "inputs": {}}', PLAIN, "no value"),
    "rows of different lengths": ("[[1],[2,3]]", PLAIN, "'value' is no array"),
    "a missing field": ('{"t": 1, "m": 2}', FEATURES, "no 'h', which tensor 'features'"),
    "too much for the type": ("[256]", TensorRules(dtype="uint8"), "uint8 cannot hold"),
    "a fraction for a whole type": ("[1.5]", TensorRules(dtype="int32"), "int32 cannot hold"),
    "text for a number": ('["a"]', TensorRules(dtype="float32"), "text where float32"),
    "deep nesting": ("[" * 5000 + "]" * 5000, PLAIN, "."),
    "a huge number": ("[" + "9" * 400 + "]", PLAIN, "."),
    "no array at all": (b"\x93NUMPY\x01\x00\x04\x00what", PLAIN, r"no \.npy array"),
    "an unknown format version": (b"\x93NUMPY\x09\x00" + bytes(20), PLAIN, r"no \.npy array"),
    "a broken archive": (b"PK\x03\x04 nothing", PLAIN, r"no \.npz file"),
    "too many bytes": (b"1" * (SIZE_MAX + 1), PLAIN, "the most is 100,000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_reading_is_refused_in_words(name):
    body, rules, words = REFUSED[name]
    with pytest.raises(UnreadableReadingError, match=words):
        read(body, rules)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_keep_type_and_order(version, order):
    array = np.asarray(np.arange(24, dtype="<i2").reshape(2, 3, 4), order=order)
    tensors = read_payload(npy(array, version=version), PLAIN, SIZE_MAX).tensors
    assert tensors["value"].dtype == np.int16
    assert np.array_equal(tensors["value"], array)


def test_arrays_of_an_archive_come_by_name():
    tensors = read_payload(npz(input__a=np.ones(3), b=np.zeros((2, 2))), PLAIN, SIZE_MAX).tensors
    assert {name: array.shape for name, array in tensors.items()} == {"a": (3,), "b": (2, 2)}


def test_a_header_that_promises_the_moon_allocates_nothing():
    body = npy(np.zeros(8)).replace(b"(8,)", b"(9999999999999,)").replace(b" " * 12 + b"\n", b"\n")
    with pytest.raises(UnreadableReadingError, match=r"float64 \[9999999999999\], but 64 bytes follow"):
        read_npy(body)


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(10 * SIZE_MAX))
    assert len(file.getvalue()) < SIZE_MAX / 10
    with pytest.raises(UnreadableReadingError, match="unpacks to 1,000,000"):
        read_payload(file.getvalue(), PLAIN, SIZE_MAX)


def test_objects_are_never_unpickled():
    with pytest.raises(UnreadableReadingError, match="Python objects"):
        read_npy(npy(np.array([{}], dtype=object)))


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda tail: npy(np.arange(6.0))[:-8] + tail))
def test_noise_is_a_reading_or_an_error_in_words(body):
    try:
        tensors = read_payload(body, PLAIN, SIZE_MAX).tensors
    except UnreadableReadingError:
        return
    assert all(isinstance(array, np.ndarray) for array in tensors.values())


@given(
    st.recursive(st.floats(allow_nan=False, allow_infinity=False, width=32), lambda inner: st.lists(inner, max_size=3))
)
def test_what_numpy_takes_for_an_array_comes_through_json_unharmed(value):
    try:
        expected = np.atleast_1d(np.array(value))
    except ValueError:
        return
    if expected.dtype == object:
        return
    tensors = read_payload(json.dumps(value).encode(), PLAIN, SIZE_MAX).tensors
    assert np.array_equal(tensors["value"], expected)


def test_a_row_is_one_tensor_unless_it_is_said_otherwise():
    row = {"t": "1.5", "h": " 2 ", "note": "hot"}
    with pytest.raises(UnreadableReadingError, match="column 'note' holds 'hot'"):
        tensors_of_row(row, PLAIN)
    del row["note"]
    assert tensors_of_row(row, PLAIN)["value"].tolist() == [1.5, 2.0]
    by_name = tensors_of_row(row, TensorRules({"a": ("h",), "b": ("h", "t")}, "float32"))
    assert {name: array.tolist() for name, array in by_name.items()} == {"a": [2.0], "b": [2.0, 1.5]}
    with pytest.raises(UnreadableReadingError, match="column 't' holds ''"):
        tensors_of_row({"h": "1"}, TensorRules({"b": ("h", "t")}))


# Topics ---------------------------------------------------------------------------------------------------------------

# The examples of MQTT 3.1.1 §4.7.1, and a few of our own.
MATCHING = [
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/#", "sport", True),
    ("#", "a/b", True),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+", "/finance", False),
    ("#", "$SYS/uptime", False),
    ("+/uptime", "$SYS/uptime", False),
    ("$SYS/#", "$SYS/uptime", True),
    ("a/b", "a/B", False),
]


@pytest.mark.parametrize(("pattern", "topic", "expected"), MATCHING)
def test_patterns_match_as_the_standard_says(pattern, topic, expected):
    assert matches(pattern, topic) is expected


@pytest.mark.parametrize("pattern", ["", "a/#/b", "a#", "a/b+", "+a/b", "a\0b", "$share/group"])
def test_a_wrong_pattern_is_told(pattern):
    with pytest.raises(ConfigurationError) as caught:
        topic_filter(pattern)
    assert caught.value.hint


def test_a_shared_subscription_is_compared_without_its_head():
    assert topic_filter("$share/agents/line/+") == "line/+"
    assert check_pattern("line/+/#") == topic_filter("line/+/#")


@pytest.mark.parametrize("template", ["", "a/{devcie}", "a/#", "a/{", "a/{model", "a/{0}"])
def test_a_wrong_template_is_told(template):
    with pytest.raises(ConfigurationError) as caught:
        check_template(template)
    assert "{device}" in caught.value.hint


def test_a_name_stays_within_its_level():
    assert topic_of("s/{device}/{module}/{model}", {"device": "a/b+c#", "model": "m"}) == "s/a_b_c_//m"


def test_a_model_may_want_files_by_their_name():
    assert wants("left-*.npy", "left-01.npy", is_topic=False)
    assert not wants("left-*.npy", "right-01.npy", is_topic=False)
