"""What tests are made of: small experts, bases, engines, logs and clients.

experts            random LoRA folders in PEFT's own format
adapters           adapters that PEFT has made, and what it merges of them
deltas             dense and low-rank deltas
dense              dense experts of a random base
one_bit            one-bit experts of a random base
checkpoints        checkpoints of tiny random models
versions           what versions of experts are made of
twins              parts of Twin-Merging made of a library's experts
tools              programs from Debian packages
tiny_library       a library of two experts of a tiny random base
tiny_service       a config of a tiny random base, which a server starts from
ray_cluster        a Ray cluster of several nodes on this machine
harness            a small task of lm-evaluation-harness
load               visitors of its server, and how they fared
tiny_engines       tiny random bases of many architectures, and vLLM in the test's own process
engines            vLLM's offline engine with mixture slots, and what it answered
second_runner      a plugin of pytest for engines on vLLM's second model runner
inline_world       random heads, requests that they decide, and the slow maths of both
one_bit            one-bit experts of tiny random bases, and what they change in plain transformers
offline_client     the server's client over an offline engine, and the slow maths of what it asks
kept_text          a text that replicas share
placed_turns       prompts of a conversation, and the places of turns in them
counting_engine    an engine of known numbers, which counts what it is asked
known_features     a probe whose features are known
exposures          exposures of experiments, and what the logs hold of them
experiment_logs    logs of known truth, in a database like a server's
asgi               ASGI apps called by hand
search_parts       searches whose best mix is known
completions        a server of completions without an engine
http_handler       a handler of the standard library, served while a test asks it
collector          a collector of OpenTelemetry spans
"""
