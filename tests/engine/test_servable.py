"""What is added can be served: the library's word on a base's weights is the engine's too."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.files.checkpoint import Checkpoint
from adapters.files.delta_forms import LowRankForm
from adapters.files.servable import ServableWeights
from adapters.library.ingest import OwnerNotes, draft_folder
from adapters.library.library import Library
from adapters.library.versions import VersionStore
from adapters.mix import Mix
from tests.factories.engines import assert_same
from tests.factories.tiny_engines import BASES, prompts, tiny_engine, write_base
from tests.reference import Reference


def write_fine_tune(folder: Path, base: Path) -> Path:
    """Write a base with all of its weights changed, also those that slots cannot serve."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(base / "model.safetensors")
    for weight, value in tensors.items():
        tensors[weight] = value + 0.05 * torch.randn(value.shape, generator=generator)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    return folder


@pytest.mark.parametrize("name", BASES)
def test_a_fine_tune_that_was_added_is_served_whatever_the_base(name: str, tmp_path: Path) -> None:
    from tta_serve.engine.worker.sites import find_sites

    base = write_base(tmp_path / "base", BASES[name])
    checkpoint, store = Checkpoint.open(base), VersionStore(tmp_path / "library")
    tuned = write_fine_tune(tmp_path / "tuned", base)
    draft = draft_folder(tuned, "tuned", checkpoint, LowRankForm(rank=4), OwnerNotes())
    store.add(draft.name, draft.deltas, draft.form, draft.about, draft.base)
    library = Library.open(store.root)

    servable = ServableWeights.of(checkpoint)
    shapes = checkpoint.shapes
    wanted = {w for w, shape in shapes.items() if servable.explain_refusal(w, shape) is None}
    assert {f"{module}.weight" for module in library.expert("tuned").factors} == wanted

    mix = Mix.of({"tuned": 1.0})
    with tiny_engine(base, library) as ours:
        config = ours.llm.llm_engine.vllm_config.model_config
        [sites] = ours.llm.apply_model(lambda model: [*find_sites(model, config).values()])
        assert {f"{w}.weight" for site in sites for w in site.weights} == wanted
        answers = ours.go_on(prompts(), [mix] * len(prompts()), 8)
    reference = Reference(base)
    with reference.merged(library.experts, mix.as_dict()):
        for answer in answers:
            assert_same(answer, reference.logprobs(answer.prompt, answer.tokens))
