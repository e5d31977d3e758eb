"""OpenAI's Agents SDK over chat completions and over responses: agents, streams and tools."""

from typing import Any

import agents
from agents import Agent, ModelSettings, Runner
from openai import AsyncOpenAI

from tests.clients import asked

KINDS: Any = (agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel)
CALLS: list[dict[str, Any]] = []


def agent(kind: Any, model: str = asked.ROUTED, merge: Any = None, **options: Any) -> Any:
    """An agent that answers greedily."""
    agents.set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=asked.openai_url(), api_key="unused", max_retries=0)
    body = {"merge": merge} if merge else None
    choice = options.pop("tool_choice", None)
    settings = ModelSettings(temperature=0, max_tokens=60, extra_body=body, tool_choice=choice)
    served = kind(model=model, openai_client=client)
    return Agent(name="asked", model=served, model_settings=settings, **options)


async def answered(kind: Any) -> None:
    """One turn, with the merge that the client chose."""
    outcome = await Runner.run(agent(kind, merge=asked.MERGE), asked.QUESTION)
    asked.ensure_answer(outcome.final_output)
    asked.ensure(outcome.raw_responses[0].usage.output_tokens > 0, "no usage")


async def streamed(kind: Any) -> None:
    """One turn as a stream of events."""
    outcome = Runner.run_streamed(agent(kind), asked.QUESTION)
    events = [e async for e in outcome.stream_events() if e.type == "raw_response_event"]
    pieces = [e.data.delta for e in events if e.data.type == "response.output_text.delta"]
    asked.ensure_answer("".join(pieces))
    asked.ensure_answer(outcome.final_output)


async def called(kind: Any) -> None:
    """A tool that must be called: the SDK calls the function, whose result ends the run.

    The conversation, which then holds the call and its result, goes on without tools.
    """
    CALLS.clear()
    asking = agent(
        kind,
        asked.BASE,
        tools=[agents.function_tool(remember)],
        tool_choice="required",
        tool_use_behavior="stop_on_first_tool",
    )
    outcome = await Runner.run(asking, asked.SAID, max_turns=2)
    asked.ensure(len(CALLS) == 1, f"called {len(CALLS)} times: {outcome.final_output}")
    asked.ensure(outcome.final_output == "kept", f"the run ended with {outcome.final_output!r}")
    question = {"role": "user", "content": asked.QUESTION}
    going_on = [*outcome.to_input_list(), question]
    outcome = await Runner.run(agent(kind, merge=asked.MERGE), going_on)
    asked.ensure(str(outcome.final_output).startswith("SELECT"), str(outcome.final_output))


def remember(name: str, age: int) -> str:
    """Keep a person."""
    CALLS.append({"name": name, "age": age})
    return "kept"


async def chat() -> None:
    """An agent over chat completions."""
    await answered(KINDS[0])


async def chat_streamed() -> None:
    """The same, streamed."""
    await streamed(KINDS[0])


async def chat_tools() -> None:
    """The same, with a tool and a turn after it."""
    await called(KINDS[0])


async def responses() -> None:
    """An agent over responses, the SDK's default."""
    await answered(KINDS[1])


async def responses_streamed() -> None:
    """The same, streamed."""
    await streamed(KINDS[1])


async def responses_tools() -> None:
    """The same, with a tool and a turn after it."""
    await called(KINDS[1])


if __name__ == "__main__":
    asked.run(
        chat,
        chat_streamed,
        chat_tools,
        responses,
        responses_streamed,
        responses_tools,
    )
