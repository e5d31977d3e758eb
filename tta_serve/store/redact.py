"""Personal data in texts, replaced by labels.

It takes rather too much than too little: numbers of 7 digits go, whatever they count. Every pattern
takes time linear in the text, since it runs beside requests.
"""

import re

_WORD = r"[^\s@,;:<>()\[\]\"'|]"
_EMAIL = re.compile(rf"(?<!{_WORD}){_WORD}++@[\w-]++(?:\.[\w-]++)+")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_DIGITS = re.compile(r"\+?\(?\d(?:[ \u00a0\u202f().–/-]{0,3}\d){6,}")


def redact(text: str) -> str:
    """Replace personal data by labels in brackets.

    That is e-mail addresses, IBANs, payment cards, telephone numbers and other long numbers.
    """
    return _DIGITS.sub(_label, _IBAN.sub("[IBAN]", _EMAIL.sub("[EMAIL]", text)))


def _label(match: re.Match[str]) -> str:
    found = match.group()
    digits = [int(character) for character in found if character.isdecimal()]
    if 13 <= len(digits) <= 19 and found[0] != "+" and _passes_luhn(digits):
        return "[CARD]"
    punctuated = len(digits) < len(found)
    if len(digits) <= 15 and (punctuated or digits[0] == 0):  # 15: the most that E.164 allows
        return "[PHONE]"
    return "[NUMBER]"


def _passes_luhn(digits: list[int]) -> bool:
    """Whether the check digit of a payment card is right.

    ISO/IEC 7812-1, annex B: every second digit is doubled, from the right.
    """
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[::-2]) + sum(doubled)) % 10 == 0
