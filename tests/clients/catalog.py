"""The clients that are tried, and what is known to fail for a reason that lies in the client."""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Client:
    """One client. Its folder has the pins of its environment, if it has its own, and its job."""

    name: str
    title: str
    package: str
    does: str
    needs_torch: bool = False

    @property
    def folder(self) -> Path:
        return HERE / self.name


CLIENTS = {
    client.name: client
    for client in (
        Client(
            "openai",
            "openai",
            "openai",
            "chat, stream, completions, responses, tools, schema, models, refusal, merge",
        ),
        Client(
            "anthropic",
            "anthropic",
            "anthropic",
            "messages, stream, counted tokens, tools, refusal, merge",
        ),
        Client(
            "openai_agents",
            "OpenAI Agents SDK",
            "openai-agents",
            "agents, streams, tools and turns after them; chat completions and responses; merge",
        ),
        Client(
            "langchain_openai",
            "LangChain",
            "langchain-openai",
            "chat, stream, batch, tools, structured output, responses, merge by header",
        ),
        Client(
            "llama_index",
            "LlamaIndex",
            "llama-index-llms-openai-like",
            "chat, stream, completions, tools, merge",
        ),
        Client(
            "litellm",
            "LiteLLM",
            "litellm",
            "as OpenAI's, vLLM's and Anthropic's kind: chat, stream, tools, schema, refusal, merge",
        ),
        Client(
            "pydantic_ai",
            "Pydantic AI",
            "pydantic-ai-slim",
            "agents, stream, output by tool and by schema, responses, messages",
        ),
        Client(
            "instructor",
            "Instructor",
            "instructor",
            "objects by tools, strict tools and schema, whole and in parts, merge",
        ),
        Client(
            "dspy",
            "DSPy",
            "dspy",
            "a model, a program with parsed outputs, an evaluation, responses, merge",
        ),
        Client(
            "lm_eval",
            "lm-evaluation-harness",
            "lm-eval",
            "generated answers over chat and completions, log-probabilities of given ones, merge",
        ),
        Client(
            "inspect_ai",
            "Inspect",
            "inspect-ai",
            "evaluations over chat, responses and messages, a tool, merge",
        ),
        Client(
            "guidellm",
            "GuideLLM",
            "guidellm",
            "benchmarks of chat, completions and responses, with a merge in each request",
            needs_torch=True,
        ),
        Client(
            "aiperf",
            "AIPerf",
            "aiperf",
            "benchmarks of chat, completions, responses, messages, with a merge in each request",
        ),
        Client(
            "vllm_bench",
            "vLLM's bench client",
            "vllm",
            "benchmarks of chat and completions, with a merge in each request",
        ),
        Client(
            "vercel_ai",
            "Vercel AI SDK",
            "ai",
            "text, stream, tools, objects; OpenAI-like, OpenAI's and Anthropic's provider; merge",
        ),
        Client(
            "promptfoo",
            "promptfoo",
            "promptfoo",
            "asserted answers over chat, completions, responses, messages; tools, schema, merge",
        ),
    )
}

# By client and step: why the step fails, where the cause is the client and not the server.
KNOWN: dict[tuple[str, str], str] = {}
