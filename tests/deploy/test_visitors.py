"""Visitors of the demo: what they ask, and that failures do not stop them."""

import json
from http.server import BaseHTTPRequestHandler
from itertools import islice

from deploy.demo.everyday import read_everyday
from deploy.demo.visitors import draw_questions, visit
from tests.factories.http_handler import serve_handler


class Server(BaseHTTPRequestHandler):
    """Answers every second request."""

    asked: list[str] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body["messages"][0]["content"])
        self.send_response(200 if len(self.asked) % 2 else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_questions_are_of_all_tasks_and_everyday_ones() -> None:
    drawn = list(islice(draw_questions(1), 300))
    everyday = set(read_everyday("test"))
    assert 20 < sum(question in everyday for question in drawn) < 80
    assert len(set(drawn)) > 100


def test_a_server_that_fails_is_asked_again() -> None:
    with serve_handler(Server) as url:
        assert visit(url, 0, 6) == 3
    assert len(Server.asked) == 6
    assert visit("http://127.0.0.1:9", 0, 2) == 0
