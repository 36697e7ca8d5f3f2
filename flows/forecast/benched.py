"""What `nanochat bench train` measured, as a time to learn from where there is no record."""

import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from flows.forecast.amounts import Amounts
from flows.forecast.machine import Machine, short_name
from flows.forecast.nominal import Job
from flows.forecast.rates import rates
from flows.forecast.timings import Timing
from nanochat_core.config.execution import Execution
from nanochat_core.errors import ConfigError
from nanochat_core.model.counts import Numbers
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.training.recipes import PretrainRecipe

HEAD_DIM = 128
"""Of the models that the benchmark trains."""


class StepSeconds(BaseModel):
    """How long steps took."""

    p50: float


class Measured(BaseModel):
    """What is read of the line of JSON; there is more in it."""

    model_config = ConfigDict(extra="ignore")

    device: str
    ranks: int
    threads: int
    device_batch_size: int
    compile: str
    depth: int
    width: int
    sequence_len: int
    tokens_per_step: int
    steps: int
    vocab_size: int
    dtype: Numbers
    step_seconds: StepSeconds

    @property
    def execution(self) -> Execution:
        """How it was measured."""
        return Execution(
            ranks=self.ranks,
            threads=self.threads,
            device_batch_size=self.device_batch_size,
            compile=self.compile != "off",
            eval_every=-1,
        )

    @property
    def recipes(self) -> dict[str, PretrainRecipe | TokenizerRecipe]:
        """What was trained."""
        recipe = PretrainRecipe(
            depth=self.depth,
            n_embd=self.width,
            head_dim=math.gcd(self.width, HEAD_DIM),
            sequence_len=self.sequence_len,
            tokens_per_step=self.tokens_per_step,
            num_iterations=self.steps,
        )
        return {"pretrain": recipe, "tokenizer": TokenizerRecipe(vocab_size=self.vocab_size)}


def read_bench(path: Path, here: Machine) -> tuple[Timing, Machine]:
    """Seconds of a step as a time of pretraining, and the machine that they are of.

    The file does not tell the cores of a CPU: they are taken for those of this machine.
    """
    try:
        line = path.read_text(encoding="utf-8").strip().rpartition("\n")[2]
        measured = Measured.model_validate_json(line)
    except (OSError, UnicodeError, ValidationError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"--bench {path} cannot be used ({reason}); expected the line of JSON that "
            "`nanochat bench train --out FILE` writes"
        ) from error
    is_gpu = not measured.device.startswith(("cpu", "mps"))
    gpu = {"device_type": "cuda", "gpu": short_name(measured.device)}
    machine = here.model_copy(update=gpu if is_gpu else {})
    return _timing(measured, machine), machine


def _timing(measured: Measured, machine: Machine) -> Timing:
    execution, numbers = measured.execution, measured.dtype
    figures = rates(machine, execution, numbers)
    amounts = Amounts(measured.recipes)
    job = Job("pretrain", amounts, execution, numbers, machine.device_type, figures)
    step, nominal = measured.step_seconds.p50, job.nominal()
    return Timing(
        "pretrain",
        seconds=step * nominal.steps,
        nominal=nominal,
        machine=machine,
        step_seconds=step,
        is_bench=True,
    )
