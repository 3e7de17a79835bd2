"""The limits of names."""

from __future__ import annotations

import pytest

from proteus_shards.core.model import Batch, RowKey, name_fault


@pytest.mark.parametrize(
    "name", ["a", " ", "x" * 1024, "\U0001f680" * 1024, "a/b?c#d%20", "\u202e", "\u00a0", "ä", "\uffff", "'; drop table jobs; --"]
)
def test_any_text_is_a_name(name: str) -> None:
    """Unicode, spaces and what other languages read as syntax are no fault."""
    assert name_fault(name) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "must not be empty"),
        ("x" * 1025, "must have at most 1024 characters, not 1025"),
        *(
            (f"a{control}b", "must not contain control characters or lone surrogates")
            for control in "\x00\t\n\r\x1b\x1f\x7f\x80\x9f\ud800\udbff\udc00\udfff"
        ),
    ],
)
def test_what_is_no_name_is_told(name: str, fault: str) -> None:
    """Nothing, too much, and what breaks logs, terminals or UTF-8."""
    assert name_fault(name) == fault


def test_the_length_of_a_batch_is_the_number_of_its_rows() -> None:
    """Deletes, inserts and marks together."""
    key = RowKey(0, 1, "q", "id")

    assert (len(Batch([], [], [])), len(Batch([key, key], [], []))) == (0, 2)
