"""What is known of files without torch agrees with those who read and write them."""

from typing import get_args

from adapters.files.delta_forms import Form
from adapters.files.facts import FORM_NAMES


def test_forms_have_the_names_that_manifests_may_hold() -> None:
    assert tuple(form.name for form in get_args(Form)) == FORM_NAMES
