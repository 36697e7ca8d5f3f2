"""A process that compiles the loss of a model of some depth, and says what that cost it.

Seconds of CPU, of the process and of its C++ compilers: other processes hardly change them.
"""

import json
import os
import resource
import sys
import warnings
from pathlib import Path


def cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(each)[:2]) for each in who)


def main(depth: int, cache: Path) -> None:
    """One forward and backward pass, with kernels in an empty folder."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    warnings.filterwarnings("ignore", message=".torch.jit.script_method. is deprecated")
    import torch
    from torch._dynamo.utils import counters

    from nanochat_core.model.config import ModelConfig
    from nanochat_core.model.gpt import GPT
    from nanochat_core.training.compiling import loss_function

    torch.set_num_threads(1)
    shape = {"n_layer": depth, "n_head": 1, "n_kv_head": 1, "n_embd": 128, "vocab_size": 512}
    model = GPT(ModelConfig(sequence_len=256, window_pattern="SSSL", **shape), torch.bfloat16)
    model.init_weights(seed=0)
    tokens = torch.arange(2 * 256).view(2, 256)
    loss = loss_function(model, compiled=True)
    before = cpu_seconds()
    loss(tokens, tokens).backward()
    result = {
        "cpu_seconds": cpu_seconds() - before,
        "graphs": counters["stats"]["unique_graphs"],
        "kernels": len(list(cache.glob("**/*.so"))),
    }
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
