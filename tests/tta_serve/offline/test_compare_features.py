"""How feature choices are judged."""

from dataclasses import astuple

import pytest
import torch

from adapters.files.checkpoint import Checkpoint
from router.scoring.centroids import fit
from tests.factories.tiny_library import EVERYDAY, EXAMPLES, make_library, read_ids
from tta_serve.offline.base_model import PlainModel
from tta_serve.offline.compare_features import (
    FeatureRow,
    Quality,
    auroc,
    compare_features,
    judge,
    list_encoders,
    mark_worthwhile,
)
from tta_serve.offline.features import EarlyFeatures
from tta_serve.offline.labelled_prompts import Prompts

LABELLED = [("a", "a"), ("b", "b"), ("c", "b"), ("d", None)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PlainModel:
    return PlainModel.load(
        Checkpoint.open(make_library(tmp_path_factory.mktemp("features")).parent / "base")
    )


def test_a_prompt_is_right_if_its_expert_scores_highest_and_the_base_if_none_does() -> None:
    margins = torch.tensor([[0.5, 0.1], [-0.2, -0.1], [0.3, 0.2], [-0.15, -0.3]])
    quality = judge(margins, ("a", "b"), LABELLED)
    assert astuple(quality) == pytest.approx((2 / 3, 0.5, 1.0))


def test_auroc_counts_pairs_and_ties_half() -> None:
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])) == pytest.approx((3 + 0.5) / 4)


def test_a_choice_is_worth_it_if_no_faster_one_is_as_good() -> None:
    def row(with_base: float, ms: float) -> FeatureRow:
        return FeatureRow("layer 1", "raw", "mean", True, Quality(1.0, with_base, 1.0), ms)

    rows = [
        row(0.9, 8.0),
        row(0.9, 9.0),
        row(0.8, 8.0),
        row(0.7, 2.0),
        row(0.6, 3.0),
        row(0.5, 1.0),
    ]
    assert mark_worthwhile(rows) == [True, False, False, True, False, True]


def test_raw_centroids_are_those_of_features_that_need_no_standardising() -> None:
    g = torch.Generator().manual_seed(0)
    features = {name: torch.randn(8, 5, generator=g) + k for k, name in enumerate("ab")}
    everyday = torch.randn(8, 5, generator=g)
    everything = torch.cat([*features.values(), everyday])
    mean, std = everything.mean(0), everything.std(0)
    as_it_is = fit(
        {n: (f - mean) / std for n, f in features.items()},
        (everyday - mean) / std,
        standardise=False,
    )
    x = torch.randn(4, 5, generator=g)
    torch.testing.assert_close(as_it_is.score((x - mean) / std), fit(features, everyday).score(x))


def test_all_choices_are_compared_on_the_features_they_name(plain: PlainModel) -> None:
    (way,) = list_encoders(plain, [0, 1])
    pooled = way.pooled(EXAMPLES["sql"][0])
    torch.testing.assert_close(
        pooled["layer 1", "mean"], EarlyFeatures(plain, 1)(EXAMPLES["sql"])[0]
    )
    embedding = plain.model.get_input_embeddings()(read_ids(EXAMPLES["sql"][0]))[0].mean(0)
    torch.testing.assert_close(pooled["token embeddings", "mean"], embedding)
    labelled = [(text, name) for name, texts in EXAMPLES.items() for text in texts] + [
        (text, None) for text in EVERYDAY
    ]
    rows = compare_features([way], Prompts(EXAMPLES, EVERYDAY), labelled, lambda texts: texts)
    assert {(r.source, r.pooling, r.standardised) for r in rows} == {
        *(
            (f"layer {n}", pooling, scale)
            for n in (0, 1)
            for pooling in ("mean", "last")
            for scale in (True, False)
        ),
        *(("token embeddings", "mean", scale) for scale in (True, False)),
    }
    assert rows[0].quality.with_base == max(row.quality.with_base for row in rows) > 0.9
    assert all(row.ms > 0 for row in rows)
