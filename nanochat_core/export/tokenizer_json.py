"""Our tokenizer in the form of Hugging Face's `tokenizers`: other code, the same ids.

Ours looks for the neighbours whose bytes together are the token of the lowest rank, at the left
first (tiktoken). Theirs has a list of pairs and merges the first of the list. One pair for each
token makes both the same. Where two neighbours become a token, nothing was ever merged across its
two ends, so what happened between them is what happens to the token's bytes alone; that has one
course, whose last step is the token's only pair. In the order of ranks, pairs rank as tokens do.
A token that its own bytes do not lead to is taken only where it is a whole word, which both look
up before they merge (`ignore_merges`).
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from nanochat_core.export.hub_patterns import hub_pattern
from nanochat_core.tokenizer.tokenizer import NUM_BYTES, SPECIAL_TOKENS, Tokenizer

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
BOS, END = "<|bos|>", "<|assistant_end|>"


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Write tokenizer, settings and chat template; returns the names of the files.

    Raises `ConfigError` for a split pattern that their regular expressions cannot say.
    """
    texts = {
        TOKENIZER_FILE: _json(tokenizer_values(tokenizer)),
        SETTINGS_FILE: _json(settings_values()),
        TEMPLATE_FILE: Path(__file__).with_name(TEMPLATE_FILE).read_text(encoding="utf-8"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return list(texts)


def tokenizer_values(tokenizer: Tokenizer) -> dict[str, Any]:
    """What stands in `tokenizer.json`."""
    letters = byte_letters()
    words = ["".join(letters[byte] for byte in token) for token in tokenizer.ranks]
    merges = [
        ["".join(letters[byte] for byte in part) for part in pair]
        for pair in merge_pairs(tokenizer.ranks)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(name, tokenizer.special_ids[name]) for name in SPECIAL_TOKENS],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(hub_pattern(tokenizer.split_pattern)),
        "post_processor": _post_processor(tokenizer.bos_id),
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {word: rank for rank, word in enumerate(words)},
            "merges": merges,
        },
    }


def settings_values() -> dict[str, Any]:
    """What stands in `tokenizer_config.json`.

    Padding is the end of a reply: with bos, `generate` would take every bos for padding and hide
    it. At the left, since replies are written at the right.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": END,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def merge_pairs(ranks: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The last merge on the way to each token, by rank; none for one that merging never makes."""
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    found = (_last_pair(token, rank_of) for token in ranks if len(token) > 1)
    return [pair for pair in found if pair is not None]


def _last_pair(token: bytes, rank_of: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [rank_of.get(a + b) for a, b in pairwise(parts)]
        possible = [(rank, place) for place, rank in enumerate(joined) if rank is not None]
        if not possible:
            return None
        place = min(possible)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def byte_letters() -> tuple[str, ...]:
    """A printable character for each byte, as GPT-2 has them (openai/gpt-2, encoder.py).

    Bytes that print in Latin-1 stand for themselves, the others for those from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(NUM_BYTES, 2 * NUM_BYTES))
    return tuple(chr(b) if b in printable else chr(next(others)) for b in range(NUM_BYTES))


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _byte_level()]}


def _byte_level() -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }


def _post_processor(bos_id: int) -> dict[str, Any]:
    """Bos before every text, as before every document in training; `add_special_tokens`."""
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos, second],
        "special_tokens": {BOS: {"id": BOS, "ids": [bos_id], "tokens": [BOS]}},
    }


def _added(name: str, token_id: int) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
