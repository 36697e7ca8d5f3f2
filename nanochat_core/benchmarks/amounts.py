"""How much text a part of a mixture comes to, as far as that is known before its file is read."""

from nanochat_core.conversation.recipes import MixturePart

TRAIN_SETS: dict[str, tuple[int, int]] = {
    "smoltalk": (460_341, 1_811_694_118),
    "mmlu": (99_842, 161_000_625),
    "gsm8k": (7_473, 3_963_202),
    "arc-easy": (2_251, 619_000),
    "arc-challenge": (1_119, 349_760),
}
"""Rows and bytes of the train split, as the cards of these sets on the hub say (RECIPE 6)."""
MADE_CHARACTERS = 160
"""Of a conversation that is made here: 22,380 filled 1.03 M tokens at a vocabulary of 2,048."""
OWN_CHARACTERS = 500
"""Of one of somebody's own, with the signs of JSON around it."""


def expected_conversations(part: MixturePart, file_bytes: int = 0) -> float:
    """How many conversations a part gives, about; `file_bytes` is the size of an own file."""
    if part.is_made:
        return float(part.conversations)
    return part.epochs * _rows(part, file_bytes)


def expected_characters(part: MixturePart, file_bytes: int = 0) -> float:
    """How many characters those have together, about."""
    if part.kind in TRAIN_SETS:
        rows, size = TRAIN_SETS[part.kind]
        each = size / rows
    else:
        each = MADE_CHARACTERS if part.is_made else OWN_CHARACTERS
    return expected_conversations(part, file_bytes) * each


def _rows(part: MixturePart, file_bytes: int) -> float:
    in_set = TRAIN_SETS.get(part.kind)
    found = in_set[0] if in_set else file_bytes / OWN_CHARACTERS
    return min(found, part.conversations or found)
