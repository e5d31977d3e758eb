"""What all sections of a config, and of an experiment's definition, are."""

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, field_serializer


class Section(BaseModel):
    """A part of the config; an unknown key in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_serializer("*", mode="wrap", when_used="json")
    def _order_sets(self, value: Any, write: SerializerFunctionWrapHandler) -> Any:
        """Write a set in the order of its members: a set itself has another in each process."""
        return sorted(value) if isinstance(value, frozenset) else write(value)
