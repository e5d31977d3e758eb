"""The process of a replica, its app, and its management.

replica             engine, experts, experiments and HTTP server
openai_app          vLLM's app, less what nobody needs, with our routes
model_names         names of models in vLLM's serving layer
config_admin        management of the config, over HTTP
config_history      the configs since the start
experts_admin       management of experts, over HTTP
experiments_admin   management of experiments, over HTTP
peers               all replicas, asked by one
canary              whether the engine still answers with the weights that it began with
warm_up             what is slow at its first use
"""
