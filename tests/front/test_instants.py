"""RFC 3339 in and out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteus_shards.core.model import TIME_US_MAX
from proteus_shards.front.instants import read_instant, write_instant

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "instant_us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01 00:00:00+00:00", 0),
        ("1970-01-01T00:00:00-00:00", 0),
        ("1970-01-01T00:00:00.1Z", 100_000),
        ("1970-01-01T00:00:00.1234567899Z", 123_456),
        ("1970-01-01T01:30:00+01:30", 0),
        ("1969-12-31T00:01:00-23:59", 0),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2000-02-29T12:00:00Z", 951_825_600_000_000),
        ("9999-12-31T23:59:59.999999Z", TIME_US_MAX),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000),
        ("2016-12-31T23:59:60.9Z", 1_483_228_800_000_000),
        ("2017-01-01T00:59:60+01:00", 1_483_228_800_000_000),
    ],
)
def test_a_time_is_read_to_the_microsecond(text: str, instant_us: int) -> None:
    """With any offset; a leap second is the instant after it."""
    assert read_instant(text) == instant_us


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2030-01-31",
        "2030-01-31T09:30:00",
        "2030-01-31T09:30Z",
        "2030-01-31T09:30:00.Z",
        "2030-01-31T09:30:00,5Z",
        "2030-01-31T09:30:00+0100",
        "2030-01-31T09:30:00+01",
        "2030-01-31T09:30:00+24:00",
        "2030-01-31T09:30:00+01:60",
        "2030-01-31T09:30:00 Z",
        "2030-01-31T09:30:00Z\n",
        " 2030-01-31T09:30:00Z",
        "2030-02-30T09:30:00Z",
        "2030-13-01T09:30:00Z",
        "2030-01-31T24:00:00Z",
        "2030-01-31T09:60:00Z",
        "2030-01-31T09:30:61Z",
        "2030-01-31T09:30:60Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "9999-12-31T23:59:60Z",
        "10000-01-01T00:00:00Z",
        "-001-01-01T00:00:00Z",
        "٢٠٣٠-01-31T09:30:00Z",
        "1896082200",
        "2030-W05-4T09:30:00Z",
    ],
)
def test_what_is_no_rfc_3339_time_is_none(text: str) -> None:
    """An offset is required, and a date that no calendar has is none."""
    assert read_instant(text) is None


@given(st.datetimes(timezones=st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))))
def test_a_time_that_was_read_is_the_same_instant_when_written(moment: datetime) -> None:
    """In UTC."""
    instant_us = read_instant(moment.isoformat())
    if instant_us is None:  # outside the years 1…9999 in UTC
        assert moment.year in (1, 9999)
        return

    text = write_instant(instant_us)

    assert datetime.fromisoformat(text) == moment
    assert read_instant(text) == instant_us
    assert (len(text), text[-1]) == (27, "Z")


@given(st.text())
def test_no_text_raises(text: str) -> None:
    """Anything may be asked."""
    read_instant(text)


def test_an_instant_outside_the_years_that_can_be_written_is_the_nearest_one() -> None:
    """No view fails because of one."""
    assert ["0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z"] == [write_instant(instant) for instant in (-(2**62), 2**62)]
