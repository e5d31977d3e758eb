"""The private names of Ray that we use, read at 2.60.0, in one place."""

from ray.llm._internal.serve.core.configs.openai_api_models import ErrorInfo, ErrorResponse, OpenAIHTTPException
from ray.llm._internal.serve.utils.broadcast import broadcast

__all__ = ["ErrorInfo", "ErrorResponse", "OpenAIHTTPException", "broadcast"]
