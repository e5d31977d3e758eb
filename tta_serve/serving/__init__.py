"""The request path: from the client's bytes to vLLM's engine, in one process of Ray Serve.

launch                a Ray of its own on this machine, with what nobody needs switched off
app                   the Ray Serve application: one replica that listens itself, or several behind HAProxy
replica               the process: engine, experts, experiments, and the HTTP server
http_server           uvicorn in the replica
edge                  the outermost layer: bounds, headers, the body, the key of management, one shape of errors
edges                 the same, where Ray serves the app
body                  reading a body
merging               around vLLM's app: what a request asks, and what its answer says
request               what a request asks, from its body and headers
messages              what nobody else checks of a chat's messages
routes                which of vLLM's routes are served, and what their bodies may hold
admission             who is let into the engine
exchange              a request's prompts on their way through the engine
answer                `merge` put into what vLLM answers
errors                every failure as an OpenAI error
models                names of models in vLLM's serving layer
openai_app            vLLM's app, less what nobody needs, with our routes
experts_admin         management of experts, over HTTP
experiments_admin     management of experiments, over HTTP
peers                 all replicas, asked by one
conversation_router   which of several replicas answers
warm_up               what is slow at its first use
ray_private           the private names of Ray that we use
"""
