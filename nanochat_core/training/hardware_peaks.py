"""What the makers' data sheets promise (torch-free): the ceiling of MFU as others state it."""

PEAK_BF16_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 FLOP/s of the largest variant, by a word of the device name."""


def data_sheet_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU, or None where its data sheet is not in the table."""
    peaks = [peak for word, peak in PEAK_BF16_FLOPS.items() if word in device_name]
    return peaks[0] if peaks else None
