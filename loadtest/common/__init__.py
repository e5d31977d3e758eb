"""What benchmarks share.

workload      what is asked: shapes, prompts and mixes, all from seeds
copies        libraries of any number of experts, made from the demo's six
measure       interleaved repeats, medians and ratios
machine       where it was measured, and tables of figures
known_optimum  a search whose best mix is known
seeded_run    a benchmark that works in a temporary folder, from a seed
console       the console of progress
http_client   vLLM's benchmark client, and prompts of one length
experiment_start  an experiment, started on our server
load_figures  what a run of requests gave
processes     a server's processes, and the CPU time and memory that they take
mix_supply    the mixes that requests name, and which request names which
arrival_trace  when requests came to another server
result_files  what a benchmark leaves in files: figures, a table and a picture
"""
