"""The `openai` package: chat, streams, completions, responses, tools, schemas and refusals."""

import json
from typing import Any

import openai

from tests.clients import asked

CLIENT: Any = openai.OpenAI(base_url=asked.openai_url(), api_key="unused", max_retries=0)
TOOL: Any = {
    "type": "function",
    "function": {"name": "remember", "description": "Keep a person.", "parameters": asked.PERSON},
}


def chat(content: str = asked.QUESTION, model: str = asked.ROUTED, **options: Any) -> Any:
    """One question, answered greedily."""
    settings = {"max_tokens": 24, "temperature": 0, **options}
    messages = [{"role": "user", "content": content}]
    return CLIENT.chat.completions.create(model=model, messages=messages, **settings)


def routed() -> None:
    """The server chooses the expert, and says which."""
    answer = chat()
    asked.ensure_answer(answer.choices[0].message.content)
    asked.ensure(max(answer.merge["experts"].items(), key=lambda e: e[1])[0] == "sql", "not sql")


def merged() -> None:
    """The client chooses the experts."""
    answer = chat(extra_body={"merge": asked.MERGE})
    asked.ensure_answer(answer.choices[0].message.content)
    asked.ensure_merge(answer.merge)


def streamed() -> None:
    """The pieces of a stream are the answer; usage and merge come with the last."""
    options = {"include_usage": True}
    chunks = list(chat(stream=True, stream_options=options, extra_body={"merge": asked.MERGE}))
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    asked.ensure_answer("".join(pieces))
    asked.ensure_merge(chunks[-1].merge)
    asked.ensure(chunks[-1].usage.completion_tokens > 0, "no usage in the last chunk")


def completed() -> None:
    """The older API that continues a text."""
    prompt = "The capital of France is"
    options = {"model": asked.BASE, "prompt": prompt, "max_tokens": 4, "temperature": 0}
    asked.ensure("Paris" in CLIENT.completions.create(**options).choices[0].text, "not Paris")


def responded() -> None:
    """The newer API, whole and as a stream of events."""
    options = {
        "model": asked.ROUTED,
        "input": asked.QUESTION,
        "max_output_tokens": 24,
        "temperature": 0,
        "extra_body": {"merge": asked.MERGE},
    }
    answer = CLIENT.responses.create(**options)
    asked.ensure_answer(answer.output_text)
    asked.ensure_merge(answer.merge)
    events = list(CLIENT.responses.create(**options, stream=True))
    pieces = [e.delta for e in events if e.type == "response.output_text.delta"]
    asked.ensure_answer("".join(pieces))
    asked.ensure(events[-1].type == "response.completed", f"the last event: {events[-1].type}")


def called() -> None:
    """A tool that must be called, with arguments of its schema."""
    answer = chat(asked.SAID, asked.BASE, tools=[TOOL], tool_choice="required", max_tokens=60)
    (call,) = answer.choices[0].message.tool_calls
    asked.ensure(call.function.name == "remember", f"called {call.function.name}")
    asked.ensure_person(json.loads(call.function.arguments))


def structured() -> None:
    """An answer in a JSON schema."""
    schema = {"name": "person", "schema": asked.PERSON, "strict": True}
    form = {"type": "json_schema", "json_schema": schema}
    answer = chat(asked.SAID, asked.BASE, response_format=form, max_tokens=60)
    asked.ensure_person(json.loads(answer.choices[0].message.content))


def listed() -> None:
    """The models that exist, and the refusal of one that does not."""
    names = {m.id for m in CLIENT.models.list()}
    asked.ensure({"auto", "smollm2", "smollm2:sql", "sql"} <= names, f"the models: {names}")
    asked.ensure_raises(openai.NotFoundError, "gpt-4", lambda: chat(model="gpt-4"))


if __name__ == "__main__":
    asked.run(routed, merged, streamed, completed, responded, called, structured, listed)
