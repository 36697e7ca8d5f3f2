"""docker-compose.yml at work, without Docker: the same commands and environment as processes."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from compose_plain import Plain, Stack, missing_commands, until_true
from compose_tools import filled, read_compose

missing = missing_commands()
pytestmark = [
    pytest.mark.s3,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]
SECRETS = filled()
"""Of the whole session: no log may show them."""
RUN_SECONDS = 900
LONG_RUN = {
    "pretrain.num_iterations": 2_000,
    "pretrain.eval_every": -1,
    # So that nothing is saved but what a stop saves.
    "pretrain.checkpoint_every": 100_000,
}
"""Half a minute on an idle machine: it is stopped in the middle."""


@pytest.fixture
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """These services and all that they need, not yet started."""
    made = Stack(read_compose(SECRETS), request.param)
    try:
        yield made
    finally:
        made.remove()


def url_of(plain: Plain) -> str:
    """Where it is published."""
    return f"http://127.0.0.1:{plain.ports[plain.service.published[0][2]]}"


def get(plain: Plain, path: str) -> httpx.Response:
    with httpx.Client(timeout=30) as client:
        return client.get(url_of(plain) + path)


def check_no_secret(stack: Stack) -> None:
    """Fail if a log shows what .env holds."""
    secret = [SECRETS[name] for name in ("POSTGRES_PASSWORD", "STORE_SECRET_KEY")]
    secret.append(SECRETS["PREFECT_AUTH_STRING"].partition(":")[2])
    logs = stack.logs()
    assert len(logs) > 1_000
    assert not [value for value in secret if value in logs]


@pytest.mark.parametrize("stack", [["chat"]], indirect=True)
def test_the_store_wants_its_keys_and_the_chat_waits_for_a_model(stack: Stack) -> None:
    stack.up()
    bucket, chat = stack.members["bucket"], stack.members["chat"]
    assert "is made" in bucket.log
    assert "was there" in bucket.run(bucket.service.command, 60).stdout
    assert get(stack.members["seaweedfs"], "/nanochat").status_code == 403
    assert get(chat, "/health").json() == {"status": "waiting", "model": "latest"}
    assert get(chat, "/").status_code == 503
    assert chat.is_healthy()
    assert chat.stop() < 5
    assert not chat.left()
    check_no_secret(stack)


class Prefect:
    """The server of the stack, as its pages ask it."""

    def __init__(self, stack: Stack) -> None:
        self._url = f"{url_of(stack.members['prefect-server'])}/api"
        self._login = tuple(SECRETS["PREFECT_AUTH_STRING"].split(":"))
        self._worker = stack.members["cpu-worker"]

    def filter_runs(self, *, login: bool = True) -> httpx.Response:
        with httpx.Client(timeout=30, auth=self._login if login else None) as client:
            values = {"sort": "EXPECTED_START_TIME_DESC"}
            return client.post(f"{self._url}/flow_runs/filter", json=values)

    def newest_run(self) -> dict[str, Any]:
        run: dict[str, Any] = self.filter_runs().json()[0]
        return run

    def deploy_run(self, *options: str) -> str:
        """What a person types: `docker compose exec cpu-worker prefect deployment run …`."""
        command = ["prefect", "deployment", "run", "speedrun/speedrun", "-p", "preset=tiny"]
        done = self._worker.run([*command, *options], RUN_SECONDS)
        assert done.returncode == 0, f"{done.stdout}\n{self._worker.story()}"
        return done.stdout


def check_all_healthy(stack: Stack) -> None:
    for plain in stack.services:
        done = plain.run(plain.service.health, 30)
        assert done.returncode == 0, f"{plain.service.name}: {done.stdout}"


def check_jobs_repeat(stack: Stack) -> None:
    """`docker compose up` runs them again each time."""
    for name, said in (("bucket", "was there"), ("bootstrap", "found")):
        plain = stack.members[name]
        done = plain.run(plain.service.command, 180)
        assert done.returncode == 0, done.stdout
        assert said in done.stdout
        assert "made " not in done.stdout


def check_chat_answers(stack: Stack) -> None:
    """It opens by itself, without a restart."""
    chat = stack.members["chat"]
    until_true(lambda: get_health(chat).get("status") == "ok", 120, chat.story)
    question = {"model": "latest", "messages": [{"role": "user", "content": "Who are you?"}]}
    with httpx.Client(timeout=60) as client:
        answer = client.post(f"{url_of(chat)}/v1/chat/completions", json=question)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["role"] == "assistant"
    assert chat.is_healthy()


def get_health(chat: Plain) -> dict[str, Any]:
    """{} while one server takes the place of the other."""
    try:
        values: dict[str, Any] = get(chat, "/health").json()
    except httpx.TransportError:
        return {}
    return values


def saved_step(worker: Plain) -> int:
    """The newest whole checkpoint of a run under way, on the worker's volume."""
    found = worker.folders["/home/nanochat"].glob("**/inprogress/pretrain/**/manifest.json")
    steps = [re.search(r"step-(\d+)", path.parent.name) for path in found]
    return max((int(match[1]) for match in steps if match), default=0)


def trained_step(worker: Plain) -> int:
    """The last step that a run under way has told of."""
    found = worker.folders["/home/nanochat"].glob("**/inprogress/pretrain/**/metrics.jsonl")
    lines = [path.read_text().rpartition("\n")[0].rpartition("\n")[2] for path in found]
    return max((int(json.loads(line).get("step", 0)) for line in lines if line), default=0)


def job_log(worker: Plain) -> str:
    """What the trainer of a run under way has written."""
    found = worker.folders["/home/nanochat"].glob("**/inprogress/pretrain/**/job.log")
    return "".join(path.read_text("utf-8", "replace") for path in found)


def check_worker_saves_when_stopped(stack: Stack, prefect: Prefect) -> float:
    """As `docker compose stop` in the middle of a training; returns the seconds that it took."""
    worker = stack.members["cpu-worker"]
    prefect.deploy_run("-p", f"overrides={json.dumps(LONG_RUN)}")
    until_true(lambda: trained_step(worker) > 20, RUN_SECONDS, worker.story)
    assert saved_step(worker) == 0
    seen = trained_step(worker)
    seconds = worker.stop()
    assert not worker.left(), worker.story()
    assert saved_step(worker) >= seen
    state = prefect.newest_run()["state"]
    assert state["type"] == "CRASHED", state
    return seconds


def check_worker_goes_on(stack: Stack, prefect: Prefect) -> None:
    """Started again, the same run goes on from where it was saved."""
    worker = stack.members["cpu-worker"]
    before = saved_step(worker)
    worker.start()
    worker.wait_until_ready()
    prefect.deploy_run("-p", f"overrides={json.dumps(LONG_RUN)}")
    said = f"resumed after step {before}"
    until_true(lambda: said in job_log(worker), RUN_SECONDS, worker.story)


@pytest.mark.long
@pytest.mark.prefect
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("stack", [["cpu-worker", "gpu-worker", "chat"]], indirect=True)
def test_the_whole_fleet_makes_a_model_serves_it_and_ends_in_order(stack: Stack) -> None:
    start = time.monotonic()
    stack.up()
    told = {"up": time.monotonic() - start}
    check_all_healthy(stack)
    check_jobs_repeat(stack)
    prefect = Prefect(stack)
    assert prefect.filter_runs(login=False).status_code == 401
    assert prefect.filter_runs().json() == []

    start = time.monotonic()
    prefect.deploy_run("--watch")
    told["tiny"] = time.monotonic() - start
    assert prefect.newest_run()["state"]["type"] == "COMPLETED"
    listed = stack.members["cpu-worker"].run(["nanochat", "artifacts", "ls", "rl"], 60).stdout
    assert "latest" in listed
    check_chat_answers(stack)

    told["stop in training"] = check_worker_saves_when_stopped(stack, prefect)
    check_worker_goes_on(stack, prefect)
    check_all_healthy(stack)
    told |= stack.down()
    for plain in stack.services:
        assert not plain.left(), plain.story()
    check_no_secret(stack)
    print({name: round(seconds, 1) for name, seconds in told.items()})  # noqa: T201
