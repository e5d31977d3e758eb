"""Benchmarks of tta-serve, on this machine alone; `README.md` has their figures.

commands/   what to run, in which order: one command a file
sides/      the engines and servers that are compared
common/     what benchmarks share: workload, repeats, machine, processes

python -m loadtest engine      four ways of serving a different merge to every request, offline
python -m loadtest inline      what routing inside the pass costs, and whether it decides rightly
python -m loadtest edge        the way from client to engine over HTTP, beside vLLM's and Ray's
python -m loadtest http        what deciding and merging cost a user over HTTP, beside other ways
python -m loadtest replicas    two replicas that share conversations by session, and by prefix
python -m loadtest dense       switches of the weights to task vectors, beside slots, and folding
python -m loadtest library     adding and merging experts, beside mergekit
python -m loadtest lifecycle   what loading an expert costs those who are being answered
python -m loadtest profile     where a decoding step's time goes, by operator
python -m loadtest pages       a model's products with its weights in small and in huge pages
python -m loadtest kernel      on a GPU, one layer's delta, ours and vLLM's
python -m loadtest soak        serves the demo and changes its library; every answer is checked
python -m loadtest table       the table of published figures, from their file in results/

The last line of what each but `table` prints is one JSON object.
"""
