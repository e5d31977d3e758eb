"""LlamaIndex's `OpenAILike`: chat, streams, completions and tools."""

from typing import Any, Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from tests.clients import asked


def model(**options: Any) -> Any:
    """LlamaIndex's model of this server, with a merge in each request."""
    settings = {
        "model": asked.ROUTED,
        "is_chat_model": True,
        "is_function_calling_model": True,
        "additional_kwargs": {"extra_body": {"merge": asked.MERGE}},
        **options,
    }
    return OpenAILike(
        api_base=asked.openai_url(),
        api_key="unused",
        max_retries=0,
        context_window=2048,
        temperature=0,
        max_tokens=60,
        **settings,
    )


def merged() -> None:
    """The client chooses the experts; LlamaIndex keeps the server's answer as it came."""
    answer = model().chat([ChatMessage(role="user", content=asked.QUESTION)])
    asked.ensure_answer(answer.message.content)
    asked.ensure_merge(answer.raw.merge)


def streamed() -> None:
    """A stream; LlamaIndex repeats the text so far in every piece."""
    pieces = list(model().stream_chat([ChatMessage(role="user", content=asked.QUESTION)]))
    asked.ensure_answer(pieces[-1].message.content)
    asked.ensure(len(pieces) > 3, f"{len(pieces)} pieces are no stream")


def completed() -> None:
    """The older API that continues a text."""
    text = model(model=asked.BASE, is_chat_model=False, additional_kwargs={}).complete(
        "The capital of France is",
    )
    asked.ensure("Paris" in text.text, f"not Paris: {text.text!r}")


def remember(name: Literal["Ann", "Bob"], age: Literal[29, 31]) -> str:
    """Keep a person."""
    return f"{name} is {age}"


def called() -> None:
    """A tool that must be called; LlamaIndex then calls the function itself."""
    tool = FunctionTool.from_defaults(remember)
    answer = model(model=asked.BASE, additional_kwargs={}).predict_and_call(
        [tool],
        user_msg=asked.SAID,
        tool_required=True,
    )
    asked.ensure(answer.sources, f"nothing was called: {answer}")
    source = answer.sources[0]
    asked.ensure(not source.is_error, f"called with {source.raw_input}: {source.content}")
    asked.ensure(source.content == answer.response, f"{source.content} is not {answer.response}")


if __name__ == "__main__":
    asked.run(merged, streamed, completed, called)
