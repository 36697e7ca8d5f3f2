"""Ask a URL whether its service is well: `python healthy.py URL` ends with 0 or 1.

For health checks of containers, where curl and wget are missing; it starts in a moment.
"""

import sys
import urllib.request

TIMEOUT_SECONDS = 4
"""Less than the time-out of the health checks, so that what went wrong is still said."""


def main(url: str) -> int:
    """0 when the answer is a good one."""
    # A proxy is for what is elsewhere; Docker hands that of its user to every container.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=TIMEOUT_SECONDS):
            return 0
    except OSError as error:  # URLError and HTTPError are of this kind
        sys.stderr.write(f"{url}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
