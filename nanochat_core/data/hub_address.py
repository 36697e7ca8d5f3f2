"""Addresses of datasets on the hub: hf://datasets/OWNER/NAME[@REVISION][/path]."""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from nanochat_core.errors import DataError

SCHEME = "hf://"
ENDPOINT = "https://huggingface.co"
MAIN = "main"

# A revision is one part of the path, but for those of pull requests and of conversions.
_ADDRESS = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)


@dataclass(frozen=True)
class HubAddress:
    """A dataset repository at a revision, and a file or folder in it."""

    repo: str
    revision: str
    path: str

    @classmethod
    def parse(cls, url: str) -> "HubAddress":
        """The parts of an hf:// address; DataError for one of another form."""
        found = _ADDRESS.fullmatch(url)
        if found is None:
            raise DataError(
                f"{url} is no address of a dataset on the hub; expected "
                "hf://datasets/OWNER/NAME, hf://datasets/OWNER/NAME@REVISION or one of them "
                "followed by /FOLDER"
            )
        revision = unquote(found["revision"] or MAIN)
        return cls(found["repo"], revision, (found["path"] or "").strip("/"))

    def tree_url(self, endpoint: str) -> str:
        """Where the hub lists the folder, with sizes and sha256."""
        path = f"/{quote(self.path)}" if self.path else ""
        return f"{_api(endpoint, self.repo)}/tree/{quote(self.revision, safe='')}{path}"

    def file_url(self, endpoint: str) -> str:
        """Where the hub has the bytes of the file."""
        place = f"{endpoint.rstrip('/')}/datasets/{self.repo}/resolve"
        return f"{place}/{quote(self.revision, safe='')}/{quote(self.path)}"


def _api(endpoint: str, repo: str) -> str:
    return f"{endpoint.rstrip('/')}/api/datasets/{repo}"
