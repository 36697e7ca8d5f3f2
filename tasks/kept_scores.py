"""Scores taken from the store before an evaluation, and put there after it; no Prefect here.

An evaluation of which everything is known needs no process and no torch: its files are written
here.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.threads import in_threads
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import JobSpec, StageOutput
from nanochat_core.data.eval_bundle import build_heldout_bundle
from nanochat_core.errors import ConfigError, DataError, StationBusyError, StoreError
from nanochat_core.evals.bundle import Bundle, read_bundle
from nanochat_core.evals.bundle_places import open_bundle
from nanochat_core.evals.chat_problems import (
    BENCHMARKS_INPUT,
    asked_benchmarks,
    check_rows_given,
    model_input,
    problems_digest,
)
from nanochat_core.evals.chat_results import ChatResult
from nanochat_core.evals.core_results import CoreResult
from nanochat_core.evals.kept_scores import (
    RECORD_FILE,
    SCORES_INPUT,
    TOKENIZER_FILES,
    WEIGHTS_FILES,
    KeptScores,
    ScoredModel,
    chat_request,
    content_digest,
    core_requests,
)
from nanochat_core.evals.recipes import BaseEvalRecipe, ChatEvalRecipe
from nanochat_core.evals.result_files import BUNDLE_FOLDER, write_base_eval, write_chat_eval
from tasks.score_publishing import publishing

log = logging.getLogger(__name__)

Tell = Callable[[str], None]
RunJob = Callable[[JobSpec], StageOutput]


@dataclass(frozen=True)
class Asked:
    """An evaluation, and the requests of the scores that it consists of."""

    spec: JobSpec
    requests: Mapping[str, Request]
    model: str
    """The input that is evaluated."""
    bundle: Bundle
    """In-context tasks; none but of base_eval."""


class Keeper:
    """The scores of one evaluation: known ones are handed over, new ones published.

    `refs` are those of its inputs that lie in a store. With `fresh` none is taken from the store,
    and those that are found replace what is there.
    """

    def __init__(
        self,
        store: ArtifactStore,
        asked: Asked,
        refs: Mapping[str, ArtifactRef],
        *,
        fresh: bool,
        tell: Tell,
    ) -> None:
        self.store, self.asked, self.fresh, self.tell = store, asked, fresh, tell
        names = (asked.model, "tokenizer")
        self._refs = {name: refs[name] for name in names if name in refs}
        folder = Path(asked.spec.work_folder) / SCORES_INPUT
        self.scores = KeptScores.begin(folder, asked.requests)
        self._has_told = False

    def hand_over(self) -> Asked:
        """Put every known score where the job looks for it; the same evaluation with that place.

        Raises StoreUnavailableError when the store cannot be asked.
        """
        # What an interrupted run has left is safe from now on, too.
        self.publish()
        names = [] if self.fresh else list(self.asked.requests)
        in_threads(self._take, names, self.store.files.num_threads)
        spec = self.asked.spec
        inputs = {**spec.inputs, SCORES_INPUT: str(self.scores.folder)}
        return replace(self.asked, spec=spec.model_copy(update={"inputs": inputs}))

    def _take(self, name: str) -> None:
        ref = self.store.lookup(self.asked.requests[name])
        if ref is None:
            return
        path = self.scores.path(name)
        unfinished = path.with_suffix(".part")
        shutil.copyfile(self.store.materialize(ref) / RECORD_FILE, unfinished)
        os.replace(unfinished, path)
        self.scores.marker(name).touch()
        self.store.clear_leftovers(self.asked.requests[name])

    def publish(self) -> bool:
        """Put new scores into the store; whether it took them. Once it is told that it did not."""
        for name in self.asked.requests:
            path, marker = self.scores.path(name), self.scores.marker(name)
            if marker.exists() or not path.exists():
                continue
            try:
                self._publish(self.asked.requests[name], path)
            except StationBusyError:
                continue  # another run publishes the same, and is asked for it the next time
            except json.JSONDecodeError as error:
                self.tell(f"the score of {name} cannot be read, and is asked again: {error}")
                path.unlink()
            except (OSError, StoreError, ValueError, KeyError) as error:
                if not self._has_told:
                    self.tell(f"scores are not kept for other runs: {error}")
                self._has_told = True
                return False
            else:
                marker.touch()
        return True

    def _publish(self, request: Request, path: Path) -> None:
        kept = json.loads(path.read_bytes())
        output = StageOutput(
            files={RECORD_FILE: "result"}, metrics={"task": kept["name"], **kept["shown"]}
        )
        with (
            self.store.lock(request.station, request.fingerprint),
            tempfile.TemporaryDirectory(dir=path.parent) as folder,
        ):
            shutil.copyfile(path, Path(folder) / RECORD_FILE)
            self.store.publish(
                request, Path(folder), output, input_refs=self._refs, replace=self.fresh
            )
        self.store.clear_leftovers(request)


def evaluate(
    spec: JobSpec,
    store: ArtifactStore,
    refs: Mapping[str, ArtifactRef],
    run: RunJob,
    *,
    fresh: bool,
    tell: Tell,
) -> StageOutput:
    """Ask what is not known yet, by a job, and keep what it finds, however it ends.

    Without anything to ask there is no job. `refs` are those of the inputs that lie in the store.
    Raises what the job raises.
    """
    keeper = Keeper(store, asked_of(spec, store, refs), refs, fresh=fresh, tell=tell)
    asked = keeper.hand_over()
    if output := whole_output(asked, keeper.scores):
        tell("every score is known already: nothing was asked")
        return output
    with publishing(keeper.publish):
        output = run(asked.spec)
    # An outage may be over by now, or be waited for.
    keeper.publish()
    return output


def asked_of(spec: JobSpec, store: ArtifactStore, refs: Mapping[str, ArtifactRef]) -> Asked:
    """What an evaluation asks; tasks of held-out text are made here, in its output folder."""
    if spec.station == "base_eval":
        model, recipe = "pretrain", BaseEvalRecipe.model_validate(spec.recipe)
        spec, bundle = _with_bundle(spec, recipe)
        who = scored_model(spec, model, store, refs)
        return Asked(spec, core_requests(bundle, recipe, who), model, bundle)
    recipe_of_chat = ChatEvalRecipe.model_validate(spec.recipe)
    check_rows_given(recipe_of_chat, spec.inputs)
    model = model_input(spec.inputs)
    who = scored_model(spec, model, store, refs)
    return Asked(spec, _chat_requests(spec, recipe_of_chat, who), model, Bundle(()))


def _with_bundle(spec: JobSpec, recipe: BaseEvalRecipe) -> tuple[JobSpec, Bundle]:
    """The tasks that are given, or those of CORE, or some made of held-out text, or none."""
    if "eval_bundle" in spec.inputs:
        return spec, read_bundle(spec.input("eval_bundle"))
    if recipe.core_bundle:
        archive = spec.input(BENCHMARKS_INPUT) / recipe.core_bundle
        return _given(spec, *open_bundle(archive, Path(spec.work_folder)))
    if "shards" not in spec.inputs:
        return spec, Bundle(())
    folder = Path(spec.output_folder) / BUNDLE_FOLDER
    try:
        build_heldout_bundle(spec.input("shards"), folder, seed=recipe.seed)
    except DataError as error:
        log.debug("the job will say that there are no tasks: %s", error)
        shutil.rmtree(folder, ignore_errors=True)
        return spec, Bundle(())
    return _given(spec, folder, read_bundle(folder))


def _given(spec: JobSpec, folder: Path, bundle: Bundle) -> tuple[JobSpec, Bundle]:
    inputs = {**spec.inputs, "eval_bundle": str(folder)}
    return spec.model_copy(update={"inputs": inputs}), bundle


def _chat_requests(spec: JobSpec, recipe: ChatEvalRecipe, who: ScoredModel) -> dict[str, Request]:
    """What each benchmark asks for; one that cannot be asked is left to the job, which says so."""
    folder = spec.input(BENCHMARKS_INPUT) if BENCHMARKS_INPUT in spec.inputs else None
    config = _config(spec, model_input(spec.inputs))
    requests: dict[str, Request] = {}
    for name in asked_benchmarks(recipe):
        try:
            problems = problems_digest(name, recipe, folder, config)
        except (ConfigError, DataError) as error:
            log.debug("the job will say what is wrong with %s: %s", name, error)
            continue
        requests[name] = chat_request(name, problems, recipe, who)
    return requests


def scored_model(
    spec: JobSpec, model: str, store: ArtifactStore, refs: Mapping[str, ArtifactRef]
) -> ScoredModel:
    """Who is asked, by content; the store knows that of its own files."""

    def digest(name: str, files: tuple[str, ...]) -> str:
        known = {}
        if name in refs:
            known = {file.path: file.sha256 for file in store.manifest(refs[name]).files}
        return content_digest(spec.input(name), files, known)

    return ScoredModel(digest(model, WEIGHTS_FILES), digest("tokenizer", TOKENIZER_FILES))


def _config(spec: JobSpec, model: str) -> dict[str, Any]:
    path = spec.input(model) / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as the description of a model: {error}") from error
    return config


def whole_output(asked: Asked, scores: KeptScores) -> StageOutput | None:
    """The files of an evaluation of which nothing is left to do; None when anything is."""
    output = Path(asked.spec.output_folder)
    if asked.spec.station != "base_eval":
        recipe = ChatEvalRecipe.model_validate(asked.spec.recipe)
        names = asked_benchmarks(recipe)
        benchmarks = scores.known_benchmarks(names)
        if len(benchmarks) < len(names):
            return None
        result = ChatResult(tuple(benchmarks[name] for name in names))
        return _saved(write_chat_eval(output, result), output, benchmarks)
    base = BaseEvalRecipe.model_validate(asked.spec.recipe)
    writes = base.sample_tokens and base.sample_prompts
    tasks = scores.known_tasks(asked.bundle)
    if "tokens" in asked.spec.inputs or writes or len(tasks) < max(len(asked.bundle.tasks), 1):
        return None
    results = tuple(tasks[task.label] for task in asked.bundle.tasks)
    core = CoreResult(results, asked.bundle.is_official)
    config = _config(asked.spec, asked.model)
    return _saved(write_base_eval(output, {}, core, [], config=config), output, tasks)


def _saved(written: StageOutput, output: Path, known: Mapping[str, Any]) -> StageOutput:
    """As a job would leave it."""
    saved = written.model_copy(update={"provenance": {"known_scores": sorted(known)}})
    saved.save(output)
    return saved
