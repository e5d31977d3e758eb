"""The `merge` field: what a request may ask, and what every answer says."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError

from adapters.coefficient import Coefficient, Json, from_json

CoefficientField = Annotated[Coefficient, PlainValidator(from_json)]


class RequestError(ValueError):
    """The client's mistake: becomes an OpenAI error with this status, message and parameter."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


class MergeRequest(BaseModel):
    """Exactly one of: explicit coefficients, a policy, a named entry of the library."""

    model_config = ConfigDict(extra="forbid", strict=True)

    experts: dict[str, CoefficientField] | None = None
    policy: str | None = None
    entry: str | None = None

    @classmethod
    def parse(cls, value: Any) -> "MergeRequest":
        """Raises RequestError naming the fields there are."""
        fields = ", ".join(cls.model_fields)
        try:
            merge = cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(["merge", *map(str, first["loc"])])
            raise RequestError(
                f"{place}: {first['msg'].removeprefix('Value error, ')}; merge takes one of: {fields}", param=place
            ) from None
        if sum(v is not None for v in (merge.experts, merge.policy, merge.entry)) != 1:
            raise RequestError(f"merge takes exactly one of: {fields}", param="merge")
        return merge


class MergeInfo(BaseModel):
    """What was done with one request.

    experts: the coefficients used; none is the base   mix: short hash of the mix, `base` for the base
    fallback: the policy that answered in place of `policy`, if one had to   router_ms: time until the mix was known
    """

    policy: str
    arm: str | None = None
    experts: dict[str, Json]
    mix: str
    abstained: bool = False
    fallback: str | None = None
    router_ms: float = 0.0

    def headers(self) -> dict[str, str]:
        found = {"x-tta-policy": self.policy, "x-tta-arm": self.arm, "x-tta-mix": self.mix}
        return {name: value for name, value in found.items() if value is not None}
