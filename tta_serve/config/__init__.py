"""The server's typed config, where an unknown key stops the start.

section    what all sections are
access     keys, and what their tenants may use
telemetry  the lines of the log, and traces
sections   all others, and the whole
reference  the page that documents every field
effective  a config for people to read: with all defaults, and without secrets
loading    a YAML file, the environment on top of it, options on top of both
reload     what of a config may change while a server serves by it
"""
