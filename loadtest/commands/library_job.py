"""One measured job of `python -m loadtest library`, in a process of its own.

`python -m loadtest.commands.library_job JOB.json` prints the seconds that it took and the most
memory it held, without what its imports hold. What was read from files through a mapping is not
counted, which is in favour of those who map.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVERY_S = 0.004
DENSITY = {"ties": 0.2, "dare_linear": 0.1}

Job = dict[str, Any]
Work = Callable[[], object]


def prepare_ingest(job: Job) -> Work:
    """Prepare to add a full fine-tune to a library, in one of the forms."""
    from adapters.files.checkpoint import Checkpoint
    from adapters.files.delta_forms import DenseForm, Form, LowRankForm, OneBitForm
    from adapters.library.library import open_expert_folder
    from adapters.library.manifest import About
    from adapters.library.versions import VersionStore

    forms: dict[str, Form] = {
        "low_rank": LowRankForm(rank=job.get("rank")),
        "one_bit": OneBitForm(),
        "dense": DenseForm(),
    }

    def work() -> None:
        base = Checkpoint.open(job["base"])
        source, deltas = open_expert_folder(Path(job["path"]), base)
        VersionStore(Path(job["library"])).add(
            job["name"], deltas, forms[job["form"]], About(source=source), base
        )

    return work


def prepare_merge(job: Job) -> Work:
    """Prepare to merge experts of a library into the base, as a checkpoint."""
    from adapters.files.checkpoint import Checkpoint
    from adapters.library.export import to_checkpoint
    from adapters.library.library import Library
    from adapters.merge.merged import merge_experts

    def work() -> None:
        library = Library.open(job["library"])
        options = {"density": DENSITY[job["method"]]} if job["method"] in DENSITY else {}
        merge = merge_experts(
            job["method"],
            [library.deltas(name) for name in job["experts"]],
            job["weights"],
            options,
        )
        to_checkpoint(Checkpoint.open(job["base"]), [(1.0, merge)], Path(job["out"]))

    return work


def prepare_mergekit(job: Job) -> Work:
    """Prepare to merge the same fine-tunes by mergekit, in shards of the base's size."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    method = job["method"]
    own = {"density": DENSITY[method]} if method in DENSITY else {}
    models = [
        {"model": path, "parameters": {"weight": w, **own}}
        for path, w in zip(job["tuned"], job["weights"], strict=True)
    ]
    config = {
        "merge_method": method,
        "base_model": job["base"],
        "models": models,
        "dtype": job["dtype"],
    }
    options = MergeOptions(
        copy_tokenizer=False, quiet=True, out_shard_size=job["shard_bytes"], random_seed=0
    )
    return lambda: run_merge(MergeConfiguration.model_validate(config), job["out"], options)


class Watch:
    """The most anonymous memory of this process, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.most = self.start = _anonymous()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(EVERY_S):
            self.most = max(self.most, _anonymous())


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux says how much memory is anonymous")


PREPARE = {"ingest": prepare_ingest, "ours": prepare_merge, "mergekit": prepare_mergekit}


def main() -> None:
    """Do the job that the file says, and print what it took as JSON."""
    job: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    work = PREPARE[job["kind"]](job)
    with Watch() as watch:
        began = time.perf_counter()
        work()
        took = time.perf_counter() - began
    print(json.dumps({"seconds": took, "peak_bytes": watch.most - watch.start}))


if __name__ == "__main__":
    main()
