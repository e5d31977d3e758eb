"""Bytes and HTTP.

http_server        uvicorn in the replica
edge               the outermost layer: bounds, headers, the body, the key of management
proxy_middleware   before Ray's own layer, where Ray serves the app
body               reading a body
openai_errors      every failure as an OpenAI error
"""
