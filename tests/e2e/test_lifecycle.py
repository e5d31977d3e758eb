"""Experts loaded, replaced and unloaded through HTTP, while the real client asks."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import DenseForm, Form, OneBitForm
from adapters.library.ingest import OwnerNotes, draft_folder
from adapters.library.versions import VersionStore
from deploy.demo.evaluate import generate_answers
from deploy.demo.finetune import apply_finetune, write_finetune
from deploy.demo.model import load_base
from deploy.demo.tasks import TASKS
from tests.e2e.conftest import ADMIN_KEY, Demo

NEW = "tickets"
PROMPT = TASKS["triage"].examples("test", 1, 7)[0].prompt


class Admin:
    def __init__(self, demo: Demo) -> None:
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        self.http = httpx.Client(base_url=f"{demo.url}/admin", headers=headers, timeout=120)
        self.experts = demo.experts

    def served(self) -> dict[str, str]:
        (replica,) = self.http.get("/experts").raise_for_status().json()["replicas"]
        found: dict[str, str] = replica["experts"]
        return found

    def used(self) -> int:
        (replica,) = self.http.get("/experts").raise_for_status().json()["replicas"]
        return int(replica["used"]["experts"])

    def put(self, name: str, like: str) -> Path:
        """The library on disk gains an expert, or other weights for one: those of another."""
        folder = self.experts / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.experts / like, folder)
        return folder

    def refusal(self, answer: httpx.Response) -> tuple[int, str]:
        return answer.status_code, str(answer.json()["error"]["message"])


@pytest.fixture
def admin(demo: Demo) -> Iterator[Admin]:
    admin = Admin(demo)
    before = admin.served()
    yield admin
    for name, digest in admin.served().items():
        if name not in before:
            admin.http.delete(f"/experts/{name}", params={"digest": digest}).raise_for_status()
            shutil.rmtree(admin.experts / name)
    assert admin.served() == before


def ask(client: openai.OpenAI, model: str) -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": PROMPT}], temperature=0, max_tokens=24
    )
    return str(answer.choices[0].message.content)


def test_an_expert_is_loaded_replaced_and_unloaded_while_serving(
    admin: Admin, client: openai.OpenAI
) -> None:
    triage, math = ask(client, "smollm2:triage"), ask(client, "smollm2:math")
    assert triage != math
    with pytest.raises(openai.NotFoundError, match=f"smollm2:{NEW}"):
        ask(client, f"smollm2:{NEW}")
    admin.put(NEW, like="triage")
    admin.http.put(f"/experts/{NEW}").raise_for_status()
    assert f"smollm2:{NEW}" in [model.id for model in client.models.list()]
    assert ask(client, f"smollm2:{NEW}") == triage
    digest = admin.served()[NEW]
    admin.put(NEW, like="math")
    admin.http.put(f"/experts/{NEW}", params={"replaces": digest}).raise_for_status()
    assert ask(client, f"smollm2:{NEW}") == math
    admin.http.delete(f"/experts/{NEW}", params={"digest": admin.served()[NEW]}).raise_for_status()
    with pytest.raises(openai.NotFoundError):
        ask(client, f"smollm2:{NEW}")


def test_full_finetunes_are_served_in_every_form_beside_all_else(
    admin: Admin, client: openai.OpenAI, base: Path, tmp_path: Path
) -> None:
    write_finetune("triage", tmp_path / "triage")
    store, checkpoint = VersionStore(admin.experts), Checkpoint.open(base)
    forms: dict[str, Form] = {"whole": DenseForm(), "signs": OneBitForm()}
    for name, form in forms.items():
        draft = draft_folder(tmp_path / "triage", name, checkpoint, form, OwnerNotes())
        store.add(name, draft.deltas, form, draft.about, checkpoint)
        admin.http.put(f"/experts/{name}").raise_for_status()

    # Requests of all kinds at once: each is answered as it is alone.
    asked: list[dict[str, Any]] = [
        {"model": model} for model in ("smollm2:whole", "smollm2:signs", "smollm2:base", "sql")
    ]
    half = {"whole": 0.5, "triage": 0.5, "signs": 0.05}
    asked.append({"model": "smollm2", "extra_body": {"merge": {"experts": half}}})

    def answer(request: dict[str, Any]) -> Any:
        messages: Any = [{"role": "user", "content": PROMPT}]
        return client.chat.completions.create(
            messages=messages, temperature=0, max_tokens=16, **request
        )

    alone = [answer(request) for request in asked]
    with ThreadPoolExecutor(len(asked) * 2) as pool:
        together = list(pool.map(answer, asked * 2))
    texts = [one.choices[0].message.content for one in alone]
    assert [one.choices[0].message.content for one in together] == texts * 2
    model, tokenizer = load_base()
    apply_finetune(model, "triage")
    (right,) = generate_answers(model, tokenizer, TASKS["triage"].examples("test", 1, 7))
    assert texts[0] == right[1], "what transformers answers with the fine-tune's weights"
    assert together[4].merge["experts"] == half
    assert answer({"model": "smollm2"}).merge["policy"] == "inline"


def test_requests_in_flight_keep_the_expert_that_is_unloaded(
    admin: Admin, client: openai.OpenAI
) -> None:
    used = admin.used()
    weights = "adapter_model.safetensors"
    folder = admin.put(NEW, like="triage")
    make_stronger(folder / weights)
    admin.http.put(f"/experts/{NEW}").raise_for_status()
    long: dict[str, Any] = {
        "model": f"smollm2:{NEW}",
        "messages": [{"role": "user", "content": PROMPT}],
        "temperature": 0,
        "max_tokens": 48,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.chat.completions.create(**long)
    with client.chat.completions.create(**long, stream=True) as stream:
        first = next(stream)
        admin.http.delete(
            f"/experts/{NEW}", params={"digest": admin.served()[NEW]}
        ).raise_for_status()
        rest = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert (first.choices[0].delta.content or "") + rest == whole.choices[0].message.content
    end = time.monotonic() + 30
    while admin.used() > used:
        assert time.monotonic() < end, "the engine still holds an expert that nobody can use"
        time.sleep(0.2)


def make_stronger(file: Path) -> None:
    """Other weights than any expert has, so that the engine has to hold them."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    save_file(
        {name: tensor * 1.01 if "lora_B" in name else tensor for name, tensor in tensors.items()},
        file,
    )


def test_management_refuses_by_name(admin: Admin, demo: Demo) -> None:
    http = admin.http
    assert httpx.get(f"{demo.url}/admin/experts").status_code == 401
    assert httpx.delete(f"{demo.url}/admin/experts/math", params={"digest": "x"}).status_code == 401
    status, message = admin.refusal(http.put("/experts/math"))
    assert status == 409
    assert admin.served()["math"] in message
    status, message = admin.refusal(http.put("/experts/math", params={"replaces": "0" * 64}))
    assert status == 409
    status, message = admin.refusal(http.delete("/experts/nobody", params={"digest": "0"}))
    assert status == 404
    assert "there are: dates, math" in message
    status, message = admin.refusal(http.put("/experts/nobody"))
    assert status == 400
    assert "holds no expert 'nobody'" in message
    folder = admin.put("broken", like="math")
    (folder / "adapter_model.safetensors").write_bytes(b"not weights")
    status, message = admin.refusal(http.put("/experts/broken"))
    shutil.rmtree(folder)
    assert status == 400
    assert "broken" in message


def test_one_change_at_a_time_and_requests_go_on(admin: Admin, client: openai.OpenAI) -> None:
    expected, found, stop = ask(client, "smollm2:triage"), [], threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            found.append(ask(client, "smollm2:triage"))

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        for like in ("math", "sql", "math"):
            admin.put(NEW, like=like)
            replaces = admin.served().get(NEW)
            admin.http.put(
                f"/experts/{NEW}", params={"replaces": replaces} if replaces else {}
            ).raise_for_status()
    finally:
        stop.set()
        thread.join(60)
    assert found
    assert set(found) == {expected}


def test_what_tta_adds_and_merges_is_loaded_and_another_base_is_refused(
    admin: Admin, client: openai.OpenAI, base: Path, demo_experts: Path
) -> None:
    library = admin.experts

    def tta(*arguments: object) -> None:
        command = [sys.executable, "-m", "tta_serve.cli.main", "experts", *map(str, arguments)]
        command.append(f"--library={library}")
        subprocess.run(command, check=True, capture_output=True, timeout=300)

    try:
        tta("add", demo_experts / "triage", f"--name={NEW}", f"--base={base}")
        admin.http.put(f"/experts/{NEW}").raise_for_status()
        assert ask(client, f"smollm2:{NEW}") == ask(client, "smollm2:triage")
        examples = f"--examples={demo_experts / 'math' / 'examples.txt'}"
        merge = ("merge", "--method=cat", "--experts=math,triage", "--weights=1,0.3")
        tta(*merge, f"--name={NEW}", examples)
        replaced = {"replaces": admin.served()[NEW]}
        admin.http.put(f"/experts/{NEW}", params=replaced).raise_for_status()
        mixed = client.chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": PROMPT}],
            temperature=0,
            max_tokens=24,
            extra_body={"merge": {"experts": {"math": 1, "triage": 0.3}}},
        )
        assert ask(client, f"smollm2:{NEW}") == mixed.choices[0].message.content
        told = library / "library.json"
        told.write_text(
            told.read_text(encoding="utf-8").replace('"digest": "', '"digest": "0'),
            encoding="utf-8",
        )
        status, message = admin.refusal(
            admin.http.put("/experts/sql", params={"replaces": admin.served()["sql"]})
        )
        assert status == 400
        assert "Experts of another base need a library of their own" in message
    finally:
        (library / "library.json").unlink()
