"""Experts mixed into the base by hooks are the base with dense merged weights."""

from pathlib import Path

import pytest
import torch

from adapters.errors import ExpertError
from adapters.expert import Expert, LowRank
from adapters.files.peft import load_peft
from adapters.library.library import Library
from tests.factories.experts import make_end_expert
from tests.factories.tiny_library import EXAMPLES, NAMES, load_mixed
from tests.reference import Reference
from tta_serve.offline.mixed_model import MixedModel, Sample


def test_predictions_are_those_of_merged_weights_layer_by_layer(
    library: Path, both: MixedModel
) -> None:
    prompt, answer = [5, 6, 7], [8, 9, 10, 11]
    coefficients = torch.tensor([[0.5, -0.25], [1.5, 0.75]])
    found = both.predict(Sample(torch.tensor([[*prompt, *answer[:-1]]]), len(answer)), coefficients)
    reference = Reference(library.parent / "base")
    experts = Library.open(library).experts
    by_name = {name: tuple(coefficients[:, k].tolist()) for k, name in enumerate(NAMES)}
    with reference.merged(experts, by_name):
        torch.testing.assert_close(
            found.logits.log_softmax(-1), reference.logprobs(prompt, answer), rtol=1e-4, atol=1e-4
        )
        output = reference.model(torch.tensor([[*prompt, *answer[:-1]]]), output_hidden_states=True)
    torch.testing.assert_close(
        found.states, torch.cat(output.hidden_states)[:, 2:], rtol=1e-4, atol=1e-4
    )


def test_experts_on_the_ends_of_the_base_are_mixed_as_the_layers_next_to_them(
    library: Path, both: MixedModel, tmp_path: Path
) -> None:
    ends = load_peft(make_end_expert(tmp_path / "ends", library.parent / "base", seed=7))
    mixed = MixedModel(both.plain, [ends])
    prompt, answer = [5, 6, 7], [8, 9, 10, 11]
    found = mixed.predict(
        Sample(torch.tensor([[*prompt, *answer[:-1]]]), len(answer)), torch.tensor([[0.5], [-1.5]])
    )
    reference = Reference(library.parent / "base")
    with reference.merged({"ends": ends}, {"ends": (0.5, -1.5)}):
        torch.testing.assert_close(
            found.logits.log_softmax(-1), reference.logprobs(prompt, answer), rtol=1e-4, atol=1e-4
        )


def test_nothing_is_left_in_the_model_and_only_coefficients_have_gradients(
    both: MixedModel,
) -> None:
    coefficients = torch.zeros(2, 2, requires_grad=True)
    both.predict(Sample(torch.tensor([[1, 2, 3]]), 2), coefficients).logits.sum().backward()
    assert coefficients.grad is not None
    assert bool((coefficients.grad != 0).all())
    assert not any(parameter.requires_grad for parameter in both.plain.model.parameters())
    linear = [
        module for module in both.plain.model.modules() if isinstance(module, torch.nn.Linear)
    ]
    assert not any(module._forward_hooks for module in linear)


def test_a_sample_holds_the_experts_own_greedy_answer(library: Path, both: MixedModel) -> None:
    reference, prompt = Reference(library.parent / "base"), EXAMPLES["sql"][0]
    sample = both.make_sample(1, prompt, 6)
    ids = [int(word[1:]) for word in prompt.split()]
    with reference.merged(Library.open(library).experts, {"sql": 1.0}), torch.no_grad():
        for _ in range(6):
            ids.append(int(reference.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 2:  # the tiny base's end of text
                break
    assert sample.ids.tolist() == [ids[:-1]]
    assert sample.answer == len(ids) - len(prompt.split())


def test_an_answer_ends_where_the_expert_ends_it(library: Path) -> None:
    one = load_mixed(library, "sql")
    first = int(one.make_sample(0, EXAMPLES["sql"][0], 2).ids[0, -1])
    one.plain.model.generation_config.eos_token_id = [first]
    assert one.make_sample(0, EXAMPLES["sql"][0], 6).answer == 1


@pytest.mark.parametrize(
    ("module", "shape"), [("model.norm", (32, 32)), ("model.layers.0.mlp.router", (4, 32))]
)
def test_an_expert_of_anything_else_is_refused(
    both: MixedModel, module: str, shape: tuple[int, int]
) -> None:
    expert = Expert("odd", {module: LowRank(torch.ones(1, shape[1]), torch.ones(shape[0], 1))})
    with pytest.raises(ExpertError, match=module):
        MixedModel(both.plain, [expert])
