"""The request path: from the client's bytes to vLLM's engine, in one process of Ray Serve.

launch                start a Ray of its own on this machine, with what nobody needs switched off
app                   the Ray Serve application: one replica, or several behind HAProxy
conversation_router   which of several replicas answers: the one that has the conversation
prefix_router         or the one that was asked the longest prefix
autoscaling           how many replicas there are, by load
ray_private           the private names of Ray that we use

replica/              the process: engine, experts, experiments, HTTP server and management
generation/           our layer around vLLM's app: from a wish to an answer
trials/               experiments in a request
experts/              the experts that are served, at the start and while they change
routing/              from a prompt to a mix
http/                 bytes, bounds and errors
reading/              what a request says
access/               who may ask, for what, and how much
console/              a page for operators

A room imports only rooms below it in this list.
"""
