"""Copying artifacts between two stores, told in lines."""

from collections.abc import Iterator

from flows.counted import counted
from flows.wording import size
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.transfer import Transfer, carry_aliases, plan_transfer
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.errors import ConfigError


def carry(
    source: ArtifactStore,
    target: ArtifactStore,
    name: str,
    *,
    with_lineage: bool = True,
    aliases: bool = False,
    replace: bool = False,
) -> Iterator[str]:
    """Copy what `name` stands for; a line for everything that people should know of."""
    if source.url == target.url:
        raise ConfigError(f"both stores are {source.url}; name two different ones")
    ref = source.resolve(name)
    target.check_writable()
    plan = plan_transfer(source, target, [ref], with_lineage=with_lineage, replace=replace)
    for lost in plan.missing:
        yield f"{lost.short} is not in {source.url} any more; it cannot be copied"
    if not plan.artifacts:
        yield f"{ref.short} is in {target.url} already{_all(plan)}"
    else:
        yield f"copying {_things(plan)} to {target.url}"
        with counted("copied", plan.bytes) as copied:
            made = plan.run(copied)
        yield from (f"{one.short}  {one.digest[:12]}" for one in made)
        yield f"every byte was verified{_skipped(plan)}"
    if aliases:
        there = {(one.station, one.fingerprint, one.digest) for one in _carried(plan)}
        named = [
            alias
            for alias, one in source.aliases().items()
            if (one.station, one.fingerprint, one.digest) in there
        ]
        before = {alias: target.alias(alias) for alias in named}
        for alias in carry_aliases(plan, named):
            yield _moved(target, alias, before[alias])


def _moved(target: ArtifactStore, alias: str, before: ArtifactRef | None) -> str:
    now = target.resolve(alias)
    was = f", no longer {before.short}" if before else ""
    return f"{alias} names {now.short} in {target.url}{was}"


def _carried(plan: Transfer) -> list[ArtifactRef]:
    return [*plan.there, *(manifest.ref for manifest in plan.artifacts)]


def _things(plan: Transfer) -> str:
    num = len(plan.artifacts)
    return f"{num} artifact{'s' if num > 1 else ''}, {size(plan.bytes)},"


def _all(plan: Transfer) -> str:
    return " with all that it was made from" if len(plan.there) > 1 else ""


def _skipped(plan: Transfer) -> str:
    return f"; {len(plan.there)} more were there already" if plan.there else ""
