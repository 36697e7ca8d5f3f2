"""Makes bodies that fit the schema into ones that can be answered, where no schema could say how.

Loaded by schemathesis itself. What is wrong on purpose is left as it is.
"""

from typing import Any

import schemathesis
from schemathesis import Case, HookContext

MODEL = "scripted"


@schemathesis.hook
def map_case(context: HookContext, case: Case) -> Case:
    """Mend a body, and the one name of a model that there is."""
    if case.meta is not None and case.meta.generation.mode.is_positive:
        if isinstance(case.body, dict):
            case.body = mended(case.body)
        if case.path_parameters:
            case.path_parameters["name"] = MODEL
    return case


def mended(body: dict[str, Any]) -> dict[str, Any]:
    """A body that is no worse than the one given, with turns, tokens and sums that fit."""
    known = {name: value for name, value in body.items() if name in FIELDS}
    if known.get("model") is not None:
        known["model"] = MODEL
    if known.get("seed") is not None:
        # The schema says int64, which schemathesis does not keep to.
        known["seed"] %= 2**63
    if isinstance(known.get("stop"), list):
        known["stop"] = [text[:200] or "x" for text in known["stop"]]
    elif known.get("stop") is not None:
        known["stop"] = known["stop"][:200] or "x"
    if "messages" in known:
        known["messages"] = turns(known["messages"])
        if known.get("top_logprobs"):
            known["logprobs"] = True
    if "prompt" in known:
        known["prompt"] = prompts(known["prompt"])
        known["n"] = min(known.get("n") or 1, 2)
        known.pop("best_of", None)
        known.pop("suffix", None)
        if known.get("echo"):
            known["logprobs"] = None
    return known


FIELDS = frozenset(
    {
        *("model", "stream", "stream_options", "temperature", "top_p", "top_k", "n", "seed"),
        *("stop", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"),
        *("messages", "prompt", "echo", "suffix", "best_of"),
    }
)
"""Others may be among those that are refused by name."""


def turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most nine messages: user and assistant in turn, the user first and last."""
    kept = messages[:9] if len(messages[:9]) % 2 else messages[:8][:-1] or messages[:1]
    return [
        {**message, **(_spoken(message) if i % 2 == 0 else {"role": "assistant"})}
        for i, message in enumerate(map(_text_only, kept))
    ]


def _text_only(message: dict[str, Any]) -> dict[str, Any]:
    if isinstance(message.get("content"), list):
        parts = [{"type": "text", "text": part.get("text") or ""} for part in message["content"]]
        return {**message, "content": parts}
    return message


def _spoken(message: dict[str, Any]) -> dict[str, Any]:
    """What a user says is something."""
    content = message.get("content") or "a"
    if isinstance(content, list):
        content = [*content, {"type": "text", "text": "a"}]
    return {"role": "user", "content": content}


def prompts(prompt: Any) -> Any:
    """At most four prompts, of ids that there are."""
    if not isinstance(prompt, list):
        return prompt
    if prompt and not isinstance(prompt[0], (str, list)):
        return [token % 256 for token in prompt]
    several = prompt[:4] or ["a"]
    return [p if isinstance(p, str) else [token % 256 for token in p] for p in several]
