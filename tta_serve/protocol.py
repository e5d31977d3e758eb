"""The `merge` field: what a request may ask, and what every answer says. And what an operator may ask of the policies."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from adapters.coefficient import Json
from adapters.gating import Gating
from router.policy import CoefficientField
from tta_serve.validation import explain_validation

_ONE_OF = "merge takes exactly one of: experts, policy, entry, preference"
_TOGETHER = ({"policy", "preference"}, {"policy", "preference", "read"}, {"read"})

Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RequestError(ValueError):
    """The client's mistake: becomes an OpenAI error with this status, message and parameter."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.headers = headers


class MergeRequest(BaseModel):
    """Exactly one of: explicit coefficients, a policy, a named entry of the library, a preference.

    preference: how much each task of a front matters, by name, in any unit; a policy may be named with it
    read: a text that policies are to read in place of the prompt; alone, or with a policy or a preference
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    experts: dict[str, CoefficientField] | None = None
    policy: str | None = None
    entry: str | None = None
    preference: dict[str, Share] | None = None
    read: Annotated[str, Field(min_length=1, max_length=1 << 20)] | None = None

    @field_validator("preference")
    @classmethod
    def _wants_something(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and not any(value.values()):
            raise ValueError("at least one share must be more than 0")
        return value

    @classmethod
    def parse(cls, value: Any) -> "MergeRequest":
        """Raises RequestError naming the fields there are."""
        try:
            merge = cls.model_validate(value)
        except ValidationError as error:
            message, place = explain_validation([{**one, "loc": ("merge", *one["loc"])} for one in error.errors()])
            raise RequestError(f"{message}; {_ONE_OF}", param=place or "merge") from None
        given = merge.model_dump(exclude_none=True).keys()
        if not (len(given - {"read"}) == 1 or given in _TOGETHER):
            raise RequestError(f"{_ONE_OF}; or a policy with a preference, or read alone", param="merge")
        if "read" in given and given & {"experts", "entry"}:
            raise RequestError("merge.read: experts and entry leave nothing to a policy to read", param="merge.read")
        return merge


class MergeInfo(BaseModel):
    """What was done with one request.

    arm: of the experiment that decided, as NAME/ARM   request_id: what POST /v1/feedback wants of such a request
    experts: the coefficients used; none is the base   mix: short hash of the mix, `base` for the base
    gating: how these experts share each token in each layer, instead of by their coefficients
    kept: the mix is that of an earlier turn   fallback: the policy that answered in place of `policy`, if one had to
    scores: of the best experts, in the policy's own units   reason: in words   router_ms: time until the mix was known
    warnings: what of the request was not heeded
    """

    policy: str
    arm: str | None = None
    request_id: str | None = None
    experts: dict[str, Json]
    mix: str
    gating: Gating | None = None
    abstained: bool = False
    kept: bool = False
    fallback: str | None = None
    scores: dict[str, float] = {}
    reason: str = ""
    router_ms: float = 0.0
    warnings: list[str] = []

    def headers(self) -> dict[str, str]:
        found = {"x-tta-policy": self.policy, "x-tta-arm": self.arm, "x-tta-mix": self.mix}
        return {name: value for name, value in found.items() if value is not None}


class ExplainRequest(BaseModel):
    """What would these policies, or all, do with a prompt."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(min_length=1, max_length=1 << 16)
    policies: list[str] | None = Field(None, min_length=1, max_length=64)


class Explained(BaseModel):
    """What one policy would do. floor: the score that an expert must reach   passes: rows that the engine ran for it"""

    policy: str
    experts: dict[str, Json]
    gating: Gating | None
    scores: dict[str, float]
    floor: float | None
    abstained: bool
    reason: str
    fallback: str | None
    router_ms: float
    passes: int
