"""Every attack in every tier of this machine: what is contained, and what is known not to be."""

import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from nanochat_core.sandbox import selftest, tiers
from nanochat_core.sandbox.execution import Sandbox
from nanochat_core.sandbox.tiers import Tier, Way
from tests.sandbox.attacks import ATTACKS
from tests.sandbox.hostile import Attack
from tests.sandbox.scene import Scene

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the attacks are those of Linux")

STRONG: tuple[Tier, ...] = ("bubblewrap", "namespaces")
FAST = [
    "deletes a file of ours",
    "reads a secret",
    "connects to a server",
    "kills a process of ours",
    "fork bomb",
    "memory bomb, one block",
    "ends its process with 0",
]


@cache
def sandbox_of(tier: Tier) -> Sandbox | None:
    """The first way into a tier that holds here, or None."""
    if tier == "limits":
        return Sandbox(Way("limits"))
    for way in tiers.ways():
        if way.tier == tier and not selftest.failure(Sandbox(way).run, way):
            return Sandbox(way)
    return None


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this process, empty: whatever is in it afterwards was left."""
    folder = tmp_path / "temporary"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def by_name(attacks: list[Attack]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("attack", attacks, ids=lambda attack: attack.name)


def assert_contained(sandbox: Sandbox, scene: Scene, attack: Attack, temporary: Path) -> None:
    result = scene.attack(sandbox, attack)
    assert scene.harm(result, temporary) == [], result
    assert not attack.reasons or result.reason in attack.reasons, result


def test_there_are_many_attacks_with_names_of_their_own() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 40
    assert {attack.escapes for attack in ATTACKS} == {"", "perhaps", "always"}


@by_name([attack for attack in ATTACKS if attack.name in FAST])
def test_the_strongest_tier_contains(attack: Attack, scene: Scene, temporary: Path) -> None:
    sandbox = sandbox_of("bubblewrap") or sandbox_of("namespaces")
    if sandbox is None:
        pytest.skip("no strong tier on this machine")
    assert_contained(sandbox, scene, attack, temporary)


@pytest.mark.e2e
@pytest.mark.parametrize("tier", STRONG)
@by_name(ATTACKS)
def test_a_strong_tier_contains(attack: Attack, tier: Tier, scene: Scene, temporary: Path) -> None:
    sandbox = sandbox_of(tier)
    if sandbox is None:
        pytest.skip(f"{tier} does not hold on this machine")
    assert_contained(sandbox, scene, attack, temporary)


@pytest.mark.e2e
@by_name([attack for attack in ATTACKS if not attack.escapes])
def test_limits_alone_contain(attack: Attack, scene: Scene, temporary: Path) -> None:
    assert_contained(Sandbox(Way("limits")), scene, attack, temporary)


@pytest.mark.e2e
@by_name([attack for attack in ATTACKS if attack.escapes == "always"])
def test_limits_alone_do_not_contain(attack: Attack, scene: Scene, temporary: Path) -> None:
    """So the attack is a real one: the tiers that contain it do something about it."""
    way = Way("limits")
    if tiers.uid_for(way) is not None:
        pytest.skip("here programs become another user, which contains most of these")
    assert scene.harm(scene.attack(Sandbox(way), attack), temporary)
