"""What all sections of a config are."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the config; an unknown key in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
