"""What is answered to ranged and conditional requests, case by case of RFC 9110."""

import pytest

from cloud_registry.core.http_ranges import Answer, answer

TAG = "sha256:abc"
SIZE = 10
WHOLE = Answer(200, 0, 10)

CASES = {
    "nothing special": ({}, WHOLE),
    "the first bytes": ({"range": "bytes=0-3"}, Answer(206, 0, 4)),
    "from somewhere on": ({"range": "bytes=4-"}, Answer(206, 4, 10)),
    "the last bytes": ({"range": "bytes=-3"}, Answer(206, 7, 10)),
    "more last bytes than there are": ({"range": "bytes=-99"}, Answer(206, 0, 10)),
    "an end behind the file's": ({"range": "bytes=8-99"}, Answer(206, 8, 10)),
    "a single byte": ({"range": "bytes=9-9"}, Answer(206, 9, 10)),
    "a start behind the end": ({"range": "bytes=10-"}, Answer(416)),
    "no last bytes": ({"range": "bytes=-0"}, Answer(416)),
    "a range from back to front is no range": ({"range": "bytes=5-3"}, WHOLE),
    "several ranges are answered in full": ({"range": "bytes=0-1,4-5"}, WHOLE),
    "another unit is ignored": ({"range": "lines=1-2"}, WHOLE),
    "nonsense is ignored": ({"range": "bytes=a-b"}, WHOLE),
    "an empty range is ignored": ({"range": "bytes=-"}, WHOLE),
    "a number without end is ignored": ({"range": "bytes=0-" + "9" * 40}, WHOLE),
    "blanks and capitals do not matter": ({"range": " Bytes = 0 - 3 "}, Answer(206, 0, 4)),
    "if the range's file is this one": ({"range": "bytes=4-", "if-range": '"sha256:abc"'}, Answer(206, 4, 10)),
    "if the range's file was another": ({"range": "bytes=4-", "if-range": '"sha256:old"'}, WHOLE),
    "a weak tag vouches for no bytes": ({"range": "bytes=4-", "if-range": 'W/"sha256:abc"'}, WHOLE),
    "a date vouches for no bytes": ({"range": "bytes=4-", "if-range": "Sat, 21 Nov 2026 00:00:00 GMT"}, WHOLE),
    "the file is known": ({"if-none-match": '"sha256:abc"'}, Answer(304)),
    "the file is known, told weakly": ({"if-none-match": 'W/"sha256:abc"'}, Answer(304)),
    "the file is one of several known": ({"if-none-match": '"x", "sha256:abc"'}, Answer(304)),
    "any file is known": ({"if-none-match": "*"}, Answer(304)),
    "other files are known": ({"if-none-match": '"x"'}, WHOLE),
    "a known file wins over a range": ({"if-none-match": '"sha256:abc"', "range": "bytes=0-1"}, Answer(304)),
    "a tag without quotes is no tag": ({"if-none-match": "sha256:abc"}, WHOLE),
}


@pytest.mark.parametrize("story", CASES)
def test_what_is_asked_for_decides_what_is_sent(story: str):
    headers, expected = CASES[story]
    assert answer(headers, TAG, SIZE) == expected


def test_content_range_tells_both_ends_and_the_size():
    assert Answer(206, 4, 10).content_range(10) == "bytes 4-9/10"
    assert Answer(416).content_range(10) == "bytes */10"
    assert Answer(200, 0, 10).content_range(10) is None


def test_of_an_empty_file_no_range_can_be_had():
    assert answer({"range": "bytes=0-"}, TAG, 0) == Answer(416)
    assert answer({"range": "bytes=-5"}, TAG, 0) == Answer(416)
    assert answer({}, TAG, 0) == Answer(200, 0, 0)
