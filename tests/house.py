"""Measures the house: `python -m tests.house` prints figures and fails where a rule is broken."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("adapters", "router", "tta_serve", "deploy", "loadtest", "tests")
LINE_LIMIT = 100
LINE_P90 = 88
FUNCTION_MEDIAN = 6
FUNCTION_LIMIT = 50
DOCUMENTED = 0.95
README_LINES = 150
README_WORDS = 1300
UNMAPPED = 8
"""So many Python files a folder may have without a map of them in its `__init__`."""

ROLES = frozenset(
    {
        "__init__",
        "__main__",
        "conftest",
        "errors",
        "job",
        "options",
        "plots",
        "registry",
        "report",
        "results",
        "tables",
    }
)
"""File names that say a role in a folder, and may come again in another."""
LONG_FUNCTIONS: Mapping[str, str] = {
    "tta_serve.cli.experiment.plan": "its options, of four lines each",
    "tta_serve.cli.search.command": "its options, and what they are handed on in",
    "tta_serve.store.migrations.versions.v1_first.upgrade": "a schema, one table after the other",
}
"""Functions that may be over the limit, and why."""

Graph = Mapping[str, set[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = ast.Module | ast.ClassDef | Function


@dataclass(frozen=True)
class Source:
    """One Python file, read and parsed."""

    path: str
    """Relative to the root, with slashes."""
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def name(self) -> str:
        return Path(self.path).stem

    @property
    def folder(self) -> str:
        return str(Path(self.path).parent)

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    @property
    def is_test(self) -> bool:
        return self.package == "tests"


@dataclass(frozen=True)
class Finding:
    """What one check measured, and what breaks its rule."""

    title: str
    figure: str
    faults: Sequence[str] = ()


def read_sources(root: Path = ROOT) -> list[Source]:
    return [
        Source(file.relative_to(root).as_posix(), file.read_text(encoding="utf-8"))
        for package in PACKAGES
        for file in sorted((root / package).rglob("*.py"))
    ]


# Imports


def import_graph(sources: Sequence[Source]) -> dict[str, set[str]]:
    """Return for each module those of ours that it imports, inside functions as well."""
    modules = {source.module for source in sources}
    return {
        source.module: (set(_imported(source.tree, modules)) & modules) - {source.module}
        for source in sources
    }


def _imported(tree: ast.Module, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else str(node.module) for name in within)


def count_floors(graph: Graph) -> int:
    """Return how many modules the longest chain of imports has. Raises CycleError."""
    floors: dict[str, int] = {}
    for module in TopologicalSorter(graph).static_order():
        floors[module] = 1 + max((floors[other] for other in graph[module]), default=0)
    return max(floors.values(), default=0)


def measure_floors(sources: Sequence[Source]) -> Finding:
    """How high each package is piled up; a circle of imports is a fault."""
    figures, faults = [], []
    for package in PACKAGES:
        own = [source for source in sources if source.package == package]
        try:
            floors = str(count_floors(import_graph(own)))
        except CycleError as error:
            floors = "in a circle"
            faults.append(f"a circle of imports: {' > '.join(error.args[1])}")
        figures.append(f"{package} {len(own)}/{floors}")
    return Finding("files/floors of imports", ", ".join(figures), faults)


# Lines, functions, docstrings, names


def measure_lines(sources: Sequence[Source]) -> Finding:
    lengths, faults = [], []
    for source in sources:
        for number, line in enumerate(source.text.splitlines(), 1):
            if line:
                lengths.append(len(line))
            if len(line) > LINE_LIMIT:
                faults.append(f"{source.path}:{number}: {len(line)} columns")
    p90 = sorted(lengths)[int(0.9 * len(lengths))]
    if p90 > LINE_P90:
        faults.append(f"one line in ten has {p90} columns or more; at most {LINE_P90} are wanted")
    return Finding("columns", f"p90 {p90}, longest {max(lengths)}", faults)


def measure_texts(sources: Sequence[Source]) -> Finding:
    """Text that is read or written in the locale's encoding is another elsewhere."""
    calls = [
        (source.path, node)
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and handles_text(node)
    ]
    faults = [
        f"{path}:{node.lineno}: names no encoding"
        for path, node in calls
        if all(keyword.arg not in ("encoding", None) for keyword in node.keywords)
    ]
    return Finding("texts with an encoding", f"{len(calls) - len(faults)}", faults)


def handles_text(call: ast.Call) -> bool:
    """Return whether a call reads or writes a file as text, as far as its words tell."""
    function = call.func
    if isinstance(function, ast.Attribute):
        name, modes = function.attr, call.args
    else:
        name, modes = getattr(function, "id", ""), call.args[1:]
    if name in ("read_text", "write_text"):
        return len(call.args) <= (name == "write_text")
    if name != "open":
        return False
    named = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes = [*modes, *named]
    if not modes:
        return isinstance(function, ast.Name) or not call.args
    mode = modes[0].value if isinstance(modes[0], ast.Constant) else None
    return isinstance(mode, str) and bool(re.fullmatch("[rwaxt+]+", mode))


def code_lines(function: Function, lines: Sequence[str]) -> int:
    """Return how many lines of code a function has, its head included, its docstring not."""
    numbers = set(range(function.lineno, (function.end_lineno or function.lineno) + 1))
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        numbers -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    code = (lines[number - 1].strip() for number in numbers)
    return sum(1 for line in code if line and not line.startswith("#"))


def measure_functions(sources: Sequence[Source]) -> Finding:
    sizes = {
        f"{source.module}.{node.name}:{node.lineno}": code_lines(node, source.text.splitlines())
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, Function)
    }
    middle = median(sizes.values())
    faults = [
        f"{name}: {size} lines of code"
        for name, size in sizes.items()
        if size > FUNCTION_LIMIT and name.split(":")[0] not in LONG_FUNCTIONS
    ]
    if middle > FUNCTION_MEDIAN:
        faults.append(f"the median function has {middle:g} lines of code, not {FUNCTION_MEDIAN}")
    figure = f"{len(sizes)}, lines of code: median {middle:g}, longest {max(sizes.values())}"
    return Finding("functions", figure, faults)


def public_definitions(node: Scope, name: str) -> Iterator[tuple[str, Scope]]:
    """Yield a module or class and all that is public in it, each with its full name."""
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef | Function) and not child.name.startswith("_"):
            if isinstance(child, ast.ClassDef):
                yield from public_definitions(child, f"{name}.{child.name}")
            else:
                yield f"{name}.{child.name}", child


def inherited_names(sources: Sequence[Source]) -> dict[str, set[str]]:
    """Return for each class of ours the methods that its bases, or theirs, document."""
    nodes = [node for source in sources for node in ast.walk(source.tree)]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    bases = {name: _bases(node) & classes.keys() - {name} for name, node in classes.items()}
    found: dict[str, set[str]] = {}
    for name in TopologicalSorter(bases).static_order():
        found[name] = {m for base in bases[name] for m in found[base] | _documented(classes[base])}
    return found


def _bases(node: ast.ClassDef) -> set[str]:
    """Return the names in its list of bases, of `Base[T]` both."""
    names = (name for base in node.bases for name in ast.walk(base))
    return {name.id for name in names if isinstance(name, ast.Name)}


def _documented(node: ast.ClassDef) -> set[str]:
    methods = (child for child in node.body if isinstance(child, Function))
    return {method.name for method in methods if ast.get_docstring(method)}


def measure_docstrings(sources: Sequence[Source]) -> Finding:
    """Whether public modules, classes and functions say what they are; tests need not.

    A method that a base class documents has its docstring there.
    """
    product = [source for source in sources if not source.is_test]
    inherited = inherited_names(product)
    public, bare = 0, []
    for source in product:
        for name, node in public_definitions(source.tree, source.module):
            owner, _, own = name.rpartition(".")
            if own in inherited.get(owner.rpartition(".")[2], ()):
                continue
            public += 1
            if not ast.get_docstring(node):
                bare.append(name)
    share = 1 - len(bare) / public
    faults = [f"no docstring: {name}" for name in bare] if share < DOCUMENTED else []
    return Finding("public docstrings", f"{share:.1%} of {public}", faults)


def measure_names(sources: Sequence[Source]) -> Finding:
    """Two public classes of one name, or two files of one name in a package; tests mirror these."""
    classes, files = defaultdict(list), defaultdict(list)
    for source in sources:
        if source.is_test:
            continue
        if source.name not in ROLES:
            files[source.package, source.name].append(source.path)
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(source.path)
    twice = {name: paths for name, paths in classes.items() if len(paths) > 1}
    same = [paths for paths in files.values() if len(paths) > 1]
    faults = [f"class {name}: {', '.join(paths)}" for name, paths in twice.items()]
    faults += [f"files of one name: {', '.join(paths)}" for paths in same]
    return Finding("names given twice", f"classes {len(twice)}, files {len(same)}", faults)


# Maps of folders


def mapped_names(init: Source) -> dict[str, bool]:
    """Return the names in lines `name   what it is for` of a folder's docstring.

    Each with whether it is surely a file's or folder's: `name.py`, `name/`.
    """
    text = ast.get_docstring(init.tree) or ""
    found = re.findall(r"^ *(\w+)(\.py|/)? {2,}\S", text, re.MULTILINE)
    return {name: bool(ending) for name, ending in found}


def measure_maps(sources: Sequence[Source]) -> Finding:
    """A big folder's `__init__` lists its files; a test's name already says what it tests."""
    files, folders = defaultdict(set), defaultdict(set)
    for source in sources:
        parent = Path(source.folder)
        folders[parent.parent.as_posix()].add(parent.name)
        if source.name != "__init__" and not source.name.startswith("test_"):
            files[source.folder].add(source.name)
    faults, big = [], 0
    for init in (source for source in sources if source.name == "__init__"):
        mapped, own = mapped_names(init), files[init.folder]
        is_big = len(own) > UNMAPPED
        big += is_big
        unlisted = sorted(own - mapped.keys()) if is_big else []
        unknown = mapped.keys() - own - folders[init.folder]
        faults += [f"{init.path} does not list {name}" for name in unlisted]
        faults += [
            f"{init.path} lists {name}, which is not there"
            for name in sorted(unknown)
            if is_big or mapped[name]
        ]
    return Finding("maps of folders", f"{big} folders have more than {UNMAPPED} files", faults)


# READMEs


def read_readmes(root: Path = ROOT) -> dict[str, str]:
    """Return the texts of all READMEs and of CONTRIBUTING.md by their paths."""
    within = (file for package in PACKAGES for file in (root / package).rglob("README.md"))
    files = [root / "README.md", root / ".github/CONTRIBUTING.md", *within]
    return {file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files}


def measure_length(text: str) -> Finding:
    lines, words = len(text.splitlines()), len(text.split())
    faults = []
    if lines > README_LINES:
        faults.append(f"README.md has {lines} lines; at most {README_LINES} are wanted")
    if words > README_WORDS:
        faults.append(f"README.md has {words} words; at most {README_WORDS} are wanted")
    return Finding("README", f"{lines} lines, {words} words", faults)


def measure_references(root: Path, readmes: Mapping[str, str]) -> Finding:
    """Links, paths and commands of READMEs that lead nowhere."""
    targets = set(
        re.findall(r"^([\w-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    checked, faults = 0, []
    for path, text in readmes.items():
        here = root / Path(path).parent
        places = {
            **{link: (here / link).exists() for link in _links(text)},
            **{name: _is_path(root, here, name) for name in _paths(text, here)},
            **{f"make {name}": name in targets for name in _make_targets(text)},
            **{f"python -m {name}": _is_module(root, name) for name in _modules(text)},
        }
        checked += len(places)
        faults += [f"{path}: {place} is not there" for place, there in places.items() if not there]
    return Finding("references of READMEs", str(checked), faults)


def _links(text: str) -> list[str]:
    """Relative ones, without the heading they point to."""
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    return [link for link in links if link and ":" not in link]


def _paths(text: str, here: Path) -> list[str]:
    """What is in backticks and begins with one of our folders, or is a Python file."""
    spans = re.findall(r"`(\.?[\w-]+(?:/[\w.*-]+)+/?|[a-z]\w*\.py)`", text)
    beginnings = {*PACKAGES, *(child.name for child in here.iterdir() if child.is_dir())}
    return [span for span in spans if span.endswith(".py") or span.split("/")[0] in beginnings]


def _is_path(root: Path, here: Path, name: str) -> bool:
    return any(any(folder.glob(name.rstrip("/"))) for folder in (root, here))


def _make_targets(text: str) -> list[str]:
    return re.findall(r"(?:^ {4,}|^\$ |`)make ([a-z][\w-]*)", text, re.MULTILINE)


def _modules(text: str) -> list[str]:
    modules = re.findall(r"python3? -m ([\w.]+\w)", text)
    return [module for module in modules if module.split(".")[0] in PACKAGES]


def _is_module(root: Path, module: str) -> bool:
    place = root / module.replace(".", "/")
    return place.with_suffix(".py").exists() or (place / "__main__.py").exists()


def measure_all(root: Path = ROOT) -> list[Finding]:
    sources = read_sources(root)
    readmes = read_readmes(root)
    of_code = (
        measure_floors,
        measure_lines,
        measure_texts,
        measure_functions,
        measure_docstrings,
        measure_names,
        measure_maps,
    )
    return [
        *(measure(sources) for measure in of_code),
        measure_length(readmes["README.md"]),
        measure_references(root, readmes),
    ]


def main() -> int:
    """Print all figures, then all faults; return 1 if there is one."""
    findings = measure_all()
    for finding in findings:
        print(f"{finding.title:<25}{finding.figure}")
    faults = [fault for finding in findings for fault in finding.faults]
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
