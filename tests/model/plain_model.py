"""The whole model restated in plain float64 numpy: loops and explicit softmax, nothing shared."""

import math

import numpy as np

EPS = 1.1920929e-07


def rms(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def rope(vector, position):
    half = len(vector) // 2
    out = np.empty_like(vector)
    for i in range(half):
        angle = position * 100_000.0 ** (-2.0 * i / len(vector))
        a, b = vector[i], vector[i + half]
        out[i] = a * math.cos(angle) + b * math.sin(angle)
        out[i + half] = -a * math.sin(angle) + b * math.cos(angle)
    return out


def attention(w, i, h, tokens, *, heads, groups, window):
    length, width = h.shape
    dim = width // heads
    pick = lambda name: w[f"blocks.{i}.attn.{name}.weight"]  # noqa: E731
    q = (h @ pick("q").T).reshape(length, heads, dim)
    k = (h @ pick("k").T).reshape(length, groups, dim)
    v = (h @ pick("v").T).reshape(length, groups, dim)
    if f"value_embeddings.{i}.weight" in w:
        table = w[f"value_embeddings.{i}.weight"]
        gate = 3.0 * sigmoid(h[:, :12] @ pick("value_gate").T)
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
    return out.reshape(length, width) @ pick("out").T


def windows(layers, sequence_len, pattern):
    short = min(-(-sequence_len // (4 * 128)) * 128, sequence_len)
    sizes = [sequence_len if pattern[i % len(pattern)] == "L" else short for i in range(layers)]
    return [*sizes[:-1], sequence_len]


def logits(w, tokens, *, layers, heads, groups, vocab, sequence_len, pattern):
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
