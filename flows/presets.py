"""Named settings of the whole line: a preset is a value, never another code path."""

from collections.abc import Callable

from nanochat_core.benchmarks.files import expected_files
from nanochat_core.config.base import Config
from nanochat_core.config.execution import Execution
from nanochat_core.conversation.recipes import MadeKind, Mixture, MixturePart
from nanochat_core.data.hub_shards import CLIMBMIX
from nanochat_core.data.recipes import (
    BenchmarksRecipe,
    FilesSource,
    HarvestSource,
    HubSource,
    MixtureSource,
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

Source = HarvestSource | FilesSource | HubSource | MixtureSource


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
    source = _standard_library_alone(source)
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


def _standard_library_alone(source: Source) -> Source:
    """Of the documentation only what is read in seconds."""
    if isinstance(source, HarvestSource):
        return source.model_copy(update={"versions": {}})
    if not isinstance(source, MixtureSource):
        return source
    parts = tuple(
        part.model_copy(update={"source": _standard_library_alone(part.source)})
        for part in source.parts
    )
    return source.model_copy(update={"parts": parts})


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


def cpu(source: Source) -> Preset:
    """A small model of web text on a laptop, in hours: DESIGN section 6."""
    chat_eval = ChatEvalRecipe(max_new_tokens=128)
    return Preset(
        recipes=Recipes(
            shards=ShardsRecipe(source=source),
            tokenizer=TokenizerRecipe(),
            pretrain=PretrainRecipe(
                depth=6,
                head_dim=64,
                sequence_len=512,
                window_pattern="L",
                num_iterations=5_000,
                tokens_per_step=16_384,
                data=DataOrderRecipe(block_shards=1, max_epochs=8.0),
            ),
            base_eval=BaseEvalRecipe(
                # All of a held-out shard takes a CPU as long as a large part of training.
                validation_tokens=524_288,
                max_per_task=100,
                sample_prompts=WEB_PROMPTS,
            ),
            sft=SftRecipe(mixture=_reference_mixture(source), num_iterations=1_500),
            chat_eval_sft=chat_eval,
            rl=RlRecipe(task="sums", samples_per_question=8, max_new_tokens=32, num_iterations=80),
            chat_eval_rl=chat_eval,
        ),
        executions=Executions(
            rl=Execution(compile=False, log_every=1, checkpoint_every=20, eval_every=40)
        ),
    )


def research(source: Source) -> Preset:
    """Depth 12, everything else by the dial: to try an idea on one GPU."""
    return Preset(recipes=_dialled(source, depth=12, ratio=12.0), executions=Executions())


def speedrun(source: Source) -> Preset:
    """To the score of GPT-2 on eight GPUs with fp8: RECIPE sections 2 and 8.

    GPUs before the H100 have no fp8, and say so; there it is --set pretrain.fp8=false.
    """
    eight = Execution(ranks=8)
    trained = Execution(ranks=8, device_batch_size=16)
    return Preset(
        recipes=_dialled(source, depth=24, ratio=8.0, fp8=True),
        executions=Executions(
            pretrain=trained,
            base_eval=eight,
            sft=trained,
            chat_eval_sft=eight,
            rl=eight,
            chat_eval_rl=eight,
        ),
    )


def _dialled(source: Source, *, depth: int, ratio: float, fp8: bool = False) -> Recipes:
    """The reference's line at a depth."""
    return Recipes(
        shards=ShardsRecipe(source=source),
        tokenizer=TokenizerRecipe(),
        pretrain=PretrainRecipe(depth=depth, target_param_data_ratio=ratio, fp8=fp8),
        base_eval=BaseEvalRecipe(sample_prompts=WEB_PROMPTS),
        sft=SftRecipe(mixture=_reference_mixture(source)),
        rl=RlRecipe(task="sums"),
    )


WEB_PROMPTS = (
    "The largest ocean on Earth is",
    "Water freezes when",
    "Twice five is",
    "The opposite of early is",
    "The planet closest to the Sun is",
    "If today is Monday, then tomorrow is",
    "My favourite book is about",
    "Once upon a time",
)
"""How samples of a model begin that has read text from the web."""

REFERENCE_PARTS = (
    MixturePart(kind="smoltalk"),
    MixturePart(kind="mmlu", epochs=3.0),
    MixturePart(kind="gsm8k", epochs=4.0),
)
"""The conversations of the reference, in its order and shuffled by its seed: RECIPE section 6."""
REFERENCE_SEED = 42


def _reference_mixture(source: Source) -> Mixture:
    """Those of them whose files are given, and so that it knows its name (ours) some made ones."""
    made = _mixture(source, identity=2_000, sums=1_000, questions=0)
    return made.model_copy(
        update={"parts": (*REFERENCE_PARTS, *made.parts), "seed": REFERENCE_SEED}
    )


def with_reference_problems(preset: Preset) -> Preset:
    """The preset reinforced on GSM8K, where its files are given, as the reference is."""
    names = {file.name for file in preset.recipes.benchmarks.files}
    if not all(names & set(expected_files("gsm8k", split)) for split in ("train", "test")):
        return preset
    recipes = preset.recipes.model_copy(update={"rl": RlRecipe(task="gsm8k")})
    return preset.model_copy(update={"recipes": recipes})


def _mixture(source: Source, *, identity: int, sums: int, questions: int) -> Mixture:
    told = {HarvestSource: "the documentation of Python packages", HubSource: "text from the web"}
    made: dict[MadeKind, int] = {"identity": identity, "sums": sums, "questions": questions}
    return Mixture(
        parts=tuple(
            MixturePart(kind=kind, conversations=count) for kind, count in made.items() if count
        ),
        data=told.get(type(source), "the text I was given"),
    )


PRESETS: dict[str, Callable[[Source], Preset]] = {
    "tiny": tiny,
    "demo": demo,
    "cpu": cpu,
    "research": research,
    "speedrun": speedrun,
}
USUAL_SOURCES = dict.fromkeys(("cpu", "research", "speedrun"), CLIMBMIX)
"""What a preset reads without --source; the others read the documentation of what is installed."""
FOR_GPUS = ("research", "speedrun")
"""Presets of the reference's size, with its problems where their files are given."""
