"""Before a run starts: whether a Prefect server is where the environment says."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from flows.local_server import check_reachable
from nanochat_core.errors import NanochatError


class Answer(BaseHTTPRequestHandler):
    """The first part of the path is the status: /401/health."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [200, 401, 403])
def test_a_server_that_answers_or_wants_credentials_is_left_to_prefect(
    url: str, status: int
) -> None:
    check_reachable({"PREFECT_API_URL": f"{url}/{status}"})


@pytest.mark.parametrize("status", [404, 502])
def test_what_is_no_prefect_server_is_refused(url: str, status: int) -> None:
    with pytest.raises(NanochatError, match=f"no Prefect server answers at .*{status}"):
        check_reachable({"PREFECT_API_URL": f"{url}/{status}"})


def test_where_nobody_listens_or_there_is_no_url_it_is_refused() -> None:
    for given in ("http://127.0.0.1:9/api", "banana"):
        with pytest.raises(NanochatError, match="no Prefect server answers"):
            check_reachable({"PREFECT_API_URL": given})
