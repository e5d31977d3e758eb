"""What a server says of itself: the lines of its log, and traces.

Metrics are in `tta_serve.metrics`.

request_summary  what is said of one request, filled on its way
log_lines        how a line looks
line_limit       lines that are alike, no more than so many a second
log_sender       from a replica to the process that writes
log_writer       the process that writes: standard output, or a file
traces           spans, sent to a collector
"""
