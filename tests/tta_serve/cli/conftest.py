"""What the tests of commands share."""

from tests.tta_serve.experiments.conftest import db  # noqa: F401 - a fixture
