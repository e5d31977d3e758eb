"""What an operator may set of the store."""

from pydantic import BaseModel, ConfigDict, Field

DAY_S = 86400.0


class StoreOptions(BaseModel):
    """The section `store` of the config."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    url: str = "sqlite:///tta.db"
    """The database: `sqlite:///PATH` or `postgresql://...`."""
    prompts: bool = False
    """Whether the texts of prompts are kept, redacted."""
    exposures_days: float = Field(90, gt=0)
    """The age at which an exposure is deleted."""
    outcomes_days: float = Field(90, gt=0)
    """The age at which an outcome is deleted."""
    prompts_days: float = Field(7, gt=0)
    """The age at which the text of a prompt is deleted."""
    feedback_days: float = Field(7, gt=0)
    """The age of a request at which no outcome is taken for it any more."""
