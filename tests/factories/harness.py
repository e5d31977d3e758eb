"""A small task of lm-evaluation-harness."""

SMALL_TASK = """
task: small
dataset_path: json
dataset_kwargs: {data_files: rows.jsonl}
test_split: train
doc_to_text: q
doc_to_target: a
"""
"""Its rows are in `rows.jsonl`, each with `q` and `a`."""
