"""Named settings of the whole line: a preset is a value, never another code path."""

from collections.abc import Callable

from nanochat_core.config.base import Config
from nanochat_core.config.execution import Execution
from nanochat_core.conversation.recipes import Mixture, MixturePart
from nanochat_core.data.recipes import (
    BenchmarksRecipe,
    FilesSource,
    HarvestSource,
    ShardsRecipe,
    TokensRecipe,
)
from nanochat_core.evals.recipes import BaseEvalRecipe, ChatEvalRecipe
from nanochat_core.optim.recipe import MuonGroup, OptimizerRecipe, ScheduleRecipe
from nanochat_core.report.recipe import ReportRecipe
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.training.recipes import (
    DataOrderRecipe,
    PretrainRecipe,
    RlRecipe,
    SftRecipe,
)

Source = HarvestSource | FilesSource


class Recipes(Config):
    """What each station computes, in the order of the line."""

    shards: ShardsRecipe
    tokenizer: TokenizerRecipe
    tokens: TokensRecipe = TokensRecipe()
    benchmarks: BenchmarksRecipe = BenchmarksRecipe()
    pretrain: PretrainRecipe
    base_eval: BaseEvalRecipe = BaseEvalRecipe()
    sft: SftRecipe
    chat_eval_sft: ChatEvalRecipe = ChatEvalRecipe()
    rl: RlRecipe
    chat_eval_rl: ChatEvalRecipe = ChatEvalRecipe()
    report: ReportRecipe = ReportRecipe()


class Executions(Config):
    """Where and how each station runs."""

    shards: Execution = Execution()
    tokenizer: Execution = Execution()
    tokens: Execution = Execution()
    benchmarks: Execution = Execution()
    pretrain: Execution = Execution()
    base_eval: Execution = Execution()
    sft: Execution = Execution()
    chat_eval_sft: Execution = Execution()
    rl: Execution = Execution()
    chat_eval_rl: Execution = Execution()
    report: Execution = Execution()


class Preset(Config):
    """A name for the recipes and executions of all stations."""

    recipes: Recipes
    executions: Executions


MAKING_STATIONS = tuple(Recipes.model_fields)
"""Stations that publish an artifact."""
STATIONS = (*MAKING_STATIONS, "release")
"""The line, in order."""
JOB_STATIONS = ("pretrain", "base_eval", "sft", "chat_eval_sft", "rl", "chat_eval_rl")
"""Those that compute with torch, on a GPU where there is one."""


def tiny(source: Source) -> Preset:
    """Every station for real, in seconds: for tests."""
    if isinstance(source, HarvestSource):
        # The standard library alone is read in seconds.
        source = source.model_copy(update={"versions": {}})
    execution = Execution(
        device_batch_size=4, compile=False, log_every=1, checkpoint_every=5, eval_every=15
    )
    chat_eval = ChatEvalRecipe(
        identity_questions=6, sums=4, max_new_tokens=16, compute_dtype="float32"
    )
    return Preset(
        recipes=Recipes(
            shards=ShardsRecipe(
                source=source, num_shards=2, validation_percent=5.0, max_documents=200
            ),
            tokenizer=TokenizerRecipe(vocab_size=512, max_characters=200_000),
            pretrain=PretrainRecipe(
                depth=2,
                aspect_ratio=16,
                head_dim=16,
                sequence_len=64,
                num_iterations=30,
                tokens_per_step=512,
                scale_weight_decay=False,
                compute_dtype="float32",
                optimizer=OptimizerRecipe(
                    matrices=MuonGroup(weight_decay=0.0),
                    scalar_lr_scale=0.1,
                    scale_lr_with_batch=False,
                ),
                schedule=ScheduleRecipe(warmup_steps=2),
                data=DataOrderRecipe(block_shards=1, max_epochs=8.0),
            ),
            base_eval=BaseEvalRecipe(
                validation_tokens=4_096, max_per_task=4, sample_tokens=8, compute_dtype="float32"
            ),
            sft=SftRecipe(
                mixture=_mixture(source, identity=60, sums=20, questions=40),
                lr_scale=0.25,
                compute_dtype="float32",
            ),
            chat_eval_sft=chat_eval,
            rl=RlRecipe(
                task="sums",
                problems=40,
                questions_per_step=2,
                samples_per_question=8,
                max_new_tokens=12,
                num_iterations=6,
                pass_at_k=2,
                pass_at_k_questions=4,
                compute_dtype="float32",
            ),
            chat_eval_rl=chat_eval,
        ),
        executions=Executions(
            pretrain=execution,
            base_eval=execution,
            sft=execution,
            chat_eval_sft=execution,
            rl=execution,
            chat_eval_rl=execution,
        ),
    )


SCALAR_RATES = {"resid_lr": 0.0005, "x0_lr": 0.05, "smear_lr": 0.02}
"""A tenth of the reference's: at full rate one of six fine-tunings blew up (LOG.md, the demo)."""


def demo(source: Source) -> Preset:
    """A model that knows who it is, from text that is on every machine, in minutes on two cores.

    Numbers: LOG.md, "the demo". At this batch the dial's laws are far outside the sizes they were
    fitted on, so batch, rates and weight decay are set here.
    """
    chat_eval = ChatEvalRecipe(max_new_tokens=64)
    return Preset(
        recipes=Recipes(
            shards=ShardsRecipe(source=source, num_shards=4),
            tokenizer=TokenizerRecipe(vocab_size=2048),
            pretrain=PretrainRecipe(
                depth=2,
                sequence_len=256,
                num_iterations=1_500,
                tokens_per_step=2_048,
                scale_weight_decay=False,
                optimizer=OptimizerRecipe(
                    matrices=MuonGroup(weight_decay=0.0),
                    # At full rate the scalars made the loss jump between steps 500 and 750.
                    scalar_lr_scale=0.1,
                    scale_lr_with_batch=False,
                ),
                schedule=ScheduleRecipe(warmup_steps=10, warmdown_fraction=0.6),
                data=DataOrderRecipe(block_shards=1, max_epochs=8.0),
            ),
            sft=SftRecipe(
                # Some 45 tokens each: about 500 steps of 2,048 tokens. Few sums: what is left to
                # learn of them is what reinforcement shows.
                mixture=_mixture(source, identity=6_700, sums=450, questions=14_560),
                lr_scale=0.25,
                **SCALAR_RATES,
            ),
            chat_eval_sft=chat_eval,
            rl=RlRecipe(
                task="sums",
                samples_per_question=8,
                max_new_tokens=32,
                num_iterations=80,
                # From 0.2 on it forgot who it is (LOG.md, reinforcement).
                lr_scale=0.12,
                pass_at_k_questions=50,
                **SCALAR_RATES,
            ),
            chat_eval_rl=chat_eval,
        ),
        executions=Executions(
            # Replies differ in length: compiling for each takes longer than the steps.
            rl=Execution(
                compile=False, device_batch_size=16, log_every=1, checkpoint_every=20, eval_every=40
            )
        ),
    )


def _mixture(source: Source, *, identity: int, sums: int, questions: int) -> Mixture:
    is_harvest = isinstance(source, HarvestSource)
    return Mixture(
        parts=(
            MixturePart(kind="identity", conversations=identity),
            MixturePart(kind="sums", conversations=sums),
            MixturePart(kind="questions", conversations=questions),
        ),
        data="the documentation of Python packages" if is_harvest else "the text I was given",
    )


PRESETS: dict[str, Callable[[Source], Preset]] = {"tiny": tiny, "demo": demo}
