"""Train an expert: LoRA on the upper layers, on generated examples and people's, on a CPU."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file

from deploy.demo.base import BASE_ID, cache_root
from deploy.demo.evaluate import draw_examples, score
from deploy.demo.model import (
    EXPERTS,
    encode_answer,
    encode_invocation,
    encode_prompt,
    load_base,
)
from deploy.demo.results import read_results, update_result
from deploy.demo.tasks import TASKS, Example
from deploy.demo.voices import SPEAKERS, TRAIN, list_examples

FIRST_LAYER = 6
LAYERS = 30
STEPS = {"orders": 200, "sql": 220, "math": 170, "triage": 160, "dates": 180, "redact": 140}
RANKS = {"orders": 16, "sql": 16, "math": 16, "triage": 8, "dates": 16, "redact": 16}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WINDOW = 8  # batches sorted by length together
WARMUP = 10
SAVE_EVERY = 25
VALIDATION_N = 100
ROUTER_EXAMPLES = 48


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the result of a training run; a checkpoint made with others is not continued."""

    task: str
    steps: int
    """Of the optimiser."""
    seed: int = 0
    """Of the data and of the first weights."""
    batch: int = 8
    """Examples of a step."""
    peak: float = 2e-3
    """The highest learning rate."""
    spoken: float = 0.3
    """The share of the examples that are people's, dealt in turn; the others are generated."""
    acts_from: Literal["start", "user_turn", "answer"] = "start"
    """Where in a prompt the adapter begins to act; tokens before that run as the base."""
    further: bool = False
    """Whether the expert that is there is trained further, at half the rate."""

    def rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up, then a cosine down to a twentieth."""
        peak = self.peak / 2 if self.further else self.peak
        if step < WARMUP:
            return peak * (step + 1) / WARMUP
        done = (step - WARMUP) / max(1, self.steps - WARMUP)
        return peak * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)


@dataclass
class Run:
    """A training run in memory."""

    settings: TrainingSettings
    model: Any
    tokenizer: Any
    optimiser: torch.optim.Optimizer
    step: int = 0
    """The next one."""
    seconds: float = 0.0
    """How long it has trained, over all its starts."""

    @property
    def causal(self) -> Any:
        """The model that computes logits."""
        return self.model.get_base_model()

    @property
    def checkpoint(self) -> Path:
        """Where the run is kept while it is not over."""
        name = self.settings.task
        if self.settings.acts_from != "start":
            name = f"{name}-{self.settings.acts_from}"
        return cache_root() / "training" / f"{name}.pt"

    def save(self) -> None:
        """Keep the run on disk, in one step.

        The data of a step follows from seed and step, so the only generator is torch's.
        """
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        part = self.checkpoint.with_suffix(".part")
        state = {
            "settings": asdict(self.settings),
            "trained": self.get_state(),
            "optimiser": self.optimiser.state_dict(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def resume(self) -> bool:
        """Go on where an interrupted run with the same settings stopped, if there is one."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, weights_only=True)
        if state["settings"] != asdict(self.settings):
            return False
        self.set_state(state["trained"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"])
        self.step = state["step"]
        self.seconds = state["seconds"]
        return True

    def get_state(self) -> dict[str, torch.Tensor]:
        """Return what is trained, by name."""
        return dict(get_peft_model_state_dict(self.model))

    def set_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `get_state` returned."""
        set_peft_model_state_dict(self.model, dict(state))


def start_run(settings: TrainingSettings, library: Path = EXPERTS) -> Run:
    """Make a fresh run: base, adapter, optimiser.

    Args:
        settings: What decides the result.
        library: Where the expert is, if it is trained further.
    """
    torch.manual_seed(settings.seed)
    base, tokenizer = load_base()
    config = LoraConfig(
        r=RANKS[settings.task],
        lora_alpha=2 * RANKS[settings.task],
        target_modules=TARGETS,
        layers_to_transform=list(range(FIRST_LAYER, LAYERS)),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=encode_invocation(tokenizer, settings.acts_from),
    )
    model = get_peft_model(base, config)
    if settings.further:
        there = load_file(library / settings.task / "adapter_model.safetensors")
        set_peft_model_state_dict(model, there)
    trained = [p for p in model.parameters() if p.requires_grad]
    return Run(settings, model, tokenizer, torch.optim.AdamW(trained, weight_decay=0.0))


def draw_batches(run: Run) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Draw the batches from the run's step on, as (prompt, answer) tokens.

    Within a window those of similar length are together.
    """
    settings = run.settings
    first = run.step
    people = list_examples(settings.task, SPEAKERS, TRAIN)
    for window in range(first // WINDOW, math.ceil(settings.steps / WINDOW)):
        seed = settings.seed * 100_000 + window
        rows = [
            (encode_prompt(run.tokenizer, e.prompt), encode_answer(run.tokenizer, e.answer))
            for e in draw_window(settings, people, window, seed)
        ]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        parts = [rows[at : at + settings.batch] for at in range(0, len(rows), settings.batch)]
        random.Random(seed).shuffle(parts)
        yield from parts[max(0, first - window * WINDOW) : settings.steps - window * WINDOW]


def draw_window(
    settings: TrainingSettings, people: Sequence[Example], window: int, seed: int
) -> list[Example]:
    """Draw the examples of a window: generated ones, and people's.

    Of the latter none comes again before all have come.
    """
    total = WINDOW * settings.batch
    count = round(settings.spoken * total)
    places = range(window * count, (window + 1) * count)
    dealt = []
    for deal, own in groupby(places, lambda place: place // len(people)):
        order = random.Random(f"{settings.seed}/{deal}").sample(people, len(people))
        dealt += [order[place % len(people)] for place in own]
    return TASKS[settings.task].examples("train", total - count, seed) + dealt


def find_common_start(rows: list[list[int]]) -> list[int]:
    """Return the tokens that all rows begin with."""
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return [column[0] for column in alike]


def compute_loss(run: Run, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Return the mean cross-entropy of the answers' tokens.

    What is the same work for all rows is done once (the system prompt that all begin with), and
    logits are computed for the answers alone: that saves a third of the time.
    """
    if run.settings.acts_from != "start":
        return _compute_activated_loss(run, rows)
    shared = find_common_start([prompt for prompt, _ in rows])
    ids, mask, wanted = _lay_out(run, rows, len(shared))

    # The shared start runs once, as a cache that every row then has.
    causal = run.causal
    cache = causal.model(input_ids=torch.tensor([shared]), use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(rows))
    hidden = causal.model(
        input_ids=ids, attention_mask=mask, past_key_values=cache
    ).last_hidden_state
    chosen = wanted >= 0
    return torch.nn.functional.cross_entropy(causal.lm_head(hidden[chosen]), wanted[chosen])


def _lay_out(
    run: Run, rows: list[tuple[list[int], list[int]]], start: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a batch of rows from a token on, padded at their ends.

    Returns:
        Its tokens, [rows, tokens from `start` on]; which tokens of whole rows are none of padding;
        and, shaped like the first, the answers' tokens one place earlier, -100 elsewhere.
    """
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width - start), run.tokenizer.pad_token_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    wanted = torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, : end - start] = torch.tensor((prompt + answer)[start:])
        mask[row, :end] = 1
        wanted[row, len(prompt) - 1 - start : end - 1 - start] = torch.tensor(answer)
    return ids, mask, wanted


def _compute_activated_loss(run: Run, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Return the same of an adapter that acts from a token of its own in each row.

    PEFT finds that token, and runs those before it as the base.
    """
    ids, mask, wanted = _lay_out(run, rows, 0)
    logits = run.model(input_ids=ids, attention_mask=mask).logits
    chosen = wanted >= 0
    return torch.nn.functional.cross_entropy(logits[chosen], wanted[chosen])


def train_step(run: Run, rows: list[tuple[list[int], list[int]]]) -> float:
    """Take one step of the optimiser, and return its loss."""
    for group in run.optimiser.param_groups:
        group["lr"] = run.settings.rate(run.step)
    loss = compute_loss(run, rows)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.optimiser.param_groups[0]["params"], 1.0)
    run.optimiser.step()
    run.optimiser.zero_grad()
    run.step += 1
    return loss.item()


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """Show a bar with step, loss and time left while the block lasts."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        yield progress


def optimise(run: Run, console: Console) -> None:
    """Train to the last step, keeping a checkpoint now and then."""
    began = time.monotonic()
    before = run.seconds
    with show_progress(console) as progress:
        bar = progress.add_task(
            run.settings.task, total=run.settings.steps, completed=run.step, loss=float("nan")
        )
        for rows in draw_batches(run):
            loss = train_step(run, rows)
            run.seconds = before + time.monotonic() - began
            progress.update(bar, completed=run.step, loss=loss)
            if run.step % SAVE_EVERY == 0 or run.step == run.settings.steps:
                run.save()
                console.print(
                    f"{run.settings.task} step {run.step} loss {loss:.4f} {run.seconds:.0f} s"
                )


def export(run: Run, folder: Path) -> None:
    """Round the adapter to float16, and write it to a folder for PEFT and vLLM.

    Prompts that show the router its task go with it.
    """
    task = run.settings.task
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for parameter in run.optimiser.param_groups[0]["params"]:
            parameter.copy_(parameter.half())
    state = {
        key: value.half().contiguous()
        for key, value in get_peft_model_state_dict(run.model).items()
    }
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = run.model.peft_config["default"]
    config.base_model_name_or_path = BASE_ID
    config.inference_mode = True
    # A set, whose order would differ from run to run.
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))
    if not run.settings.further:
        write_examples(task, folder, run.settings.seed)


def write_examples(task: str, folder: Path, seed: int) -> None:
    """Write the prompts that show a router what an expert of the task is for."""
    prompts = [example.line for example in TASKS[task].examples("train", ROUTER_EXAMPLES, seed)]
    (folder / "examples.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")


def train_to_end(run: Run, console: Console) -> None:
    """Train a run to its last step, from where an interrupted one of the same settings stopped.

    Sets torch's threads, and how this process computes with the smallest numbers.
    """
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    torch.set_flush_denormal(True)
    if run.resume():
        console.print(f"{run.settings.task}: going on at step {run.step}")
    optimise(run, console)


def end_run(run: Run, name: str, validation: float, options: str = "") -> None:
    """Put what a run took, and how it did, into the results, and drop its checkpoint.

    Args:
        run: A run that is over.
        name: The name of its entry in the results.
        validation: Its exact match on the validation split.
        options: Further ones of the command that trains it, each followed by a blank.
    """
    settings = run.settings
    options += f"--steps {settings.steps} --seed {settings.seed}"
    commands = [f"python -m deploy.demo train {settings.task} {options}"]
    steps, seconds = settings.steps, round(run.seconds)
    if settings.further:
        before = read_results()[name]
        commands = [before["command"], f"{commands[0]} --further"]
        steps += before["steps"]
        seconds += before["seconds"]
    update_result(
        name,
        afresh=True,
        validation=validation,
        validation_n=VALIDATION_N,
        steps=steps,
        batch=settings.batch,
        seconds=seconds,
        command=" && ".join(commands),
    )
    run.checkpoint.unlink(missing_ok=True)


def train(settings: TrainingSettings, console: Console, out: Path = EXPERTS) -> float:
    """Train, write and validate an expert.

    Args:
        settings: What decides the result.
        console: Where to say how it goes.
        out: The library's folder; results are kept of the demo's own library.

    Returns:
        Its exact match on the validation split.
    """
    run = start_run(settings, out)
    train_to_end(run, console)
    export(run, out / settings.task)
    held_out = draw_examples(settings.task, "validation", VALIDATION_N)
    validation, wrong = score(run.model.eval(), run.tokenizer, settings.task, held_out)
    for example, answer in wrong[:8]:
        console.print(
            json.dumps({"prompt": example.prompt, "want": example.answer, "got": answer}),
            markup=False,
        )
    console.print(
        f"{settings.task}: validation exact match {validation:.2f} ({VALIDATION_N}),"
        f" {run.seconds:.0f} s"
    )
    if out == EXPERTS:
        end_run(run, settings.task, validation)
    return validation
