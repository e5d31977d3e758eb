"""Prompts are stored without personal data, whatever characters they have."""

import time

import pytest
from sqlalchemy import select

from tta_serve.store import prompts
from tta_serve.store.database import Database
from tta_serve.store.options import StoreOptions
from tta_serve.store.records import PromptText
from tta_serve.store.redact import redact
from tta_serve.store.schema import prompts as prompts_table


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Write to anna.k+spam@mail.example.org, today.", "Write to [EMAIL], today."),
        ("<jürgen@müller.example> and o'neil@x.co", "<[EMAIL]> and o'[EMAIL]"),
        ("a@b is no address and neither is @name", "a@b is no address and neither is @name"),
        ("Call +49 (0)89 1234-5678 or 030/1234567.", "Call [PHONE] or [PHONE]."),
        ("Call (555) 010-4477 now", "Call [PHONE] now"),
        ("phone:+4915112345678", "phone:[PHONE]"),
        ("0151 2345678", "[PHONE]"),
        ("Card 4111 1111 1111 1111 please", "Card [CARD] please"),
        ("4111-1111-1111-1111, 378282246310005", "[CARD], [CARD]"),
        ("4111 1111 1111 1112", "[NUMBER]"),
        ("IBAN DE89 3704 0044 0532 0130 00 it is", "IBAN [IBAN] it is"),
        ("GB29NWBK60161331926819", "[IBAN]"),
        ("de89370400440532013000", "de[NUMBER]"),
        (
            "Order 1234567 of 2024, 123456 pieces at 12.50",
            "Order [NUMBER] of 2024, 123456 pieces at 12.50",
        ),
        ("id ab12345678cd", "id ab[NUMBER]cd"),
        ("٠١٢٣٤٥٦٧٨٩", "[PHONE]"),
        ("SELECT name FROM staff WHERE salary > 70;", "SELECT name FROM staff WHERE salary > 70;"),
        ("1\n2\n3\n4\n5\n6\n7\n8", "1\n2\n3\n4\n5\n6\n7\n8"),
    ],
)
def test_personal_data_become_labels(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "part",
    ["a", "a.", "a@", "@", "1", "1 ", "(", "AB12", "AB12 CDEF ", "a@b", "a@b-", "+", "1(((", "- "],
)
def test_a_long_text_takes_no_more_than_its_share_of_time(part: str) -> None:
    text = part * (400_000 // len(part))
    start = time.process_time()
    redact(text)
    assert time.process_time() - start < 2  # quadratic time would be minutes


def test_they_are_written_redacted(db: Database) -> None:
    rows = [PromptText("a", "I am anna@example.org\0", 5.0), PromptText("b", "half \ud83d", 6.0)]
    prompts.write(db, rows)
    prompts.write(db, [PromptText("a", "another", 7.0), PromptText("c", "é", 7.0)])
    with db.read() as connection:
        found = [
            tuple(row)
            for row in connection.execute(
                select(prompts_table).order_by(prompts_table.c.request_id)
            )
        ]
    assert found == [("a", "I am [EMAIL]\ufffd", 5.0), ("b", "half ?", 6.0), ("c", "é", 7.0)]


def test_they_are_not_kept_unless_somebody_asks() -> None:
    assert not StoreOptions().prompts
