"""What `tta router` made for a library, and whether it can still be used."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from adapters.bank.layer_gates import LAYER_GATES, read_gates
from adapters.errors import AdapterError
from adapters.files.facts import is_hidden
from adapters.library.checkup import ROUTER, Fault, explain_stale
from adapters.library.entries import ENTRIES
from router.errors import RouterError
from router.policies.pareto import FRONTS, Front, read_front
from router.policies.recombined import ENTRY_SETS, EntrySet, read_entry_set
from router.scoring.trained_gate import Gate


def check_artifacts(root: Path, experts: Mapping[str, str]) -> Iterator[Fault]:
    """Yield what is wrong with gates, fronts and sets of entries, and what lies beside them.

    Args:
        root: The library's folder.
        experts: The digest of each expert that can be used, by name.
    """
    folder = root / ROUTER
    yield from _check_gates(folder, experts)
    yield from _check_sets(folder / FRONTS, "pareto", partial(read_front, folder), experts)
    read_set = partial(read_entry_set, folder)
    yield from _check_sets(folder / ENTRY_SETS, "recombine", read_set, experts)
    yield from _check_layer_gates(root, experts)
    known = {ENTRIES.name, FRONTS, ENTRY_SETS, LAYER_GATES.name}
    for file in sorted(folder.glob("*")):
        is_known = file.name in known or file.suffix in (".json", ".safetensors")
        if not is_known and not is_hidden(file):
            what, remedy = "is nothing that tta router made", "move it out of the library"
            yield Fault(str(ROUTER / file.name), what, remedy)


def _check_gates(folder: Path, experts: Mapping[str, str]) -> Iterator[Fault]:
    files = {*folder.glob("*.json"), *folder.glob("*.safetensors")}
    gates = {file.stem for file in files if not is_hidden(file) and file.name != LAYER_GATES.name}
    for name in sorted(gates):
        place, remedy = f"{ROUTER / name}.json", f"tta router train --name {name}, or delete it"
        try:
            digests = Gate.load(folder, name).about.digests
        except (AdapterError, RouterError, OSError) as error:
            yield Fault(place, str(error), remedy)
            continue
        if stale := explain_stale(digests, experts):
            yield Fault(place, stale, remedy)


def _check_sets(
    folder: Path,
    command: str,
    read: Callable[[str], Front | EntrySet],
    experts: Mapping[str, str],
) -> Iterator[Fault]:
    """Yield what is wrong with the fronts, or the sets of entries, in a folder."""
    for file in sorted(folder.glob("*.json")):
        if is_hidden(file):
            continue
        name = file.stem
        place = str(ROUTER / folder.name / file.name)
        remedy = f"tta router {command} --name {name} --replace, or delete it"
        try:
            found = read(name)
        except RouterError as error:
            yield Fault(place, str(error), remedy)
            continue
        if stale := explain_stale(found.digests, experts):
            yield Fault(place, stale, remedy)


def _check_layer_gates(root: Path, experts: Mapping[str, str]) -> Iterator[Fault]:
    file = root / LAYER_GATES
    if not file.exists():
        return
    remedy = "tta router gates --replace, or delete it"
    try:
        found = read_gates(file)
    except (AdapterError, OSError) as error:
        yield Fault(str(LAYER_GATES), str(error), remedy)
        return
    gone = len(found.keys() - set(experts.values()))
    if gone:
        what = f"{gone} of the {len(found)} experts that it has gates of are gone or changed since"
        yield Fault(str(LAYER_GATES), what, remedy)
