"""The benchmarks: each command in a file of its name, and what is measured beside it.

engine            `python -m loadtest engine`: which parts to run
engine_parts      its parts: cells, scaling, first token
inline            `python -m loadtest inline`: routing inside the pass
prefix            `python -m loadtest prefix`: one prefix cache for all mixes, and topics
growth            `python -m loadtest growth`: what more experts, tenants and other options cost
edge              `python -m loadtest edge`: the way from client to engine over HTTP
http              `python -m loadtest http`: what adaptive merging costs a user over HTTP
http_plan         its sides, and what each of them is asked
http_servers      the servers of those sides
http_asker        who asks its servers, and keeps what is found
http_figures      its ratios, medians and table
http_plot         its picture
table             `python -m loadtest table`: the table of published figures
replicas          `python -m loadtest replicas`: by what replicas should share conversations
dense             `python -m loadtest dense`: task vectors in the weights, part by part
dense_switch      what a switch takes, over what the memory allows
dense_arrivals    slots beside dense mixes, by the order in which mixes arrive
dense_fold        when folding a low-rank mix pays
library           `python -m loadtest library`: adding and merging, beside mergekit
library_job       one measured job of it, in a process of its own
checkpoints       the checkpoints that it works on, of any size
lifecycle         `python -m loadtest lifecycle`: an expert is loaded, used and unloaded
lifecycle_steps   the engine's steps meanwhile, made and timed one by one
profile           `python -m loadtest profile`: where a decoding step's time goes
operator_times    the self time of every operator in a step
pages             `python -m loadtest pages`: products with weights in small and in huge pages
kernel            `python -m loadtest kernel`: one layer's delta on a GPU
scale_expand      a Triton kernel, a candidate for that delta
sign_expand       a Triton kernel, a candidate for one-bit experts on a GPU
one_bit           one-bit experts beside their base, and their bytes beside dense ones
batch_decisions   what t3_batch adds to requests that come together, over t3
faults            `python -m loadtest faults`: what fails, and what is lost, when something breaks
fault_kinds       what can break
search            `python -m loadtest search`: candidates an hour, beside merging and loading each
search_algorithms  how many requests each of its algorithms needs, without an engine
soak              `python -m loadtest soak`: experts come and go, every answer is checked
"""
