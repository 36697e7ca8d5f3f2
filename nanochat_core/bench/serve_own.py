"""A server of the benchmark's own: started on a free port of loopback, ended when it is done."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from nanochat_core.errors import JobError

MODULE = "nanochat_core.serving.app"
READY = "serving "
"""How the line begins by which a server says where it is."""
END_SECONDS = 30.0


@contextmanager
def own_server(arguments: Sequence[str], environ: Mapping[str, str]) -> Iterator[str]:
    """The URL of a server that was started with these arguments; it ends with the block."""
    command = [sys.executable, "-m", MODULE, *arguments, "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, env=dict(environ), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None, "it was asked for"
    try:
        yield _url(process, process.stdout)
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _url(process: "subprocess.Popen[str]", lines: Iterator[str]) -> str:
    for line in lines:
        if line.startswith(READY):
            # Nothing follows on stdout that could fill the pipe.
            return line.split()[-1]
        sys.stderr.write(line)
    code = process.wait()
    raise JobError(f"the server ended with exit code {code} before it was ready; see above")
