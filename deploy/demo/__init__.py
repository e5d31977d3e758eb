"""The demo: a small base model, six LoRA experts, their tasks, an evaluation, an experiment."""
