"""DSPy: a language model, and programs whose outputs are parsed."""

from typing import Any

import dspy

from tests.clients import asked


def model(name: str = asked.ROUTED, **options: Any) -> Any:
    """DSPy's model of this server."""
    settings = {"temperature": 0, "max_tokens": 60, "cache": False, **options}
    return dspy.LM(
        f"openai/{name}",
        api_base=asked.openai_url(),
        api_key="unused",
        num_retries=0,
        **settings,
    )


def merged() -> None:
    """The client chooses the experts; DSPy's history keeps the server's answer."""
    served = model(extra_body={"merge": asked.MERGE})
    asked.ensure_answer(first(served(asked.QUESTION)))
    asked.ensure_merge(dict(served.history[-1]["response"])["merge"])


def first(answers: Any) -> str:
    """The text of the first of DSPy's answers."""
    answer = answers[0]
    return str(answer["text"] if isinstance(answer, dict) else answer)


def predicted() -> None:
    """A program that wants a name and an age: DSPy asks for JSON in its own schema."""
    with dspy.context(lm=model(asked.BASE), adapter=dspy.JSONAdapter()):
        person = dspy.Predict("text: str -> name: str, age: int")(text=asked.SAID)
    asked.ensure(isinstance(person.age, int), f"no age: {person}")
    asked.ensure(isinstance(person.name, str), f"no name: {person}")


def evaluated() -> None:
    """A program's score on a few examples, over two threads."""
    example = dspy.Example(question=asked.QUESTION, answer=asked.ANSWER).with_inputs("question")
    served = model()

    def program(question: str) -> Any:
        return dspy.Prediction(answer=first(served(question)))

    def metric(example: Any, found: Any, trace: Any = None) -> bool:
        return bool(str(found.answer).strip() == example.answer)

    score = dspy.Evaluate(devset=[example] * 2, metric=metric, num_threads=2)(program).score
    asked.ensure(score == 100, f"the score is {score}")


def responded() -> None:
    """DSPy over the Responses API."""
    asked.ensure_answer(first(model(model_type="responses")(asked.QUESTION)))


if __name__ == "__main__":
    asked.run(merged, predicted, evaluated, responded)
