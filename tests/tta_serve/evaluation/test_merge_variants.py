"""With which densities static merges are tried."""

from adapters.merge.registry import METHODS
from tta_serve.evaluation.merge_variants import (
    DENSITIES,
    MergeVariant,
    TunedMerge,
    list_variants,
)


def test_every_method_with_a_density_is_tried_with_its_own_and_few_others() -> None:
    found = list_variants(METHODS, tuned=True)
    assert len(set(found)) == len({variant.expert for variant in found}) == len(found)
    for name, method in METHODS.items():
        own = [variant.density for variant in found if variant.method == name]
        option = method.options.get("density")
        if option is None:
            assert own == [None]
        else:
            assert own[0] == option.default
            assert set(own) == {option.default, *DENSITIES}
    assert len(list_variants(["ties"], tuned=True)) == 4
    assert len(list_variants(["pcb"], tuned=True)) == 3, "its own is one of them"


def test_without_tuning_each_method_is_as_it_is() -> None:
    assert list_variants(["ties", "linear"], tuned=False) == [
        MergeVariant("ties"),
        MergeVariant("linear"),
    ]
    assert MergeVariant("ties").options == {}


def test_an_arm_is_called_by_its_method_whatever_the_density() -> None:
    merge = TunedMerge(MergeVariant("ties", 0.5), 2.0)
    assert merge.arm == "merge ties"
    assert merge.variant.title == "merge ties, density 0.5"
    assert merge.variant.expert == "merge-ties-density-0.5"
