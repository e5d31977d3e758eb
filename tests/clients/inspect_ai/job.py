"""Inspect: evaluations of a few samples over three APIs, and one that calls a tool."""

import tempfile
from typing import Any

import inspect_ai
from inspect_ai.dataset import Sample
from inspect_ai.log import read_eval_log
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import match
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool

from tests.clients import asked

CALLS: list[str] = []


def evaluate(model: Any, sample: Sample, *solver: Any) -> Any:
    """The log of one evaluation, which must have succeeded."""
    scorer = match(location="exact")
    task = inspect_ai.Task(dataset=[sample], solver=list(solver), scorer=scorer)
    with tempfile.TemporaryDirectory() as folder:
        (done,) = inspect_ai.eval(task, model=model, log_dir=folder, display="none")
        log = read_eval_log(done.location)
    asked.ensure(log.status == "success", f"{log.status}: {log.error and log.error.message}")
    return log


def served(name: str = asked.ROUTED, merge: Any = None, **options: Any) -> Any:
    """Inspect's model of this server, by its kind for APIs like OpenAI's."""
    body = {"merge": merge} if merge else None
    config = GenerateConfig(temperature=0, max_tokens=60, max_retries=0, extra_body=body)
    place: dict[str, Any] = {"base_url": asked.openai_url(), "api_key": "unused"}
    return get_model(f"openai-api/tta/{name}", config=config, **place, **options)


def ensure_right(log: Any) -> None:
    """The one sample was answered as it should be."""
    accuracy = log.results.scores[0].metrics["accuracy"].value
    answer = log.samples[0].output.completion
    asked.ensure(accuracy == 1, f"accuracy {accuracy}, answer {answer!r}")


def merged() -> None:
    """The client chooses the experts; Inspect's log keeps the server's answer as it came."""
    sample = Sample(input=asked.QUESTION, target=asked.ANSWER)
    log = evaluate(served(merge=asked.MERGE), sample, generate())
    ensure_right(log)
    (event,) = [e for e in log.samples[0].events if e.event == "model"]
    asked.ensure_merge(event.call.response["merge"])


def responded() -> None:
    """The Responses API."""
    sample = Sample(input=asked.QUESTION, target=asked.ANSWER)
    ensure_right(evaluate(served(responses_api=True), sample, generate()))


def messaged() -> None:
    """The Messages API."""
    config = GenerateConfig(temperature=0, max_tokens=60, max_retries=0)
    name, url = f"anthropic/{asked.ROUTED}", asked.server()
    model = get_model(name, base_url=url, api_key="unused", config=config)
    sample = Sample(input=asked.QUESTION, target=asked.ANSWER)
    ensure_right(evaluate(model, sample, generate()))


def remember() -> Any:
    """A tool of Inspect's kind."""

    async def execute(name: str, age: int) -> str:
        """Keep a person.

        Args:
            name: The person's name.
            age: The person's age.
        """
        CALLS.append(f"{name} {age}")
        return "kept"

    return execute


def called() -> None:
    """A tool that must be called; Inspect calls the function itself."""
    CALLS.clear()
    sample = Sample(input=asked.SAID, target="kept")
    steps = (use_tools(tool(remember)(), tool_choice="any"), generate(tool_calls="single"))
    evaluate(served(asked.BASE), sample, *steps)
    asked.ensure(len(CALLS) == 1, f"called {CALLS}")


if __name__ == "__main__":
    asked.run(merged, responded, messaged, called)
