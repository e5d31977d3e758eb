"""The house's checks find what they are for."""

from collections.abc import Sequence
from graphlib import CycleError
from pathlib import Path
from textwrap import dedent

import pytest

from tests.house import (
    FUNCTION_LIMIT,
    LINE_LIMIT,
    UNMAPPED,
    Source,
    count_floors,
    import_graph,
    measure_docstrings,
    measure_floors,
    measure_functions,
    measure_length,
    measure_lines,
    measure_maps,
    measure_names,
    measure_references,
    measure_texts,
)


def test_floors_count_the_longest_chain_lazy_imports_included() -> None:
    graph = import_graph(
        [
            Source("router/__init__.py", ""),
            Source("router/low.py", "import json"),
            Source("router/mid.py", "from router import low"),
            Source("router/top.py", "def f():\n    from router.mid import g"),
        ]
    )
    assert graph["router.top"] == {"router.mid"}
    assert count_floors(graph) == 3


def test_a_circle_of_imports_is_a_fault() -> None:
    ring = [
        Source("router/a.py", "import router.b"),
        Source("router/b.py", "def f():\n    import router.a"),
    ]
    with pytest.raises(CycleError):
        count_floors(import_graph(ring))
    (fault,) = measure_floors(ring).faults
    assert "router.a > router.b" in fault


def test_text_without_an_encoding_is_a_fault() -> None:
    wrong = """
        path.read_text()
        path.write_text(text)
        path.open()
        path.open("w")
        open(path)
        open(path, "a")
        open(path, mode="r+")
    """
    right = """
        path.read_text(encoding="utf-8")
        path.write_text(text, encoding="utf-8")
        path.open("rb")
        path.open(encoding="utf-8")
        open(path, "wb")
        os.open(path, flags)
        Library.open(path)
        Library.open("library")
        path.read_text(**more)
    """
    texts = (Source("router/a.py", dedent(code)) for code in (wrong, right))
    assert [len(measure_texts([text]).faults) for text in texts] == [7, 0]


def test_long_lines_and_long_functions_are_faults() -> None:
    wide = Source("router/a.py", "x" * (LINE_LIMIT + 1))
    assert "router/a.py:1: 101 columns" in measure_lines([wide]).faults

    body = ["    x = 1"] * FUNCTION_LIMIT
    long = Source("router/a.py", "\n".join(["def f():", *body]))
    assert f"router.a.f:1: {FUNCTION_LIMIT + 1} lines of code" in measure_functions([long]).faults

    text = ["def f():", '    """Says', "", '    much."""', "    # Why", "", *body[:-1]]
    spoken = Source("router/a.py", "\n".join(text))
    assert not any("router.a.f" in fault for fault in measure_functions([spoken]).faults)


def test_a_method_has_its_docstring_here_or_in_a_base() -> None:
    base = '"""M."""\nclass Base:\n    """B."""\n    def go(self):\n        """Go."""'
    child = '"""M."""\nclass Child(Base):\n    """C."""\n    def go(self): ...'
    other = child.replace("def go", "def stay")

    assert not measure_docstrings([Source("router/a.py", f"{base}\n{child}")]).faults
    assert measure_docstrings([Source("router/a.py", f"{base}\n{other}")]).faults == [
        "no docstring: router.a.Child.stay"
    ]


def test_a_name_is_given_once() -> None:
    def named(*paths: str) -> Sequence[str]:
        return measure_names([Source(path, "class Mix: ...") for path in paths]).faults

    assert named("router/a.py") == []
    assert named("router/a.py", "tests/a.py") == []
    assert named("router/a.py", "adapters/a.py") == ["class Mix: router/a.py, adapters/a.py"]
    assert "files of one name: router/a.py, router/x/a.py" in named("router/a.py", "router/x/a.py")


def test_a_big_folder_lists_its_files_and_none_else() -> None:
    names = [f"part{number}" for number in range(UNMAPPED + 1)]
    parts = [Source(f"router/{name}.py", "") for name in names]

    def found(*listed: str) -> Sequence[str]:
        lines = [f"{name}   what it is for" for name in listed]
        init = Source("router/__init__.py", '"""Parts.\n\n' + "\n".join(lines) + '\n"""')
        return measure_maps([init, *parts]).faults

    assert found(*names) == []
    assert found(*names[1:]) == ["router/__init__.py does not list part0"]
    assert found(*names, "old") == ["router/__init__.py lists old, which is not there"]


def test_readmes_are_short_and_what_they_name_is_there(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("serve:\n\ttrue\n", encoding="utf-8")
    (tmp_path / "router").mkdir()
    (tmp_path / "router/policy.py").touch()
    good = (
        "[p](router/policy.py#x) `router/policy.py` `make serve`\n\n    python -m router.policy\n"
    )
    bad = "[p](policy.py) `router/old.py` `make bread`\n\n    python -m router.old\n"

    assert measure_references(tmp_path, {"README.md": good}).faults == []
    assert measure_references(tmp_path, {"README.md": bad}).faults == [
        "README.md: policy.py is not there",
        "README.md: router/old.py is not there",
        "README.md: make bread is not there",
        "README.md: python -m router.old is not there",
    ]
    assert measure_length("word " * 1301).faults
    assert measure_length("line\n" * 151).faults
    assert not measure_length("a few words\n").faults
