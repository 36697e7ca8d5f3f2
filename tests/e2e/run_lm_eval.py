"""A process of its own that knows an exported folder only: EleutherAI's lm_eval on its tasks.

usage: python run_lm_eval.py EXPORT TASKS NAME OUTPUT, with transformers told to stay offline
"""

import json
import sys
from pathlib import Path


def main(export: str, tasks: str, name: str, output: str) -> None:
    """Write what the model replied to each question, and its score, to OUTPUT."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": export, "trust_remote_code": True, "dtype": "float32"},
        tasks=[name],
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        apply_chat_template=True,
        log_samples=True,
        device="cpu",
        batch_size=4,
    )
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    told = [{"reply": one["resps"][0][0], "score": one["exact_match"]} for one in samples]
    Path(output).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
