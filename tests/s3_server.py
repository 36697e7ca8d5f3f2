"""A real S3 server (SeaweedFS) on loopback, for tests: started, killed, started again."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import httpx

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key-that-nobody-may-see"
START_SECONDS = 60.0
GRPC_OFFSET = 10_000


class S3Server:
    """`weed server -s3` in a folder; its content survives `kill` and `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ports = _free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def environment(self) -> dict[str, str]:
        """How clients reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start it and return once it takes objects."""
        s3, master, volume, filer = self._ports
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        weed = Path(sys.executable).parent / "weed"
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(weed), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                    *("-filer", "-s3", f"-s3.port={s3}", f"-s3.config={self.folder / 's3.json'}"),
                    *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
                    *("-master.volumeSizeLimitMB=256", "-volume.max=1000"),
                    *("-s3.port.iceberg=0", "-s3.port.lance=0"),
                    *("-s3.autoCreateBucket=false", "-master.telemetry=false"),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._takes_objects():
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the S3 server does not take objects"
            time.sleep(0.2)

    def _takes_objects(self) -> bool:
        try:
            httpx.get(self.endpoint, timeout=2)
        except httpx.HTTPError:
            return False
        try:
            self._put_probe()
        except Exception:  # noqa: BLE001  not ready yet, in one of many ways
            return False
        return True

    def _put_probe(self) -> None:
        client = self.client()
        if "probe" not in [b["Name"] for b in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket="probe")
        client.put_object(Bucket="probe", Key="probe", Body=b"probe")

    def client(self):
        """A boto3 client of this server."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=10),
        )

    def new_bucket(self) -> str:
        """The store URL of an empty bucket."""
        name = f"test-{uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}/store"

    def kill(self) -> None:
        """SIGKILL, as when the machine fails."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Kill it and forget its content."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def with_s3(environment: Mapping[str, str], server: S3Server) -> dict[str, str]:
    """An environment for a child process that uses this server."""
    return {**environment, **server.environment}


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and free 10,000 above, where the server listens for gRPC."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(12_000, 20_000)
        if port not in found and _is_free(port) and _is_free(port + GRPC_OFFSET):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
