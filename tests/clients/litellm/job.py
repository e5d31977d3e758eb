"""LiteLLM, with the server as an OpenAI-like and as an Anthropic-like provider."""

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from tests.clients import asked

TOOL: Any = {
    "type": "function",
    "function": {"name": "remember", "description": "Keep a person.", "parameters": asked.PERSON},
}


def chat(content: str = asked.QUESTION, model: str = asked.ROUTED, **options: Any) -> Any:
    """One question, answered greedily."""
    settings = {"max_tokens": 60, "temperature": 0, **options}
    return litellm.completion(
        model=f"openai/{model}",
        api_base=asked.openai_url(),
        api_key="unused",
        messages=[{"role": "user", "content": content}],
        num_retries=0,
        **settings,
    )


def merged() -> None:
    """The client chooses the experts; LiteLLM keeps fields that it does not know."""
    answer = chat(extra_body={"merge": asked.MERGE})
    asked.ensure_answer(answer.choices[0].message.content)
    asked.ensure_merge(answer.merge)


def hosted() -> None:
    """LiteLLM's own name for servers of vLLM."""
    answer = litellm.completion(
        model=f"hosted_vllm/{asked.ROUTED}",
        api_base=asked.openai_url(),
        messages=[{"role": "user", "content": asked.QUESTION}],
        max_tokens=24,
        temperature=0,
    )
    asked.ensure_answer(answer.choices[0].message.content)


def streamed() -> None:
    """A stream, put together by LiteLLM."""
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    whole: Any = litellm.stream_chunk_builder(chunks)
    asked.ensure_answer(whole.choices[0].message.content)
    asked.ensure(len(chunks) > 3, f"{len(chunks)} chunks are no stream")


def completed() -> None:
    """The older API that continues a text."""
    answer: Any = litellm.text_completion(
        model=f"text-completion-openai/{asked.BASE}",
        api_base=asked.openai_url(),
        api_key="unused",
        prompt="The capital of France is",
        max_tokens=4,
        temperature=0,
    )
    asked.ensure("Paris" in answer.choices[0].text, f"not Paris: {answer.choices[0].text!r}")


def called() -> None:
    """A tool that must be called, with arguments of its schema."""
    answer = chat(asked.SAID, asked.BASE, tools=[TOOL], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    asked.ensure_person(json.loads(call.function.arguments))


def structured() -> None:
    """An answer in a JSON schema."""
    schema = {"name": "person", "schema": asked.PERSON, "strict": True}
    form = {"type": "json_schema", "json_schema": schema}
    answer = chat(asked.SAID, asked.BASE, response_format=form)
    asked.ensure_person(json.loads(answer.choices[0].message.content))


def responded() -> None:
    """The Responses API, passed through."""
    answer: Any = litellm.responses(
        model=f"openai/{asked.ROUTED}",
        api_base=asked.openai_url(),
        api_key="unused",
        input=asked.QUESTION,
        max_output_tokens=24,
        temperature=0,
    )
    asked.ensure_answer(answer.output_text)


def anthropic() -> None:
    """The same server as one of Anthropic's kind."""
    answer = litellm.completion(
        model=f"anthropic/{asked.ROUTED}",
        api_base=asked.server(),
        api_key="unused",
        messages=[{"role": "user", "content": asked.QUESTION}],
        max_tokens=24,
        temperature=0,
    )
    asked.ensure_answer(answer.choices[0].message.content)


def refused() -> None:
    """An unknown model is LiteLLM's own kind of error."""
    asked.ensure_raises(litellm.NotFoundError, "gpt-4", lambda: chat(model="gpt-4"))


if __name__ == "__main__":
    asked.run(
        merged,
        hosted,
        streamed,
        completed,
        called,
        structured,
        responded,
        anthropic,
        refused,
    )
