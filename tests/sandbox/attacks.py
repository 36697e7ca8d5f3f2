"""All attacks."""

from tests.sandbox.attacks_on_data import FILES, LIES, NETWORK, PRIVILEGES, SECRETS
from tests.sandbox.attacks_on_machine import PROCESSES, RESOURCES

ATTACKS = [*PROCESSES, *RESOURCES, *FILES, *SECRETS, *NETWORK, *PRIVILEGES, *LIES]
