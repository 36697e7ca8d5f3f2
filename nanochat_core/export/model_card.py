"""The page of an exported model, as the Hugging Face Hub shows it: README.md with YAML on top."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from nanochat_core.config.base import Config
from nanochat_core.conversation.markdown import escape, printable
from nanochat_core.errors import DataError
from nanochat_core.export.recipe import OLDEST_TRANSFORMERS, SANITIZING_TRANSFORMERS

CARD_FILE = "README.md"
MATERIAL_FILE = "card.json"
CHAT_STATIONS = ("sft", "rl")
SHORT_DIGEST = 16


class CardArtifact(Config):
    """An artifact of the lineage."""

    station: str
    fingerprint: str
    digest: str
    created: str

    @property
    def short(self) -> str:
        """`station/` and the first eight characters of the fingerprint."""
        return f"{self.station}/{self.fingerprint[:8]}"


class CardScore(Config):
    """A score, with its standard error and the number of problems where they are known."""

    name: str
    value: float
    stderr: float | None = None
    asked: int | None = None
    station: str
    artifact: str = Field(description="short reference of the evaluation")

    @property
    def text(self) -> str:
        """`0.755 ± 0.030`."""
        shown = f"{self.value:.4g}" if self.name.endswith("bpb") else f"{self.value:.3f}"
        return shown if self.stderr is None else f"{shown} ± {self.stderr:.3f}"


class CardModel(Config):
    """The shape of the model."""

    depth: int
    width: int
    heads: int
    kv_heads: int
    sequence_len: int
    vocab_size: int
    window_pattern: str
    parameters: int = 0


class CardMaterial(Config):
    """Everything that the card says; the stage writes it as `card.json` for its job."""

    name: str
    model_artifact: CardArtifact
    model: CardModel
    split_pattern: str = ""
    data: str = Field("", description="completes: it was trained on ...")
    sources: tuple[str, ...] = ()
    training: dict[str, str] = Field(default_factory=dict, description="label -> text")
    scores: tuple[CardScore, ...] = ()
    lineage: tuple[CardArtifact, ...] = ()
    checks: dict[str, float | int | str] = Field(
        default_factory=dict, description="numbers of the comparison with the original"
    )
    packages: dict[str, str] = Field(
        default_factory=dict, description="versions of what it was compared with"
    )

    @property
    def is_chat(self) -> bool:
        """Whether the model was taught to answer, and not only to continue text."""
        return self.model_artifact.station in CHAT_STATIONS

    @classmethod
    def load(cls, folder: Path) -> "CardMaterial":
        """Read that of a work folder. `DataError` when it is not there, or is none."""
        path = folder / MATERIAL_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read as the material of a model card ({error}); the stage "
                "export writes it: run nanochat export again"
            ) from error

    def save(self, folder: Path) -> str:
        """Write it; returns the file's name."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        (folder / MATERIAL_FILE).write_text(text, encoding="utf-8", newline="\n")
        return MATERIAL_FILE


def write_card(folder: Path, material: CardMaterial) -> str:
    """Write README.md; returns its name. It names artifacts and dates: role `record`."""
    (folder / CARD_FILE).write_text(card(material), encoding="utf-8", newline="\n")
    return CARD_FILE


def card(material: CardMaterial) -> str:
    """The card as Markdown."""
    sections = (
        _front_matter(material),
        _introduction(material),
        _usage(material),
        _limits(material),
        _scores(material),
        _data(material),
        _shape(material),
        _checks(material),
        _lineage(material),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _front_matter(material: CardMaterial) -> list[str]:
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in ("nanochat", "custom_code", *_chat_tags(material))),
    ]
    if material.scores:
        lines += ["model-index:", f"- name: {_yaml(material.name)}", "  results:"]
        lines += [line for score in material.scores for line in _result(score)]
    return [*lines, "---"]


def _chat_tags(material: CardMaterial) -> Sequence[str]:
    return ("conversational",) if material.is_chat else ()


def _result(score: CardScore) -> Iterable[str]:
    return (
        "  - task:",
        "      type: text-generation",
        "    dataset:",
        f"      name: {_yaml(_measured_on(score))}",
        f"      type: {_yaml(score.name.replace('/', '-'))}",
        "    metrics:",
        f"    - type: {_yaml(_metric(score))}",
        f"      value: {score.value!r}",
        f"      name: {_yaml(score.name)}",
    )


def _yaml(text: str) -> str:
    # A JSON string is a YAML string, unless it has control characters or halves of surrogates.
    return json.dumps(printable(text), ensure_ascii=False)


def _metric(score: CardScore) -> str:
    """Its kind: what was not counted in problems is a mean over benchmarks, and centered."""
    if score.name.endswith("bpb"):
        return "bits_per_byte"
    return score.name if score.asked is None else "accuracy"


def _measured_on(score: CardScore) -> str:
    if score.name.endswith("bpb"):
        return "held-out text of the same sources"
    return f"{score.name} of {score.station}"


def _introduction(material: CardMaterial) -> list[str]:
    model = material.model
    kind = "chat model" if material.is_chat else "base model, which continues text,"
    size = f"{model.parameters:,} parameters, " if model.parameters else ""
    about = f" It was trained on {escape(material.data)}." if material.data else ""
    return [
        f"# {escape(material.name)}",
        "",
        f"A small {kind} of the nanochat family: {size}{model.depth} layers, a vocabulary of "
        f"{model.vocab_size:,} tokens, a context of {model.sequence_len:,}.{about}",
    ]


def _usage(material: CardMaterial) -> list[str]:
    return [
        "## Use",
        "",
        "With `pip install torch transformers`; the model's code is in this folder, hence "
        "`trust_remote_code`. `PATH` is this folder, or its name on the Hub.",
        _versions(material.packages),
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("PATH", trust_remote_code=True)',
        'model = AutoModelForCausalLM.from_pretrained("PATH", trust_remote_code=True)',
        *(_CHAT_LINES if material.is_chat else _TEXT_LINES),
        "```",
    ]


def _versions(packages: Mapping[str, str]) -> str:
    tested = " and ".join(f"{name} {version}" for name, version in packages.items())
    compared = f"It was compared with the original under {escape(tested)}. " if tested else ""
    return f"{compared}transformers {OLDEST_TRANSFORMERS} loads such folders, too."


_CHAT_LINES = (
    'messages = [{"role": "user", "content": "What are you?"}]',
    "inputs = tokenizer.apply_chat_template(",
    '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
    ")",
    "reply = model.generate(**inputs, max_new_tokens=64, do_sample=False)",
    'print(tokenizer.decode(reply[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
)
_TEXT_LINES = (
    "# The tokenizer puts <|bos|> before a text, as before every document in training.",
    'inputs = tokenizer("Note that", return_tensors="pt")',
    "text = model.generate(**inputs, max_new_tokens=64, do_sample=False)",
    "print(tokenizer.decode(text[0], skip_special_tokens=True))",
)


def _limits(material: CardMaterial) -> list[str]:
    lines = [
        "## What it does not do",
        "",
        f"- It reads no more than {material.model.sequence_len:,} tokens well: it was trained on "
        "rows of that length.",
        "- vLLM, SGLang, TGI, llama.cpp (GGUF), MLX and Ollama have no code for this architecture "
        "(smeared embeddings, value embeddings, residual scalars, a logit cap), and the `nanochat` "
        "that comes with transformers is an older one. Use transformers as above, or the server "
        "of the project that made it.",
        "- Text that looks like a special token (`<|user_end|>` and the like) *is* one to a "
        "Hugging Face tokenizer. Cut text that you do not trust with `split_special_tokens=True`; "
        "give `apply_chat_template` the option `sanitize_control_tokens=True`. Older versions of "
        f"transformers ignore that option without a word ({OLDEST_TRANSFORMERS} does; "
        f"{SANITIZING_TRANSFORMERS} knows it).",
    ]
    if material.is_chat:
        lines.append(
            "- Between `<|python_start|>` and `<|python_end|>` it asks a calculator. `generate` "
            "answers it, with the tokenizer beside the model (`calculator=False` leaves it alone). "
            "Whoever writes a loop of their own lets `<|output_start|>` result `<|output_end|>` "
            "follow, or scores on sums fall far behind those below."
        )
    lines.append(
        "- It is small: what it says is often wrong, and it was not taught to be harmless."
    )
    return lines


def _scores(material: CardMaterial) -> list[str]:
    if not material.scores:
        return ["## Scores", "", "This model was not evaluated."]
    rows = [("score", "value ± standard error", "problems", "measured by")]
    rows += [
        (
            escape(score.name),
            score.text,
            f"{score.asked:,}" if score.asked else "",
            f"`{score.artifact}`{'' if _is_own(material, score) else ', of its base model'}",
        )
        for score in material.scores
    ]
    return ["## Scores", "", *_table(rows), "", *_score_notes(material.scores)]


def _is_own(material: CardMaterial, score: CardScore) -> bool:
    return not (material.is_chat and score.station == "base_eval")


def _score_notes(scores: Sequence[CardScore]) -> list[str]:
    names = {score.name for score in scores}
    known = {
        "val/bpb": "`val/bpb`: bits for each byte of text that was held out; fewer are better.",
        "core_metric": "`core_metric`: CORE (arXiv:2406.11794), centered so that guessing is 0.",
        "chatcore_metric": "`chatcore_metric`: mean over benchmarks, centered so that guessing is "
        "0.",
        "demo_score": "`demo_score`: mean over small tasks that were made of the same sources, "
        "guessing is 0; no published benchmark.",
    }
    return [text for name, text in known.items() if name in names]


def _data(material: CardMaterial) -> list[str]:
    lines = [f"- {escape(line)}" for line in material.sources]
    lines += [f"- {escape(label)}: {escape(text)}" for label, text in material.training.items()]
    return ["## Data and training", "", *lines] if lines else []


def _shape(material: CardMaterial) -> list[str]:
    model = material.model
    rows = [("", "")]
    rows += [
        ("layers", f"{model.depth:,}"),
        ("width", f"{model.width:,}"),
        ("heads (for keys and values)", f"{model.heads:,} ({model.kv_heads:,})"),
        ("context", f"{model.sequence_len:,} tokens"),
        ("attention windows", f"{escape(model.window_pattern)} (S: short, L: all of the context)"),
        ("vocabulary", f"{model.vocab_size:,} tokens, byte-level BPE"),
    ]
    if material.split_pattern:
        rows.append(("split pattern", escape(material.split_pattern)))
    return ["## Shape", "", *_table(rows)]


def _checks(material: CardMaterial) -> list[str]:
    if not material.checks:
        return []
    rows = [("compared with the original before it was published", "")]
    rows += [(escape(name.replace("_", " ")), _number(v)) for name, v in material.checks.items()]
    return ["## Checks", "", *_table(rows)]


def _number(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else escape(value)


def _lineage(material: CardMaterial) -> list[str]:
    own = material.model_artifact
    rows = [("artifact", "made (UTC)", "digest of the result")]
    rows += [
        (f"`{one.short}`", one.created[:16].replace("T", " "), f"`{one.digest[:SHORT_DIGEST]}`")
        for one in material.lineage
    ]
    return [
        "## Lineage",
        "",
        f"Exported from `{own.station}/{own.fingerprint}`, digest `{own.digest}`.",
        *(["", *_table(rows)] if material.lineage else []),
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells are Markdown already."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return [f"| {' | '.join(line)} |" for line in lines]


def scores_of(metrics: Mapping[str, Any], station: str, artifact: str) -> list[CardScore]:
    """Scores of an evaluation's numbers: NAME with NAME/stderr and NAME/asked where they are."""
    parts = ("/stderr", "/asked", "/right", "/baseline")
    numbers = {n: v for n, v in metrics.items() if isinstance(v, int | float)}
    return [
        CardScore(
            name=name,
            value=float(value),
            stderr=numbers.get(f"{name}/stderr"),
            asked=numbers.get(f"{name}/asked"),
            station=station,
            artifact=artifact,
        )
        for name, value in numbers.items()
        if not name.endswith(parts)
    ]
