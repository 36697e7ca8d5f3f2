"""Every flag of the six commands, in the reference's words, with what it means here."""

from flows.by_hand.flags import Flag

AUTO = {-1: "auto"}
_HAS_ONE_STEP = (
    "a published model is that of the last step; leave the flag away (a run that was stopped "
    "continues when its command is given again)"
)

COMMON = (
    Flag("device-type", str, "execution", "cuda, mps, cpu; empty: the best there is",
         metavar="DEVICE", fields={"device": 1}, instead={"": "auto"}),
    Flag("nproc-per-node", int, "option", "processes on each machine (GPUs)"),
    Flag("nnodes", int, "execution", "machines; on the others: nanochat join",
         fields={"nodes": 1}),
    Flag("rdzv-endpoint", str, "execution", "where they meet: name of this machine and a free port",
         metavar="HOST:PORT", fields={"rendezvous_endpoint": 1}),
    Flag("rdzv-id", str, "execution", "a name that only this run has", metavar="ID",
         fields={"rendezvous_id": 1}),
    Flag("preset", str, "option", "take the numbers that are not given from demo or tiny; none: "
         "those of the reference", metavar="NAME"),
    Flag("set", str, "option", "any other field, as in data.max_epochs=8 or threads=2; "
         "repeatable", metavar="FIELD=VALUE", repeatable=True),
    Flag("store", str, "option", "folder or URL of the artifact store; default as for nanochat "
         "run", metavar="PLACE"),
    Flag("output", str, "option", "folder of the results; default: NANOCHAT_BASE_DIR/by-hand, "
         "else a folder of your user's cache", metavar="FOLDER"),
    Flag("tokenizer", str, "option", "folder, or name of an artifact", metavar="NAME"),
)  # fmt: skip

TRACKING = (
    Flag("run", str, "option", "name of the run at the tracker; dummy: no tracking",
         metavar="NAME"),
    Flag("tracker", str, "option", "wandb (as soon as a run is named) or trackio",
         metavar="NAME"),
    Flag("overwrite", bool, "option", "start again, whatever was trained under this tag"),
)  # fmt: skip

CHECKPOINT = Flag(
    "checkpoint", str, "option",
    "the model to start from: tag (d12), alias, station/fingerprint or folder; default: the newest",
    metavar="NAME",
)  # fmt: skip

_MICRO_BATCH = Flag(
    "device-batch-size", str, "execution",
    "rows of one micro-batch; auto: the most that fit a GPU",
    metavar="N|auto", fields={"device_batch_size": 1},
)  # fmt: skip

PRETRAIN = (
    *COMMON,
    *TRACKING,
    Flag("tokens", str, "option", "folder, or name of an artifact; default: the newest",
         metavar="NAME"),
    Flag("shards", str, "option", "text for the in-context tasks while training, where there is "
         "no --eval-bundle", metavar="NAME"),
    Flag("eval-bundle", str, "option", "folder or zip with the official CORE tasks",
         metavar="PATH"),
    Flag("model-tag", str, "option", "name of the result; default: d and the depth",
         metavar="TAG"),
    Flag("depth", int, "recipe", "layers of the model: the one dial", fields={"depth": 1}),
    Flag("aspect-ratio", int, "recipe", "model width = depth x this", fields={"aspect_ratio": 1}),
    Flag("head-dim", int, "recipe", "width of an attention head", fields={"head_dim": 1}),
    Flag("max-seq-len", int, "recipe", "tokens of a row", fields={"sequence_len": 1}),
    Flag("window-pattern", str, "recipe", "attention windows of the blocks, L long, S short",
         metavar="LETTERS", fields={"window_pattern": 1}),
    Flag("num-iterations", int, "recipe", "number of steps; -1: from the two below",
         fields={"num_iterations": 1}, instead=AUTO),
    Flag("target-flops", float, "recipe", "training FLOPs that set the steps; -1: off",
         fields={"target_flops": 1}, instead=AUTO),
    Flag("target-param-data-ratio", float, "recipe", "tokens per scaling parameter; -1: off",
         fields={"target_param_data_ratio": 1}, instead=AUTO),
    _MICRO_BATCH,
    Flag("total-batch-size", int, "recipe", "tokens of a step; -1: from the dial",
         fields={"tokens_per_step": 1}, instead=AUTO),
    # RECIPE section 2: value embeddings have half the rate of wte, and the residual scalars a
    # hundredth of that of the others.
    Flag("embedding-lr", float, "recipe", "rate of the embeddings (AdamW)",
         fields={"optimizer.wte.lr": 1, "optimizer.value_embeddings.lr": 0.5}),
    Flag("unembedding-lr", float, "recipe", "rate of the head (AdamW)",
         fields={"optimizer.head.lr": 1}),
    Flag("matrix-lr", float, "recipe", "rate of the matrices (Muon)",
         fields={"optimizer.matrices.lr": 1}),
    Flag("scalar-lr", float, "recipe", "rate of the scalars (AdamW)",
         fields={"optimizer.x0.lr": 1, "optimizer.resid.lr": 0.01}),
    Flag("weight-decay", float, "recipe", "of the matrices, before the dial's scaling",
         fields={"optimizer.matrices.weight_decay": 1}),
    Flag("warmup-steps", int, "recipe", "steps until the full rate",
         fields={"schedule.warmup_steps": 1}),
    Flag("warmdown-ratio", float, "recipe", "share of the steps over which the rate falls",
         fields={"schedule.warmdown_fraction": 1}),
    Flag("final-lr-frac", float, "recipe", "rate of the last step, of the full rate",
         fields={"schedule.final_lr_fraction": 1}),
    Flag("fp8", bool, "recipe", "multiply large matrices in 8 bits (H100 and newer)",
         fields={"fp8": 1}),
    Flag("fp8-recipe", str, "refused", "scaling of fp8; only tensorwise", metavar="NAME",
         without_effect=("tensorwise",),
         why="fp8 is scaled per tensor here; leave the flag away"),
    Flag("resume-from-step", int, "option", "a run always continues from its newest checkpoint; "
         "this only checks that it is the one of this step; -1: no check"),
    Flag("eval-every", int, "execution", "steps between bits per byte; -1: off",
         fields={"eval_every": 1}),
    Flag("eval-tokens", int, "option", "tokens of each of them; 65536 unless given"),
    Flag("core-metric-every", int, "execution", "steps between in-context scores; -1: off",
         fields={"core_metric_every": 1}),
    Flag("core-metric-max-per-task", int, "option", "examples of each task; -1: all"),
    Flag("sample-every", int, "execution", "steps between samples in the log; -1: off",
         fields={"sample_every": 1}),
    Flag("save-every", int, "execution", "steps between checkpoints; -1: as by default",
         fields={"checkpoint_every": 1}, without_effect=(-1,)),
)  # fmt: skip

_DATA = Flag(
    "data", str, "option",
    "folder with the files of benchmarks (gsm8k-train.jsonl ...), or an artifact; default: the "
    "newest of the store",
    metavar="NAME",
)  # fmt: skip

SFT = (
    *COMMON,
    *TRACKING,
    CHECKPOINT,
    _DATA,
    Flag("shards", str, "option", "shards whose questions are asked; default: those that the base "
         "model was trained on", metavar="NAME"),
    Flag("model-tag", str, "option", "tag of the base model, and of the result", metavar="TAG"),
    Flag("model-step", int, "refused", "not here: a model is its last step",
         without_effect=(-1,), why=_HAS_ONE_STEP),
    Flag("load-optimizer", int, "refused", "1: start from the moments of pretraining",
         without_effect=(1,),
         why="fine-tuning always starts from the moments of pretraining; leave the flag away"),
    Flag("num-iterations", int, "recipe", "number of steps; -1: one epoch",
         fields={"num_iterations": 1}, instead=AUTO),
    Flag("max-seq-len", int, "inherited", "as the base model's", fields={"model.sequence_len": 1}),
    _MICRO_BATCH,
    Flag("total-batch-size", int, "inherited", "as the base model's",
         fields={"plan.tokens_per_step": 1}, without_effect=(-1,)),
    Flag("embedding-lr", float, "inherited", "as the base model's; see --init-lr-frac",
         fields={"training.optimizer.wte.lr": 1}),
    Flag("unembedding-lr", float, "inherited", "as the base model's; see --init-lr-frac",
         fields={"training.optimizer.head.lr": 1}),
    Flag("matrix-lr", float, "inherited", "as the base model's; see --init-lr-frac",
         fields={"training.optimizer.matrices.lr": 1}),
    Flag("init-lr-frac", float, "recipe", "times the rates of the base model",
         fields={"lr_scale": 1}),
    Flag("warmup-ratio", float, "option", "share of the steps over which the rate rises"),
    Flag("warmdown-ratio", float, "recipe", "share of the steps over which the rate falls",
         fields={"schedule.warmdown_fraction": 1}),
    Flag("final-lr-frac", float, "recipe", "rate of the last step, of the full rate",
         fields={"schedule.final_lr_fraction": 1}),
    Flag("save-every", int, "execution", "steps between checkpoints; -1: as by default",
         fields={"checkpoint_every": 1}, without_effect=(-1,)),
    Flag("eval-every", int, "execution", "steps between losses of held-out conversations; -1: off",
         fields={"eval_every": 1}),
    *(
        Flag(name, int, "noted", "accepted; evaluate afterwards with: nanochat eval chat -i sft",
             without_effect=(-1,),
             why="fine-tuning measures val/loss alone; afterwards: nanochat eval chat -i sft")
        for name in ("eval-tokens", "chatcore-every", "chatcore-max-cat", "chatcore-max-sample")
    ),
    *(
        Flag(name, int, "refused", "not here: see mixture.parts with --set", without_effect=(0,),
             why="what is taught is mixture.parts here (nanochat artifacts show sft/... lists it); "
             "change a part with --set mixture.parts.0.conversations=N")
        for name in ("mmlu-epochs", "gsm8k-epochs")
    ),
)  # fmt: skip

_BASE_EVAL = (
    *COMMON,
    CHECKPOINT,
    Flag("model-tag", str, "option", "the same as --checkpoint, with a tag", metavar="TAG"),
    Flag("step", int, "refused", "not here: a model is its last step", without_effect=(-1,),
         why=_HAS_ONE_STEP),
    Flag("hf-path", str, "refused", "not here: models of nanochat only", metavar="NAME",
         why="only models that nanochat trained can be evaluated; give --checkpoint"),
    Flag("device-batch-size", str, "execution", "rows of one forward pass, or auto",
         metavar="N|auto", fields={"device_batch_size": 1}),
)  # fmt: skip
_MAX_PER_TASK = Flag(
    "max-per-task", int, "recipe", "examples kept of each task; -1: all",
    fields={"max_per_task": 1}, instead={-1: 0},
)  # fmt: skip
_EVAL_BUNDLE = Flag(
    "eval-bundle", str, "option",
    "folder or zip with the official CORE tasks; default: tasks made of held-out documents",
    metavar="PATH",
)  # fmt: skip
_FRESH = Flag("fresh", bool, "option", "ask again what earlier evaluations have asked already")
_SHARDS = Flag("shards", str, "option", "shards with the held-out documents", metavar="NAME")
_TOKENS = Flag("tokens", str, "option", "tokens with the held-out rows", metavar="NAME")

CORE = (*_BASE_EVAL, _MAX_PER_TASK, _EVAL_BUNDLE, _SHARDS, _FRESH)

BPB = (
    *_BASE_EVAL,
    _TOKENS,
    Flag("split-tokens", int, "recipe", "tokens at most", fields={"validation_tokens": 1}),
    Flag("eval-tokens", int, "recipe", "the same", fields={"validation_tokens": 1}),
)  # fmt: skip

BASE_EVAL = (
    *_BASE_EVAL,
    _MAX_PER_TASK,
    _EVAL_BUNDLE,
    _SHARDS,
    _TOKENS,
    Flag("split-tokens", int, "recipe", "tokens at most", fields={"validation_tokens": 1}),
    Flag("eval", str, "option", "any of core,bpb,sample", metavar="LIST"),
    _FRESH,
)
"""The reference's script base_eval, which is `core`, `bpb` and samples in one."""

RL = (
    *COMMON,
    *TRACKING,
    CHECKPOINT,
    _DATA,
    Flag("model-tag", str, "option", "tag of the chat model, and of the result", metavar="TAG"),
    Flag("model-step", int, "refused", "not here: a model is its last step",
         without_effect=(-1,), why=_HAS_ONE_STEP),
    Flag("source", str, "refused", "sft: what reinforcement learning starts from",
         without_effect=("sft",), metavar="NAME",
         why="reinforcement learning starts from a model of sft; leave the flag away"),
    Flag("num-iterations", int, "recipe", "number of steps; -1: every problem once",
         fields={"num_iterations": 1}, instead=AUTO),
    Flag("num-epochs", int, "refused", "1; for another number give --num-iterations",
         without_effect=(1,), why="give the number of steps with --num-iterations instead"),
    _MICRO_BATCH,
    Flag("examples-per-step", int, "recipe", "questions of one step",
         fields={"questions_per_step": 1}),
    Flag("num-samples", int, "recipe", "replies to each question",
         fields={"samples_per_question": 1}),
    Flag("max-new-tokens", int, "recipe", "tokens of a reply at most",
         fields={"max_new_tokens": 1}),
    Flag("temperature", float, "recipe", "of the replies", fields={"temperature": 1}),
    Flag("top-k", int, "recipe", "likeliest tokens that are drawn from; 0: all",
         fields={"top_k": 1}),
    Flag("embedding-lr", float, "recipe", "rate of the embeddings (AdamW)",
         fields={"wte_lr": 1, "value_embedding_lr": 0.5}),
    Flag("unembedding-lr", float, "recipe", "rate of the head (AdamW)", fields={"head_lr": 1}),
    Flag("matrix-lr", float, "recipe", "rate of the matrices (Muon)", fields={"matrix_lr": 1}),
    Flag("weight-decay", float, "refused", "0: the matrices do not decay", without_effect=(0.0,),
         why="the matrices do not decay in reinforcement learning; leave the flag away"),
    Flag("init-lr-frac", float, "recipe", "times every rate", fields={"lr_scale": 1}),
    Flag("eval-every", int, "execution", "steps between pass@k; -1: off",
         fields={"eval_every": 1}),
    Flag("eval-examples", int, "recipe", "test questions of pass@k",
         fields={"pass_at_k_questions": 1}),
    Flag("save-every", int, "execution", "steps between checkpoints; -1: as by default",
         fields={"checkpoint_every": 1}, without_effect=(-1,)),
)  # fmt: skip

# The reference's names of tasks, beside our own.
TASK_NAMES = {
    "ARC-Easy": "arc-easy",
    "ARC-Challenge": "arc-challenge",
    "MMLU": "mmlu",
    "GSM8K": "gsm8k",
    "HumanEval": "humaneval",
    "SpellingBee": "spelling",
}

CHAT_EVAL = (
    *COMMON,
    CHECKPOINT,
    _DATA,
    Flag("model-tag", str, "option", "the same as --checkpoint, with a tag", short="g",
         metavar="TAG"),
    Flag("step", int, "refused", "not here: a model is its last step", short="s",
         without_effect=(-1,), why=_HAS_ONE_STEP),
    Flag("source", str, "option", "sft or rl; default: rl where there is one", short="i",
         metavar="KIND"),
    Flag("task-name", str, "option", "benchmarks, joined by |: ARC-Easy, ARC-Challenge, MMLU, "
         "GSM8K, HumanEval, SpellingBee, sums, identity; default: the last two, and those that "
         "--data has", short="a", metavar="NAMES"),
    Flag("temperature", float, "refused", "0: answers are greedy", short="t",
         without_effect=(0.0,), why="answers are the likeliest ones here; leave the flag away"),
    Flag("max-new-tokens", int, "recipe", "tokens of a reply at most", short="m",
         fields={"max_new_tokens": 1}),
    Flag("num-samples", int, "refused", "1: there is one greedy answer", short="n",
         without_effect=(1,), why="there is only one likeliest answer; leave the flag away"),
    Flag("top-k", int, "noted", "accepted; greedy answers do not depend on it", short="k",
         why="the likeliest token is always taken, so this changes nothing"),
    Flag("batch-size", str, "execution", "rows of one forward pass, or auto", short="b",
         metavar="N|auto", fields={"device_batch_size": 1}),
    Flag("max-problems", int, "recipe", "asked of each benchmark; -1: all", short="x",
         fields={"max_problems": 1}, instead={-1: 0}),
    Flag("allow-weak-sandbox", bool, "execution", "run generated code (HumanEval) where only "
         "limits hold it back", fields={"allow_weak_sandbox": 1}),
    _FRESH,
)  # fmt: skip
