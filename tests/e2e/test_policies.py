"""Every policy of the demo through HTTP: by name, in conversations, by preference, explained."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from deploy.demo.tasks import TASKS
from tests.e2e.conftest import ADMIN_KEY, Demo

MODEL = "smollm2"
SQL, MATH = (TASKS[name].examples("test", 1, 9)[0].prompt for name in ("sql", "math"))
FIELDS = {
    *("policy", "fallback", "reason", "router_ms", "passes"),
    *("experts", "then", "gating", "scores", "floor", "abstained"),
}
COLOURS = [f"What is your favourite colour, number {i}?" for i in range(40)]


@pytest.fixture(scope="module")
def admin(demo: Demo) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"{demo.url}/admin", headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=120
    ) as http:
        yield http


@pytest.fixture(scope="module")
def policies(admin: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = admin.get("/policies").raise_for_status().json()
    return found


def named(policies: dict[str, Any], kind: str) -> list[str]:
    return [policy["name"] for policy in policies["policies"] if policy["type"] == kind]


def ask(
    client: openai.OpenAI,
    *turns: str,
    merge: Any = None,
    session: str | None = None,
    **options: Any,
) -> Any:
    """Return `merge` of the answer to the last user turn, each before it answered with OK."""
    messages: list[Any] = [{"role": "user", "content": turns[0]}]
    for turn in turns[1:]:
        messages += [{"role": "assistant", "content": "OK"}, {"role": "user", "content": turn}]
    if merge is not None:
        options["extra_body"] = {"merge": merge}
    if session is not None:
        options["extra_headers"] = {"x-session-id": session}
    settings: dict[str, Any] = {"model": MODEL, "max_tokens": 2, "temperature": 0, **options}
    answer: Any = client.chat.completions.create(messages=messages, **settings)
    return answer.merge


def test_every_configured_policy_answers_and_names_itself(
    client: openai.OpenAI, policies: dict[str, Any]
) -> None:
    names = [policy["name"] for policy in policies["policies"]]
    assert policies["default"] in names
    assert policies["unusable"] == {}
    for name in names:
        merge = ask(client, SQL, merge={"policy": name})
        assert (merge["policy"], merge["fallback"], merge["kept"]) == (name, None, False), merge
        assert set(merge["experts"]) <= set(TASKS)
        assert merge["abstained"] is False or merge["experts"] == {}
        assert merge["reason"]


def test_a_conversation_keeps_its_mix_by_what_it_repeats(
    client: openai.OpenAI, policies: dict[str, Any]
) -> None:
    """By chance, because every turn alone would draw another mix."""
    merge = {"policy": named(policies, "random_control")[0]}
    first, other = two_draws(client, merge)
    began = ask(client, first, merge=merge)
    follow_up = ask(client, first, other, merge=merge)
    assert (follow_up["mix"], follow_up["kept"]) == (began["mix"], True)
    assert ask(client, first, other, COLOURS[0], merge=merge)["mix"] == began["mix"]
    assert ask(client, "Another beginning.", other, merge=merge)["kept"] is False


@pytest.mark.parametrize("by", ["session", "user"])
def test_a_session_keeps_its_mix_by_its_name(
    client: openai.OpenAI, policies: dict[str, Any], by: str
) -> None:
    merge = {"policy": named(policies, "random_control")[0]}
    first, other = two_draws(client, merge)
    began = ask(client, first, merge=merge, **{by: f"the {by} of this test"})
    follow_up = ask(client, other, merge=merge, **{by: f"the {by} of this test"})
    assert (began["kept"], follow_up["kept"], follow_up["mix"]) == (False, True, began["mix"])
    assert ask(client, other, merge=merge, **{by: f"another {by}"})["kept"] is False


def two_draws(client: openai.OpenAI, merge: Any) -> tuple[str, str]:
    """Two prompts with different mixes."""
    drawn = ask(client, COLOURS[-1], merge=merge)["mix"]
    other = next(c for c in COLOURS if ask(client, c, merge=merge)["mix"] != drawn)
    return COLOURS[-1], other


def test_a_conversation_that_changes_its_topic_changes_its_mix(client: openai.OpenAI) -> None:
    merge = {"policy": "retrieval"}
    assert "sql" in ask(client, SQL, merge=merge, session="topics")["experts"]
    same = ask(client, SQL, merge=merge, session="topics")
    assert (same["kept"], "sql" in same["experts"]) == (True, True)
    moved = ask(client, MATH, merge=merge, session="topics")
    assert (moved["kept"], "math" in moved["experts"]) == (False, True)
    assert ask(client, SQL, model=f"{MODEL}:math", session="topics")["experts"] == {"math": 1.0}


def test_what_stands_before_the_user_speaks_is_shared_by_all_mixes(
    demo: Demo, client: openai.OpenAI
) -> None:
    """A system prompt of some blocks is computed once, for experts, the base and the default."""
    system = " ".join(f"Rule {i}: be brief, exact and kind." for i in range(60))

    def ask_behind(model: str, *turns: str, **merge: str) -> tuple[Any, float]:
        messages: list[Any] = [{"role": "system", "content": system}]
        for turn in turns:
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "OK"}]
        before = count_hits(demo)
        answer: Any = client.chat.completions.create(
            model=model,
            messages=messages[:-1],
            max_tokens=2,
            extra_body={"merge": merge} if merge else {},
        )
        return answer.merge, count_hits(demo) - before

    merge, hits = ask_behind(f"{MODEL}:sql", SQL)
    assert (merge["acts_from"], hits) == ("user_turn", 0)
    shared = 0.0
    for model, question in ((f"{MODEL}:math", MATH), (MODEL, SQL), (f"{MODEL}:base", COLOURS[0])):
        merge, hits = ask_behind(model, question)
        shared = shared or hits
        assert hits == shared >= 512, model
    assert ask_behind(f"{MODEL}:math", SQL, acts_from="start")[1] == 0

    # A later turn of another topic keeps what is cached, and acts from there.
    merge, hits = ask_behind(MODEL, SQL, MATH)
    assert (merge["experts"], merge["kept"]) == ({"math": 1.0}, False)
    assert (merge["acts_from"], hits >= shared) == ("last_user_turn", True)


def count_hits(demo: Demo) -> float:
    """Return how many tokens have been found in the prefix cache."""
    lines = httpx.get(f"{demo.url}/metrics", timeout=30).text.splitlines()
    name = "vllm:prefix_cache_hits_total"
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_a_preference_chooses_a_point_of_the_front(
    client: openai.OpenAI, policies: dict[str, Any]
) -> None:
    name, *_ = named(policies, "pareto")
    entries = set()
    for task in ("sql", "math"):
        merge = ask(client, SQL, merge={"preference": {task: 1}})
        assert merge["policy"] == name
        assert merge == ask(client, MATH, merge={"preference": {task: 3.5}, "policy": name}) | {
            "router_ms": merge["router_ms"]
        }, "neither the prompt nor the unit matters"
        entries.add(merge["mix"])
    assert len(entries) == 2
    followed = ask(client, SQL, MATH, merge={"preference": {"math": 1}})
    assert followed["mix"] in entries, "another wish than the turn before: at once"


@pytest.mark.parametrize(
    ("merge", "says"),
    [
        ({"preference": {"nobody": 1}}, "nobody"),
        ({"preference": {"sql": -1}}, "merge.preference.sql"),
        ({"preference": {"sql": 0}}, "more than 0"),
        ({"preference": {}}, "more than 0"),
        ({"preference": ["sql"]}, "merge.preference"),
        ({"preference": {"sql": 1}, "policy": "retrieval"}, "heeds none"),
        ({"preference": {"sql": 1}, "entry": "balanced"}, "exactly one"),
        ({"policy": "retrieval", "experts": {"sql": 1}}, "exactly one"),
    ],
)
def test_an_unusable_wish_is_400_and_says_what_works(
    client: openai.OpenAI, merge: Any, says: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=says) as error:
            ask(client, SQL, merge=merge, stream=stream)
        body: Any = error.value.body
        assert body["param"].startswith("merge")


def test_a_preference_that_is_no_number_is_400(demo: Demo) -> None:
    body = (
        b'{"model": "smollm2", "messages": [{"role": "user", "content": "x"}], "merge":'
        b' {"preference": {"sql": NaN}}}'
    )
    answer = httpx.post(
        f"{demo.url}/v1/chat/completions",
        content=body,
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400


def test_entries_of_the_library_can_be_pinned_and_stale_ones_are_told(
    client: openai.OpenAI, admin: httpx.Client, policies: dict[str, Any], demo: Demo
) -> None:
    saved = {file.stem for file in (demo.experts / "router" / "entries").glob("*.json")}
    (replica,) = admin.get("/experts").raise_for_status().json()["replicas"]
    assert saved <= set(replica["entries"])
    assert replica["stale"] == []
    learned = next(
        p["options"]["entry"] for p in policies["policies"] if p["type"] == "learned_static"
    )
    assert learned in saved
    pinned = ask(client, SQL, model=f"{MODEL}:{learned}")
    (by_policy,) = named(policies, "learned_static")
    assert pinned["mix"] == ask(client, SQL, merge={"policy": by_policy})["mix"]


def test_an_expert_that_goes_takes_what_was_made_for_it_along_until_it_is_back(
    client: openai.OpenAI, admin: httpx.Client, policies: dict[str, Any]
) -> None:
    (learned,) = named(policies, "learned_static")
    before = ask(client, SQL, merge={"policy": learned})
    (replica,) = admin.get("/experts").json()["replicas"]
    admin.delete("/experts/sql", params={"digest": replica["experts"]["sql"]}).raise_for_status()
    try:
        (without,) = admin.get("/experts").json()["replicas"]
        assert "balanced" in without["stale"]
        assert learned in without["unusable"]
        instead = ask(client, MATH, merge={"policy": learned})
        assert (instead["fallback"], instead["experts"]) == ("base", {})
        assert "sql" not in ask(client, SQL)["experts"]
        with pytest.raises(openai.NotFoundError):
            ask(client, SQL, model=f"{MODEL}:balanced")
    finally:
        admin.put("/experts/sql").raise_for_status()
    (again,) = admin.get("/experts").json()["replicas"]
    assert (again["stale"], again["unusable"]) == ([], {})
    assert ask(client, SQL, merge={"policy": learned})["mix"] == before["mix"]


def test_explain_says_what_each_policy_would_do(
    client: openai.OpenAI, admin: httpx.Client, policies: dict[str, Any]
) -> None:
    names = [policy["name"] for policy in policies["policies"]]
    prompt = TASKS["triage"].examples("test", 1, 11)[0].prompt
    rows = (
        admin.post("/policies/explain", json={"prompt": prompt})
        .raise_for_status()
        .json()["policies"]
    )
    assert [row["policy"] for row in rows] == names
    for row in rows:
        assert set(row) == FIELDS
        assert ask(client, prompt, merge={"policy": row["policy"]})["experts"] == row["experts"], (
            row["policy"]
        )
    again = admin.post(
        "/policies/explain", json={"prompt": prompt, "policies": ["retrieval", "base"]}
    ).json()["policies"]
    assert [(row["policy"], row["passes"]) for row in again] == [("retrieval", 0), ("base", 0)]
    assert [row["experts"] for row in again] == [
        row["experts"] for row in rows if row["policy"] in ("retrieval", "base")
    ][::-1]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 70000}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x", "policies": []}, "policies"),
        ({"prompt": "x", "policies": ["nope"]}, "there are: base, retrieval"),
        ({"prompt": "x", "polcies": ["base"]}, "polcies"),
    ],
)
def test_explain_refuses_by_name(admin: httpx.Client, body: Any, says: str) -> None:
    answer = admin.post("/policies/explain", json=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_policies_are_for_those_who_have_the_key(demo: Demo) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert httpx.get(f"{demo.url}/admin/policies", headers=headers).status_code == 401
        explained = httpx.post(
            f"{demo.url}/admin/policies/explain", headers=headers, json={"prompt": "x"}
        )
        assert explained.status_code == 401


def test_metrics_count_kept_mixes_and_probes(demo: Demo, client: openai.OpenAI) -> None:
    for _ in range(2):
        ask(client, SQL, merge={"policy": "retrieval"}, session="metrics")
    exposition = httpx.get(f"{demo.url}/metrics", timeout=30).text
    for name in (
        'tta_kept_mixes_total{policy="retrieval"',
        'tta_probe_cache_total{found="hit",kind="features"',
    ):
        assert name in exposition, name
    assert json.dumps(SQL)[1:20] not in exposition
