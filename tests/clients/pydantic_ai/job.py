"""Pydantic AI's agents: text, streams, and outputs by tools and by schemas, over three APIs."""

from typing import Any

import pydantic_ai
from pydantic import BaseModel, Field
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.vllm import VLLMProvider

from tests.clients import asked


class Person(BaseModel):
    """A person."""

    name: str = Field(pattern="^(Ann|Bob)$")
    age: int = Field(ge=0, le=99)


def provider() -> Any:
    """Pydantic AI's own provider for servers of vLLM."""
    return VLLMProvider(base_url=asked.openai_url(), api_key="unused")


def agent(model: Any = None, merge: Any = None, **options: Any) -> Any:
    """An agent that answers greedily."""
    settings: dict[str, Any] = {"max_tokens": 60, "temperature": 0}
    if merge:
        settings["extra_body"] = {"merge": merge}
    chosen = model or OpenAIChatModel(asked.ROUTED, provider=provider())
    return pydantic_ai.Agent(chosen, model_settings=settings, retries=0, **options)


def merged() -> None:
    """The client chooses the experts."""
    answer = agent(merge=asked.MERGE).run_sync(asked.QUESTION)
    asked.ensure_answer(answer.output)
    asked.ensure(answer.usage.output_tokens > 0, "no usage")


async def streamed() -> None:
    """A stream of text."""
    async with agent().run_stream(asked.QUESTION) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
    asked.ensure_answer("".join(pieces))


def structured(form: Any) -> None:
    """A person, in the form asked for."""
    model = OpenAIChatModel(asked.BASE, provider=provider())
    answer = agent(model, output_type=form).run_sync(asked.SAID)
    asked.ensure_person(answer.output.model_dump())


def by_tool() -> None:
    """An output that is the arguments of a tool."""
    structured(pydantic_ai.ToolOutput(Person, name="remember", strict=True))


def by_schema() -> None:
    """An output in a JSON schema."""
    structured(pydantic_ai.NativeOutput(Person))


def responded() -> None:
    """The Responses API."""
    model = OpenAIResponsesModel(asked.ROUTED, provider=provider())
    asked.ensure_answer(agent(model).run_sync(asked.QUESTION).output)


def anthropic() -> None:
    """The Messages API."""
    service = AnthropicProvider(base_url=asked.server(), api_key="unused")
    model = AnthropicModel(asked.ROUTED, provider=service)
    asked.ensure_answer(agent(model).run_sync(asked.QUESTION).output)


if __name__ == "__main__":
    asked.run(merged, streamed, by_tool, by_schema, responded, anthropic)
