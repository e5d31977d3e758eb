"""Tasks of lm-evaluation-harness as questions: what they ask, and what is refused by name."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from tests.conftest import ROOT
from tests.factories.harness import SMALL_TASK
from tta_serve.evaluation.harness_tasks import read_tasks
from tta_serve.evaluation.questions import Question, read_suite
from tta_serve.evaluation.scoring import score
from tta_serve.exceptions import ConfigError

# As the harness has GSM8K, but for its data and the sampler of its examples.
SUMS = r"""
task: sums
tag: [math_word_problems]
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files: {train: data/train.jsonl, test: data/test.jsonl}
output_type: generate_until
training_split: train
fewshot_split: train
test_split: test
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_target: "{{answer}}"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore:
      - ","
      - "\\$"
      - "(?s).*#### "
      - "\\.$"
generation_kwargs:
  until: ["Question:", "</s>"]
  do_sample: false
  temperature: 0.0
  max_gen_toks: 64
repeats: 1
num_fewshot: 2
fewshot_config: {sampler: first_n}
filter_list:
  - name: "strict-match"
    filter:
      - function: "regex"
        regex_pattern: "#### (\\-?[0-9\\.\\,]+)"
      - function: "take_first"
  - name: "flexible-extract"
    filter:
      - function: "regex"
        group_select: -1
        regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"
      - function: "take_first"
metadata: {version: 3.0}
"""
TRAIN = [
    {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"},
    {"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"},
    {"question": "3 + 3?", "answer": "3 + 3 = 6\n#### 6"},
]
TEST = [
    {"question": "What is 1,000 + 200?", "answer": "1,000 + 200 = 1,200\n#### 1,200"},
    {"question": "6 times 7?", "answer": "6 * 7 = 42\n#### 42"},
]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def write_task(folder: Path, text: str, name: str = "task.yaml") -> Path:
    file = folder / name
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return file


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    write_rows(tmp_path / "data/train.jsonl", TRAIN)
    write_rows(tmp_path / "data/test.jsonl", TEST)
    return write_task(tmp_path, SUMS)


def ask(folder: Path, text: str, rows: list[dict[str, Any]]) -> tuple[Question, ...]:
    write_rows(folder / "rows.jsonl", rows)
    return read_tasks([write_task(folder, text)]).questions


def grade(question: Question, answer: str) -> float:
    return score(question.kind, str(question.want), question.parts, answer, question.rule).exact


def test_a_task_becomes_the_prompts_that_the_harness_makes(sums: Path) -> None:
    suite = read_tasks([sums])
    assert suite.groups == {
        "benchmarks:sums:strict-match": [0, 1],
        "benchmarks:sums:flexible-extract": [2, 3],
    }
    first = suite.questions[0]
    assert first.prompt == (
        "Question: 1 + 1?\nAnswer: 1 + 1 = 2\n#### 2\n\n"
        "Question: 2 + 2?\nAnswer: 2 + 2 = 4\n#### 4\n\n"
        "Question: What is 1,000 + 200?\nAnswer:"
    )
    assert suite.questions[2].prompt == first.prompt
    assert first.want == "1,000 + 200 = 1,200\n#### 1,200"
    assert (first.task, first.stops) == (None, ("Question:", "</s>"))
    assert first.rule is not None
    assert first.rule.most_tokens == 64
    suite.check([])  # it is for no expert


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        ("6 * 7 = 42\n#### 42", 1, 1),
        ("It is 42", 0, 1),  # the form is missing
        ("#### 42.\n\nQuestion: 5 + 5?\nAnswer: #### 10", 1, 1),  # it ends before the next one
        ("#### 41", 0, 0),
        ("#### 42, hence 43 apples", 1, 0),  # the first of the form, the last number
        ("forty-two", 0, 0),
    ],
)
def test_answers_are_scored_as_gsm8k_is(
    sums: Path, answer: str, strict: int, flexible: int
) -> None:
    questions = read_tasks([sums]).questions
    assert (grade(questions[1], answer), grade(questions[3], answer)) == (strict, flexible)


def test_thousands_and_money_are_read_alike(sums: Path) -> None:
    strict, _, flexible, _ = read_tasks([sums]).questions
    assert grade(strict, "#### 1200") == 1
    assert grade(flexible, "That is $1,200.") == 1


def test_the_first_documents_are_enough(sums: Path) -> None:
    assert len(read_tasks([sums], 1).questions) == 2


def test_the_example_of_the_readme_is_read(tmp_path: Path) -> None:
    text = (ROOT / "deploy/demo/README.md").read_text(encoding="utf-8")
    example = text.split("```yaml\ntask:")[1].split("```")[0]
    write_rows(tmp_path / "train.jsonl", TRAIN)
    write_rows(tmp_path / "test.jsonl", TEST)
    first, _ = read_tasks([write_task(tmp_path, f"task:{example}")]).questions
    assert first.want == "1,200"
    assert "Answer: 4\n\nQuestion: What is" in first.prompt
    assert [grade(first, text) for text in ("So #### 1200", "1200")] == [1, 0]


def test_a_suite_keeps_the_rules_of_a_task(sums: Path, tmp_path: Path) -> None:
    from pydantic import TypeAdapter

    suite, file = read_tasks([sums]), tmp_path / "suite.jsonl"
    lines = [TypeAdapter(Question).dump_json(one).decode() for one in suite.questions]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert read_suite(file) == suite


def test_defaults_are_those_of_the_harness(tmp_path: Path) -> None:
    (question,) = ask(tmp_path, SMALL_TASK, [{"q": "Capital of France?", "a": "Paris"}])
    assert (question.prompt, question.want, question.group) == (
        "Capital of France?",
        "Paris",
        "benchmarks:small",
    )
    assert question.stops == ("\n\n",)
    assert question.rule is not None
    assert question.rule.most_tokens == 256
    assert [grade(question, text) for text in ("Paris", "Paris\n\nand", "paris")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("keys", "want", "others"),
    [
        ("doc_to_target: b\ndoc_to_choice: ['No', 'Yes']", "Yes", ()),
        ("doc_to_target: '{{b}}'\ndoc_to_choice: \"{{['x', a]}}\"", "ja", ()),
        ("doc_to_target: 0\ndoc_to_choice: c", "u", ()),
        ("doc_to_target: 1\ndoc_to_choice: {a: first, b: second}", "second", ()),
        ("doc_to_target: c", "u", ("v",)),
        ("doc_to_target: '{{c}}'", "u", ("v",)),
        ("doc_to_target: '[{{a}}'", "[ja", ()),
        ('doc_to_target: \'{{a | regex_replace("j", "l")}}\'', "la", ()),
        ("doc_to_target: b", "1", ()),
    ],
)
def test_the_right_answers_are_read_as_the_harness_reads_them(
    tmp_path: Path, keys: str, want: str, others: tuple[str, ...]
) -> None:
    text = SMALL_TASK.replace("doc_to_target: a", keys)
    (question,) = ask(tmp_path, text, [{"q": "q", "a": "ja", "b": 1, "c": ["u", "v"]}])
    assert question.want == want
    assert question.rule is not None
    assert question.rule.alternatives == others


def test_a_description_stands_first_and_a_document_is_no_example_of_itself(
    tmp_path: Path,
) -> None:
    more = """
    description: "About {{q}}.\\n"
    num_fewshot: 1
    fewshot_split: train
    fewshot_config: {sampler: first_n}
    target_delimiter: " -> "
    fewshot_delimiter: "|"
    """
    rows = [{"q": "x", "a": "1"}, {"q": "y", "a": "2"}]
    found = ask(tmp_path, SMALL_TASK + textwrap.dedent(more), rows)
    assert [one.prompt for one in found] == ["About x.\ny -> 2|x", "About y.\nx -> 1|y"]
    assert found[0].stops == ("|",)


def test_examples_may_stand_in_the_task(tmp_path: Path) -> None:
    more = """
    num_fewshot: 1
    fewshot_config: {sampler: first_n, samples: [{q: z, a: "9"}, {q: w, a: "8"}]}
    """
    (question,) = ask(tmp_path, SMALL_TASK + textwrap.dedent(more), [{"q": "x", "a": "1"}])
    assert question.prompt == "z 9\n\nx"


def test_data_is_read_in_every_form(tmp_path: Path) -> None:
    rows = [{"q": "x", "a": "one"}, {"q": "y", "a": "two"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "rows.csv").write_text("q,a\nx,one\ny,two\n", encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for kind in ("json", "csv", "parquet"):
        text = SMALL_TASK.replace(": json", f": {kind}").replace("rows.jsonl", f"rows.{kind}")
        found = read_tasks([write_task(tmp_path, text)]).questions
        assert [(one.prompt, one.want) for one in found] == [("x", "one"), ("y", "two")]

    (tmp_path / "rows.txt").write_text("x=one\ny=two\n", encoding="utf-8")
    text = SMALL_TASK.replace(": json", ": text").replace("rows.jsonl", "[rows.txt]")
    text = text.replace(": q", ": \"{{text.split('=')[0]}}\"")
    text = text.replace(": a", ": \"{{text.split('=')[1]}}\"")
    found = read_tasks([write_task(tmp_path, text)]).questions
    assert [(one.prompt, one.want) for one in found] == [("x", "one"), ("y", "two")]


def test_a_column_of_numbers_in_csv_can_be_the_choice(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("q,a\nx,1\n", encoding="utf-8")
    text = SMALL_TASK.replace(": json", ": csv").replace("rows.jsonl", "rows.csv")
    task = write_task(tmp_path, f"{text}doc_to_choice: ['no', 'yes']\n")
    assert read_tasks([task]).questions[0].want == "yes"


def test_a_folder_has_tasks_that_include_common_keys(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"q": "x", "a": "1"}])
    common = SMALL_TASK.replace("task: small\n", "process_docs: !function utils.process\n")
    write_task(tmp_path, common, "_common.yaml")
    for name in ("one", "two"):
        text = f"include: _common.yaml\ntask: {name}\nprocess_docs: null\n"
        write_task(tmp_path, text, f"{name}.yaml")
    write_task(tmp_path, "group: both\ntask: [one, two]\n", "group.yaml")
    assert set(read_tasks([tmp_path]).groups) == {"benchmarks:one", "benchmarks:two"}
    assert len(read_tasks([tmp_path, tmp_path / "one.yaml"]).questions) == 2


def test_no_python_is_run(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text("raise SystemExit('it ran')\n", encoding="utf-8")
    for key in ("process_docs", "doc_to_text"):
        text = SMALL_TASK.replace("doc_to_text: q\n", "") + f"{key}: !function utils.run\n"
        with pytest.raises(ConfigError, match=f"task.yaml: {key}: `!function utils.run`"):
            ask(tmp_path, text, [{"q": "x", "a": "1"}])
    with pytest.raises(ConfigError, match="cannot be read: could not determine a constructor"):
        ask(tmp_path, f"{SMALL_TASK}tag: !!python/object/apply:os.getcwd []\n", [])
    unsafe = SMALL_TASK.replace(": q", ": \"{{ ''.__class__.__mro__ }}\"")
    with pytest.raises(ConfigError, match=r"doc_to_text: document 1: .*unsafe"):
        ask(tmp_path, unsafe, [{"q": "x", "a": "1"}])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("output_type: multiple_choice", "output_type: multiple_choice is not asked"),
        ("process_docs: utils.run", "process_docs: Python is not run: prepare the data"),
        ("gen_prefix: So", "gen_prefix: an answer cannot be begun"),
        ("colour: red", "colour: `tta eval` does not know this key"),
        ("repeats: 8", "repeats: Input should be 1"),
        ("metric_list: [{metric: bleu}]", "metric_list.0.metric: Input should be 'exact_match'"),
        (
            "metric_list: [{metric: exact_match, aggregation: median}]",
            "metric_list.0.aggregation: Input should be 'mean'",
        ),
        (
            "filter_list: [{name: vote, filter: [{function: majority_vote}]}]",
            "filter_list.0.filter.0: .*'majority_vote'.* 'regex', 'remove_whitespace'",
        ),
        (
            "filter_list: [{name: bare, filter: [{function: regex}]}]",
            "filter_list.0: take_first must be its last function",
        ),
        (
            "filter_list: [{name: x, filter: [{function: regex, regex_pattern: '('}]}]",
            "regex_pattern: '\\(' is no regular expression",
        ),
        ("generation_kwargs: {do_sample: true}", "generation_kwargs.do_sample: Input should be F"),
        ("generation_kwargs: {temperature: 0.7}", "generation_kwargs.temperature: Input should"),
        ("generation_kwargs: {top_p: 0.9}", "generation_kwargs.top_p: .* leave it out"),
        ("num_fewshot: 2\nfewshot_split: train", "set fewshot_config.sampler to first_n"),
        (
            "num_fewshot: 2\nfewshot_config: {sampler: first_n}",
            "num_fewshot: wanted is fewshot_split, or fewshot_config.samples",
        ),
        (
            "num_fewshot: 2\nfewshot_split: train\nfewshot_config: {sampler: first_n}",
            "num_fewshot: 2 are wanted, and there are 0",
        ),
        ("test_split: test", "test_split: there is no split 'test'; .* has: train"),
        ("test_split: null", "test_split: wanted is a split of data_files"),
        ("dataset_path: openai/gsm8k", "dataset_path: Input should be 'json', 'csv', 'parq"),
        ("dataset_kwargs: {data_files: none.jsonl}", "none.jsonl cannot be read as json"),
        ("dataset_kwargs: {data_files: 'hf://x/y'}", "hf://x/y is not fetched: name a local file"),
        ("dataset_kwargs: {data_dir: x}", "dataset_kwargs.data_dir: name the files in data_files"),
        ("doc_to_text: '{{p}}'", "doc_to_text: document 1: 'p' is undefined; its fields are: q, a"),
        ("doc_to_text: '{{'", "doc_to_text: document 1: "),
        ("doc_to_text: '{{1 / 0}}'", "doc_to_text: document 1: division by zero"),
        ("doc_to_target: b", "doc_to_target: document 1: there is no answer"),
        ("doc_to_target: 2\ndoc_to_choice: ['a', 'b']", "number of a choice, 0 to 1, not 2"),
        ("doc_to_choice: q", "doc_to_choice: document 1: wanted is a list of texts, not 'x'"),
        ("include: task.yaml", "include: it includes itself"),
        ("include: none.yaml", "none.yaml cannot be read"),
    ],
)
def test_what_is_not_done_is_refused_by_name(tmp_path: Path, keys: str, said: str) -> None:
    names = {line.partition(":")[0] for line in keys.splitlines()}
    kept = [line for line in SMALL_TASK.splitlines() if line.partition(":")[0] not in names]
    text = "\n".join([*kept, keys])
    with pytest.raises(ConfigError, match=rf"(?s){said}") as caught:
        ask(tmp_path, text, [{"q": "x", "a": "1", "b": None}])
    assert str(tmp_path) in str(caught.value)


def test_places_without_a_task_and_names_given_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder or file"):
        read_tasks([tmp_path / "none"])
    with pytest.raises(ConfigError, match="names a `task`"):
        read_tasks([tmp_path])
    write_rows(tmp_path / "rows.jsonl", [{"q": "x", "a": "1"}])
    for name in ("a.yaml", "b.yaml"):
        write_task(tmp_path, SMALL_TASK, name)
    with pytest.raises(ConfigError, match=r"b.yaml: task: .*a.yaml is called 'small' as well"):
        read_tasks([tmp_path])
    with pytest.raises(ConfigError, match="group: a group is no task"):
        read_tasks([write_task(tmp_path, "group: g\ntask: [small]\n", "g.yaml")])
    for rows, said in (("", "the split 'train' has no row"), ("[1]", "must be an object")):
        (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            read_tasks([tmp_path / "a.yaml"])
