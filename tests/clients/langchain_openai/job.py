"""LangChain's `ChatOpenAI`: chat, streams, tools and structured output."""

from typing import Any

import langchain_openai

from tests.clients import asked


def model(**options: Any) -> Any:
    """LangChain's model of this server."""
    settings = {"model": asked.ROUTED, "temperature": 0, "max_tokens": 60, **options}
    return langchain_openai.ChatOpenAI(
        base_url=asked.openai_url(),
        api_key="unused",
        max_retries=0,
        **settings,
    )


def merged() -> None:
    """The client chooses the experts; LangChain shows headers, not fields it does not know."""
    answer = model(extra_body={"merge": asked.MERGE}, include_response_headers=True).invoke(
        [("system", asked.SYSTEM), ("human", asked.QUESTION)],
    )
    asked.ensure_answer(answer.content)
    headers = answer.response_metadata["headers"]
    asked.ensure(headers["x-tta-policy"] == "explicit", f"the headers: {headers}")
    asked.ensure(answer.usage_metadata["output_tokens"] > 0, "no usage")


def streamed() -> None:
    """The pieces of a stream, added up as LangChain does it."""
    pieces = list(model(stream_usage=True).stream(asked.QUESTION))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    asked.ensure_answer(whole.content)
    asked.ensure(len(pieces) > 3, f"{len(pieces)} pieces are no stream")
    asked.ensure(whole.usage_metadata["output_tokens"] > 0, "no usage")


def batched() -> None:
    """Several questions at once."""
    answers = model().batch([asked.QUESTION, asked.QUESTION])
    for answer in answers:
        asked.ensure_answer(answer.content)


def called() -> None:
    """A tool that must be called, with arguments of its schema."""
    tool = {"title": "remember", "description": "Keep a person.", **asked.PERSON}
    bound = model(model=asked.BASE).bind_tools([tool], tool_choice="any")
    (call,) = bound.invoke(asked.SAID).tool_calls
    asked.ensure(call["name"] == "remember", f"called {call['name']}")
    asked.ensure_person(call["args"])


def structured() -> None:
    """A JSON schema, by each of LangChain's ways to ask for one."""
    schema = {"title": "person", "description": "A person.", **asked.PERSON}
    for method in ("json_schema", "function_calling"):
        bound = model(model=asked.BASE).with_structured_output(schema, method=method)
        asked.ensure_person(bound.invoke(asked.SAID))


def responded() -> None:
    """LangChain over the Responses API."""
    answer = model(use_responses_api=True).invoke(asked.QUESTION)
    asked.ensure_answer(answer.text if isinstance(answer.text, str) else answer.text())


if __name__ == "__main__":
    asked.run(merged, streamed, batched, called, structured, responded)
