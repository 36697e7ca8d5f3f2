"""The same load on the bare engine: no HTTP, no JSON, no second process."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from nanochat_core.bench.infer_setup import made_up, made_up_tokenizer, shape_of
from nanochat_core.bench.serve_load import Load, Window
from nanochat_core.conversation.types import Conversation, Message, Part
from nanochat_core.inference.checkpoint_manager import CheckpointManager
from nanochat_core.inference.engine import EngineSettings, InferenceEngine
from nanochat_core.inference.loading import save_model
from nanochat_core.inference.opening import open_engine
from nanochat_core.inference.requests import Request
from nanochat_core.inference.settings import SamplingSettings
from nanochat_core.tokenizer.chat_format import render_prompt
from nanochat_core.tokenizer.tokenizer import Tokenizer

UNCUT = 1 << 30


def request_of(load: Load, index: int, tokenizer: Tokenizer) -> Request:
    """What the server makes of a request of the load."""
    message = Message(role="user", parts=(Part(text=load.prompts.text(index)),))
    prompt = render_prompt(tokenizer, Conversation(messages=(message,)), max_tokens=UNCUT)
    return Request(
        prompt=tuple(prompt),
        settings=SamplingSettings(load.temperature, load.top_k, seed=index),
        max_new_tokens=load.max_tokens,
        max_reply_tokens=load.max_tokens,
    )


@torch.inference_mode()
def engine_figures(engine: InferenceEngine, load: Load, window: Window) -> dict[str, Any]:
    """Tokens a second of the engine under this load."""
    num_tokens, num_finished = 0, 0
    index_of: dict[int, int] = {}

    def submit(index: int) -> None:
        if window.allows(index):
            index_of[engine.submit(request_of(load, index, engine.tokenizer))] = index

    begin = time.monotonic()
    for number in range(load.num_clients):
        submit(number)
    while engine.has_work and time.monotonic() < window.end:
        outputs = engine.step()
        is_measured = window.holds(time.monotonic())
        for output in outputs:
            num_tokens += is_measured and output.token is not None
            if output.finish_reason is not None:
                num_finished += 1
                submit(index_of.pop(output.sequence_id) + load.num_clients)
    for sequence_id in index_of:
        engine.cancel(sequence_id)
    seconds = time.monotonic() - max(begin, window.measured)
    return {
        "engine_tokens_per_second": round(num_tokens / seconds, 1),
        "engine_requests": num_finished,
    }


def engine_of(options: argparse.Namespace, num_rows: int) -> InferenceEngine:
    """The engine as the server has it, of the same model."""
    manager = CheckpointManager(
        options.model, store=options.store, tokenizer=options.tokenizer, device=options.device
    )
    folders = manager.find()
    settings = EngineSettings(num_rows=num_rows)
    return open_engine(folders.model, folders.tokenizer, options.device, settings)


def save_made_up(folder: Path, depth: int) -> Path:
    """A model of the depth dial that was never trained, with a tokenizer; as fast as any."""
    shape = shape_of(depth, None, None)
    save_model(made_up(shape, torch.device("cpu"), torch.float32), folder, {})
    made_up_tokenizer(shape.vocab_size).save(folder)
    return folder
