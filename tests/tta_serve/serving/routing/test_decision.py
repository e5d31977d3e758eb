"""What is remembered of conversations: bounded in number and in time."""

from adapters.mix import Mix
from router.decision import Decision
from tta_serve.serving.routing.decision import Conversations, RememberedDecision

SQL = Decision(Mix.of({"sql": 1.0}))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(name: str) -> RememberedDecision:
    return RememberedDecision.of(Decision(Mix.of({name: 1.0})), {name: f"digest of {name}"})


def test_the_least_recently_asked_for_go_first() -> None:
    sessions = Conversations(3, 60, Clock())
    for name in "abc":
        sessions.keep(name, kept(name))
    assert sessions.find("a") == kept("a")
    sessions.keep("d", kept("d"))
    assert [sessions.find(name) for name in "abcd"] == [kept("a"), None, kept("c"), kept("d")]
    for i in range(100):
        sessions.keep(str(i), kept("x"))
    assert len(sessions) == 3


def test_what_nobody_asks_for_is_forgotten_after_a_while() -> None:
    clock = Clock()
    sessions = Conversations(10, 60, clock)
    sessions.keep("a", kept("a"))
    sessions.keep("b", kept("b"))
    clock.now = 50
    assert sessions.find("b") == kept("b")
    clock.now = 100
    assert sessions.find("a") is None
    assert sessions.find("b") == kept("b")
    assert len(sessions) == 1


def test_none_at_all_may_be_remembered() -> None:
    sessions = Conversations(0, 60, Clock())
    sessions.keep("a", kept("a"))
    assert sessions.find("a") is None
    assert len(sessions) == 0


def test_a_mix_holds_as_long_as_its_own_experts_are_what_they_were() -> None:
    found = RememberedDecision.of(SQL, {"sql": "1", "math": "2"})
    assert found.holds({"sql": "1"})
    assert not found.holds({"sql": "3", "math": "2"})
    assert not found.holds({"math": "2"})
    assert RememberedDecision.of(Decision(Mix()), {"sql": "1"}).holds({})
