import pytest

from cloud_registry.core.waves import Share, cohort_order, parse_waves, split
from cloud_registry.errors import UsageError

FLEET = [f"dev-{number:02d}" for number in range(1, 11)]

SIZES = {
    "one, a quarter, everyone": ("1,25%,100%", 10, [1, 2, 7]),
    "everyone at once": ("100%", 10, [10]),
    "counts only, the last above the fleet": ("2,5,1000", 10, [2, 3, 5]),
    "a share that adds nobody makes no wave": ("1,10%,100%", 10, [1, 9]),
    "a percentage is rounded up, so that it is never nobody": ("1%,50%,100%", 3, [1, 1, 1]),
    "half a percent of a large fleet": ("0.5%,100%", 1000, [5, 995]),
    "a fleet of one has one wave": ("1,25%,100%", 1, [1]),
}


@pytest.mark.parametrize("story", SIZES)
def test_sizes(story):
    text, count, sizes = SIZES[story]
    fleet = [f"d{number}" for number in range(count)]
    waves = split(fleet, parse_waves(text), "salt")
    assert [len(wave) for wave in waves] == sizes
    assert sorted(device for wave in waves for device in wave) == sorted(fleet)


REFUSED = {
    "it ends before everyone": ("1,50%", "5 of 10 devices would be left out"),
    "it does not grow": ("50%,25%,100%", "do not grow"),
    "it stands still": ("2,2,100%", "do not grow"),
    "a wave of nobody": ("0,100%", "a wave of 0 devices is none"),
    "a wave of no percent": ("0%,100%", "a wave of 0% devices is none"),
    "more than everyone": ("1,120%", "neither a count nor a percentage"),
    "a word": ("some,100%", "neither a count nor a percentage"),
    "a fraction": ("1/3%,100%", "neither a count nor a percentage"),
    "nothing": ("", "neither a count nor a percentage"),
    "a negative count": ("-1,100%", "neither a count nor a percentage"),
    "far too many waves": (",".join(str(n) for n in range(1, 60)), "59 waves are more than 50"),
}


@pytest.mark.parametrize("story", REFUSED)
def test_refused(story):
    text, said = REFUSED[story]
    with pytest.raises(UsageError, match=said):
        split(FLEET, parse_waves(text), "salt")


def test_the_same_fleet_gives_the_same_waves_in_whatever_order_it_is_listed():
    assert split(FLEET, parse_waves("1,25%,100%"), "digits:2") == split(
        list(reversed(FLEET)), parse_waves("1,25%,100%"), "digits:2"
    )
    # Written down once: a change of the hash would make other devices the canaries of a rollout under way.
    assert cohort_order(FLEET, "digits:2")[:3] == CANARIES


CANARIES = ["dev-08", "dev-04", "dev-02"]


def test_another_salt_makes_other_devices_the_canaries():
    canaries = {cohort_order(FLEET, f"digits:{version}")[0] for version in range(30)}
    assert len(canaries) > 5


def test_a_device_keeps_its_place_when_another_joins():
    before = cohort_order(FLEET, "s")
    after = cohort_order([*FLEET, "dev-99"], "s")
    assert [device for device in after if device != "dev-99"] == before


@pytest.mark.parametrize(("text", "total", "at_most", "at_least"), [("10%", 5, 0, 1), ("3", 2, 2, 2), ("50%", 3, 1, 2)])
def test_tolerance_is_rounded_down_and_need_is_rounded_up(text, total, at_most, at_least):
    share = Share.parse(text)
    assert (min(total, share.at_most(total)), share.at_least(total), str(share)) == (at_most, at_least, text)
