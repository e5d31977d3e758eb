"""What an operator may set of the store."""

from pydantic import BaseModel, ConfigDict, Field

DAY_S = 86400.0


class StoreOptions(BaseModel):
    """url: `sqlite:///PATH` or `postgresql://...`   prompts: whether their texts are kept, redacted

    exposures_days, outcomes_days, prompts_days: age at which `retention.prune` deletes
    feedback_days: age of a request at which no outcome is taken for it any more
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = "sqlite:///tta.db"
    prompts: bool = False
    exposures_days: float = Field(90, gt=0)
    outcomes_days: float = Field(90, gt=0)
    prompts_days: float = Field(7, gt=0)
    feedback_days: float = Field(7, gt=0)
