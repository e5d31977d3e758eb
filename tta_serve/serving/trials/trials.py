"""What is known of a request on its way, and who may put another wish in place of its own."""

import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from adapters.mix import Mix
from router.decision import Prompt
from tta_serve.config.sections import ServeConfig
from tta_serve.engine.client.usage import Usage
from tta_serve.experiments.design.assignment import Assignment
from tta_serve.protocol import MergeInfo
from tta_serve.serving.experts.view import View
from tta_serve.serving.reading.catalog import Wish
from tta_serve.serving.reading.request import GenerateRequest
from tta_serve.serving.routing.route import RequestRoute

AnswerAgain = Callable[[Mix], Awaitable[dict[str, Any]]]


@dataclass
class RequestRecord:
    """What is known of a request on its way, filled as it goes on."""

    view: View
    """What it sees of the library."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Its own."""
    began: float = field(default_factory=time.perf_counter)
    """By the monotonic clock."""
    usage: Usage = field(default_factory=Usage)
    prompt: Prompt = field(default_factory=lambda: Prompt(""))
    assigned: Assignment | None = None
    route: RequestRoute | None = None
    """The route of the first of its prompts, which stands for all in the logs."""
    answer_again: AnswerAgain | None = None
    """Answers it with another mix, unseen; None if it never came to the engine."""
    outcome: str = "ok"
    """How it ended, as `metrics.requests` counts it."""
    error: str | None = None
    """The code of what its answer ended with, None if that is no error."""

    @property
    def info(self) -> MergeInfo | None:
        """What was decided for it, None if nothing was."""
        return self.route.info if self.route else None


class Trials:
    """The trials of a server without a store: there are no experiments."""

    @contextmanager
    def follow(self, view: View) -> Iterator[RequestRecord]:
        """Keep a record of a request for as long as the block lasts, and write it down then."""
        yield RequestRecord(view)

    def decide(self, wish: Wish, request: GenerateRequest, record: RequestRecord) -> Wish:
        """Return what decides a request: its own wish, the kill switch, or an experiment's arm."""
        return wish

    def check(self, config: ServeConfig) -> None:
        """Raise RequestError if an experiment that runs could not go on by another config."""

    def follow_config(self, config: ServeConfig) -> None:
        """Go on by a config that `check` found nothing wrong with."""

    def close(self) -> None:
        """Write what waits."""
