"""The `anthropic` package: messages, streams, counted tokens, tools and refusals."""

from typing import Any

import anthropic

from tests.clients import asked

CLIENT: Any = anthropic.Anthropic(base_url=asked.server(), api_key="unused", max_retries=0)
TOOL: Any = {"name": "remember", "description": "Keep a person.", "input_schema": asked.PERSON}
MESSAGES: Any = [{"role": "user", "content": asked.QUESTION}]


def message(model: str = asked.ROUTED, messages: Any = MESSAGES, **options: Any) -> Any:
    """One question, answered greedily."""
    body = {"temperature": 0, **options.pop("extra_body", {})}
    settings = {"max_tokens": 24, **options, "extra_body": body}
    return CLIENT.messages.create(model=model, messages=messages, **settings)


def merged() -> None:
    """The client chooses the experts; the answer says what was merged."""
    answer = message(extra_body={"merge": asked.MERGE})
    asked.ensure_answer(answer.content[0].text)
    asked.ensure(answer.stop_reason == "end_turn", f"stopped for {answer.stop_reason}")
    asked.ensure(answer.usage.output_tokens > 0, "no usage")
    asked.ensure_merge(answer.merge)


def routed() -> None:
    """The server chooses; a system prompt is Anthropic's own field."""
    asked.ensure_answer(message(system=asked.SYSTEM).content[0].text)


def streamed() -> None:
    """The client's own assembly of a stream."""
    body = {"temperature": 0, "merge": asked.MERGE}
    options: Any = {"model": asked.ROUTED, "messages": MESSAGES, "max_tokens": 24}
    with CLIENT.messages.stream(**options, extra_body=body) as stream:
        asked.ensure_answer("".join(stream.text_stream))
        final = stream.get_final_message()
    asked.ensure(final.stop_reason == "end_turn", f"stopped for {final.stop_reason}")


def counted() -> None:
    """The tokens of a prompt are as many as the answer says it had."""
    count = CLIENT.messages.count_tokens(model=asked.ROUTED, messages=MESSAGES).input_tokens
    had = message(max_tokens=1).usage.input_tokens
    asked.ensure(count == had > 0, f"counted {count}, the answer says {had}")


def called() -> None:
    """A tool that must be called, with arguments of its schema."""
    messages = [{"role": "user", "content": asked.SAID}]
    choice = {"type": "any"}
    answer = message(asked.BASE, messages, tools=[TOOL], tool_choice=choice, max_tokens=60)
    calls = [block for block in answer.content if block.type == "tool_use"]
    asked.ensure(len(calls) == 1, f"not one call: {answer.content}")
    asked.ensure(answer.stop_reason == "tool_use", f"stopped for {answer.stop_reason}")
    asked.ensure(calls[0].name == "remember", f"called {calls[0].name}")
    asked.ensure_person(calls[0].input)


def refused() -> None:
    """An unknown model is the client's own kind of error."""
    asked.ensure_raises(anthropic.NotFoundError, "gpt-4", lambda: message("gpt-4"))


if __name__ == "__main__":
    asked.run(merged, routed, streamed, counted, called, refused)
