"""What a task of lm-evaluation-harness may say here, key by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from tta_serve.evaluation.match_rules import (
    DEFAULT_TOKENS,
    ExtractionStep,
    MatchRule,
    check_pattern,
)

_TEMPLATES = "write doc_to_text, doc_to_target and doc_to_choice as Jinja2 templates"
_FILES = "name json, csv, parquet or text in dataset_path and local files in data_files"
_TEXTS = "only texts are asked: leave it out"
UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "group": "a group is no task: give the files of its tasks, or their folder",
        "task_list": "give each of its tasks a file of its own, which may include a common one",
        "class": f"tasks in Python are not run; {_TEMPLATES}",
        "process_docs": "Python is not run: prepare the data files so that none is needed",
        "process_results": "answers are compared by exact_match, after the steps of filter_list",
        "custom_dataset": f"Python is not run; {_FILES}",
        "use_prompt": f"prompts of promptsource are not fetched; {_TEMPLATES}",
        "gen_prefix": "an answer cannot be begun for the model; let doc_to_text say its form",
        "doc_to_image": _TEXTS,
        "doc_to_audio": _TEXTS,
        "dataset_kwargs.data_dir": "name the files in data_files",
    }
)
"""What would work in the place of keys that the harness knows and `tta eval` does not."""


def _check(pattern: str) -> str:
    check_pattern(pattern)
    return pattern


Pattern = Annotated[str, AfterValidator(_check)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataFiles(_Section):
    """Where the data is."""

    data_files: str | list[str] | dict[str, str | list[str]]
    """Local files, relative to the task's; of the split `train` unless they say of which."""

    @field_validator("data_files")
    @classmethod
    def _refuse_remote(cls, value: Any) -> Any:
        given = value.values() if isinstance(value, dict) else [value]
        names = [name for own in given for name in (own if isinstance(own, list) else [own])]
        if remote := next((name for name in names if "://" in name), None):
            raise ValueError(f"{remote} is not fetched: name a local file")
        return value

    def list_splits(self) -> dict[str, list[str]]:
        """List the files of each split."""
        splits = (
            self.data_files if isinstance(self.data_files, dict) else {"train": self.data_files}
        )
        return {name: own if isinstance(own, list) else [own] for name, own in splits.items()}


class FewshotConfig(_Section):
    """Which examples stand before a question."""

    sampler: Literal["default", "first_n"] = "default"
    split: str | None = None
    samples: list[dict[str, Any]] | None = None


class ExactMatch(_Section):
    """The metric."""

    metric: Literal["exact_match"]
    aggregation: Literal["mean"] = "mean"
    higher_is_better: Literal[True] = True
    hf_evaluate: Literal[False] = False
    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore_numbers: bool = False
    regexes_to_ignore: list[Pattern] | None = None


class RegexFunction(_Section):
    """The part of an answer that matches."""

    function: Literal["regex"]
    regex_pattern: Pattern = r"#### (\-?[0-9\.\,]+)"
    group_select: int = 0
    fallback: str = "[invalid]"


class PlainFunction(_Section):
    """A step without options."""

    function: Literal["remove_whitespace", "take_first"]


class Filter(_Section):
    """Steps that cut an answer out, under a name."""

    name: str
    filter: list[Annotated[RegexFunction | PlainFunction, Field(discriminator="function")]]

    @model_validator(mode="after")
    def _check_end(self) -> Filter:
        places = [k for k, step in enumerate(self.filter) if step.function == "take_first"]
        if places != [len(self.filter) - 1]:
            raise ValueError("take_first must be its last function, and only there")
        return self

    def list_steps(self) -> tuple[ExtractionStep, ...]:
        """List the steps; there is one answer to take the first of."""
        return tuple(
            ExtractionStep(step.regex_pattern, step.group_select, step.fallback)
            if isinstance(step, RegexFunction)
            else ExtractionStep()
            for step in self.filter[:-1]
        )


class GenerationOptions(_Section):
    """How an answer is generated: greedily."""

    until: list[str] | str | None = None
    max_gen_toks: int = Field(
        default=DEFAULT_TOKENS,
        ge=1,
        validation_alias=AliasChoices(
            "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"
        ),
    )
    do_sample: Literal[False] = False
    temperature: Literal[0] = 0

    @field_validator("temperature", mode="before")
    @classmethod
    def _read_number(cls, value: Any) -> Any:
        """Take 0.0 for 0, as YAML has it."""
        return 0 if isinstance(value, float | int) and value == 0 else value


class HarnessTask(_Section):
    """A task, with the defaults of the harness."""

    task: str = Field(min_length=1)
    dataset_path: Literal["json", "csv", "parquet", "text"]
    dataset_kwargs: DataFiles
    output_type: Literal["generate_until"] = "generate_until"
    doc_to_text: str
    doc_to_target: str | int | list[str | int]
    doc_to_choice: str | list[str] | dict[str, str] | None = None
    description: str = ""
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None
    fewshot_config: FewshotConfig = FewshotConfig()
    num_fewshot: int | None = Field(default=None, ge=0)
    fewshot_delimiter: str = "\n\n"
    target_delimiter: str = " "
    generation_kwargs: GenerationOptions = GenerationOptions()
    metric_list: list[ExactMatch] = Field(
        default=[ExactMatch(metric="exact_match")], min_length=1, max_length=1
    )
    filter_list: list[Filter] | None = Field(default=None, min_length=1)
    repeats: Literal[1] = 1
    unsafe_code: Literal[False] = False
    should_decontaminate: Literal[False] = False
    # These change nothing here: how the task is listed, and the name of a set of local files.
    task_alias: str | None = None
    tag: str | list[str] | None = None
    metadata: dict[str, Any] | None = None
    dataset_name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        """Take the default for null, by which a key of an included file is unsaid."""
        return {key: value for key, value in values.items() if value is not None}

    @field_validator("output_type", mode="before")
    @classmethod
    def _refuse_likelihoods(cls, value: Any) -> Any:
        if value != "generate_until":
            raise ValueError(
                f"{value} is not asked, as answers are generated and not compared by likelihood;"
                " with generate_until, doc_to_text may ask for the choice and doc_to_target give it"
            )
        return value

    @model_validator(mode="after")
    def _check_shots(self) -> HarnessTask:
        if self.num_fewshot and self.fewshot_config.sampler != "first_n":
            raise ValueError(
                "num_fewshot: examples are not drawn by chance: set fewshot_config.sampler to"
                " first_n, or num_fewshot to 0"
            )
        self.find_asked_split()
        if self.num_fewshot and self.find_shots_split() is None and not self.fewshot_config.samples:
            raise ValueError("num_fewshot: wanted is fewshot_split, or fewshot_config.samples")
        return self

    def find_asked_split(self) -> tuple[str, str]:
        """Return the key that names the split which is asked, and the split's name."""
        if self.test_split is not None:
            return "test_split", self.test_split
        if self.validation_split is not None:
            return "validation_split", self.validation_split
        raise ValueError(
            "test_split: wanted is a split of data_files; files that name none are of `train`"
        )

    def find_shots_split(self) -> tuple[str, str] | None:
        """Return the key that names the split which examples are of, and the split's name.

        None where they are the samples that the task itself has.
        """
        named = {
            "fewshot_config.split": self.fewshot_config.split,
            "fewshot_split": self.fewshot_split,
        }
        if self.fewshot_config.samples is None:
            named["training_split"] = self.training_split
        return next(((key, split) for key, split in named.items() if split is not None), None)

    def list_rules(self) -> dict[str, MatchRule]:
        """List how answers are compared, by the task's name, with that of each of its filters."""
        until = self.generation_kwargs.until
        if until is None:
            until = self.fewshot_delimiter
        metric = self.metric_list[0]
        rule = MatchRule(
            most_tokens=self.generation_kwargs.max_gen_toks,
            stops=tuple([until] if isinstance(until, str) else until),
            regexes_to_ignore=tuple(metric.regexes_to_ignore or ()),
            ignore_case=metric.ignore_case,
            ignore_punctuation=metric.ignore_punctuation,
            ignore_numbers=metric.ignore_numbers,
        )
        filters = self.filter_list or []
        if len(filters) < 2:
            return {self.task: replace(rule, steps=_join_steps(filters))}
        return {f"{self.task}:{one.name}": replace(rule, steps=one.list_steps()) for one in filters}


def _join_steps(filters: Sequence[Filter]) -> tuple[ExtractionStep, ...]:
    return tuple(step for one in filters for step in one.list_steps())
