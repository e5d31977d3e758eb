"""The demo library: a small base model, six LoRA experts and the tasks they were trained on."""
