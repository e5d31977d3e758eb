"""`python -m tests.clients`: run the jobs of all clients, or of those named."""

from tests.clients.runner import main

main()
