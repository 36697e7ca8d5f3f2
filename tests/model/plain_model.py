"""The whole model restated in plain float64 numpy: loops and explicit softmax, nothing shared."""

import math

import numpy as np

Array = np.ndarray
Weights = dict[str, np.ndarray]

EPS = 1.1920929e-07


def rms(x: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def rope(vector: Array, position: int) -> Array:
    half = len(vector) // 2
    out = np.empty_like(vector)
    for i in range(half):
        angle = position * 100_000.0 ** (-2.0 * i / len(vector))
        a, b = vector[i], vector[i + half]
        out[i] = a * math.cos(angle) + b * math.sin(angle)
        out[i + half] = -a * math.sin(angle) + b * math.cos(angle)
    return out


def attention(
    w: Weights, i: int, h: Array, tokens: Array, *, heads: int, groups: int, window: int
) -> Array:
    length, width = h.shape
    dim = width // heads
    names = ("q", "k", "v", "out")
    w_q, w_k, w_v, w_out = (w[f"blocks.{i}.attn.{name}.weight"] for name in names)
    q = (h @ w_q.T).reshape(length, heads, dim)
    k = (h @ w_k.T).reshape(length, groups, dim)
    v = (h @ w_v.T).reshape(length, groups, dim)
    if f"value_embeddings.{i}.weight" in w:
        table = w[f"value_embeddings.{i}.weight"]
        gate = 3.0 * sigmoid(h[:, :12] @ w[f"blocks.{i}.attn.value_gate.weight"].T)
        v = v + gate[:, :, None] * table[tokens].reshape(length, groups, dim)
    out = np.zeros((length, heads, dim))
    for head in range(heads):
        group = head // (heads // groups)
        keys = [rms(rope(k[s, group], s)) * 1.2 for s in range(length)]
        for t in range(length):
            query = rms(rope(q[t, head], t)) * 1.2
            first = max(0, t - window)
            scores = np.array([query @ keys[s] for s in range(first, t + 1)]) / math.sqrt(dim)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            for s in range(first, t + 1):
                out[t, head] += weights[s - first] * v[s, group]
    return out.reshape(length, width) @ w_out.T


def windows(layers: int, sequence_len: int, pattern: str) -> list[int]:
    short = -(-sequence_len // (4 * 128)) * 128
    sizes = [sequence_len if pattern[i % len(pattern)] == "L" else short for i in range(layers)]
    return [*sizes[:-1], sequence_len]


def logits(
    w: Weights,
    tokens: Array,
    *,
    layers: int,
    heads: int,
    groups: int,
    vocab: int,
    sequence_len: int,
    pattern: str,
) -> Array:
    """Logits (T, vocab) of one row of token ids; `w` maps parameter names to float64 arrays."""
    tokens = np.asarray(tokens)
    plain = rms(w["wte.weight"][tokens])
    x = plain.copy()
    for t in range(1, len(tokens)):
        gate = sigmoid(w["smear_gate.weight"][0] @ plain[t, :24])
        x[t] = plain[t] + w["smear_lambda"][0] * gate * plain[t - 1]
    x0, kept = x, None
    for i, window in enumerate(windows(layers, sequence_len, pattern)):
        x = w["resid_lambdas"][i] * x + w["x0_lambdas"][i] * x0
        x = x + attention(w, i, rms(x), tokens, heads=heads, groups=groups, window=window)
        hidden = np.maximum(rms(x) @ w[f"blocks.{i}.mlp.fc.weight"].T, 0.0) ** 2
        x = x + hidden @ w[f"blocks.{i}.mlp.proj.weight"].T
        if i == layers // 2:
            kept = x
    x = rms(x - w["backout_lambda"][0] * kept)
    z = (x @ w["lm_head.weight"].T)[:, :vocab]
    return 15.0 * np.tanh(z / 15.0)
