"""The public surface of the flow: its parameters, and where every field of a preset belongs."""

from flows.parameters import RunParameters
from flows.presets import MAKING_STATIONS, PRESETS, STATIONS, Executions, Preset, Recipes
from nanochat_core.config.base import Recipe
from nanochat_core.config.execution import Execution

SCHEMA = {
    "preset": {"enum": [*PRESETS], "type": "string", "default": "demo"},
    "depth": {"anyOf": [{"type": "integer"}, {"type": "string"}], "default": "preset"},
    "store": {"type": "string", "default": "default"},
    "upstream": {"type": "string", "default": ""},
    "source": {"type": "array", "items": {"type": "string"}, "default": []},
    "mirrors": {"type": "array", "items": {"type": "string"}, "default": []},
    "offline": {"type": "boolean", "default": False},
    "benchmarks": {"type": "string", "default": ""},
    "conversations": {"type": "array", "items": {"type": "string"}, "default": []},
    "overrides": {"type": "object", "additionalProperties": True, "default": {}},
    "compute_dtype": {
        "enum": ["preset", "auto", "float32", "bfloat16", "float16"],
        "type": "string",
        "default": "preset",
    },
    "start_from": {"enum": ["none", *STATIONS], "type": "string", "default": "none"},
    "stop_after": {"enum": [*STATIONS, "end"], "type": "string", "default": "end"},
    "force": {"type": "array", "items": {"type": "string"}, "default": []},
    "stage_pools": {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "default": {},
    },
    "wait": {"type": "boolean", "default": False},
    "run": {"type": "string", "default": ""},
    "tracker": {"enum": ["none", "wandb", "trackio"], "type": "string", "default": "none"},
}
"""Saved deployments and scripts hold these names and defaults: change them knowingly."""


def test_the_parameters_of_the_flow_are_these() -> None:
    schema = RunParameters.model_json_schema()
    assert schema["additionalProperties"] is False
    assert "required" not in schema
    found = {
        name: {key: value for key, value in field.items() if key not in ("title", "description")}
        for name, field in schema["properties"].items()
    }
    assert found == SCHEMA


def test_every_parameter_says_what_it_is() -> None:
    assert all(field.description for field in RunParameters.model_fields.values())


def test_every_field_of_a_preset_is_a_recipe_or_an_execution_and_never_both() -> None:
    assert set(Preset.model_fields) == {"recipes", "executions"}
    assert list(Recipes.model_fields) == list(Executions.model_fields)
    for station in MAKING_STATIONS:
        recipe = Recipes.model_fields[station].annotation
        execution = Executions.model_fields[station].annotation
        assert isinstance(recipe, type)
        assert issubclass(recipe, Recipe)
        assert execution is Execution
        assert not issubclass(recipe, Execution)
        assert not set(recipe.model_fields) & set(execution.model_fields)


def test_where_things_run_has_these_fields_and_no_others() -> None:
    """A field that changes what is computed must not hide here: it would not be hashed."""
    assert set(Execution.model_fields) == {
        "device",
        "ranks",
        "threads",
        "workers",
        "nodes",
        "rendezvous_endpoint",
        "rendezvous_id",
        "collective_timeout_seconds",
        "device_batch_size",
        "memory_limit_gb",
        "activation_checkpointing",
        "attention",
        "compile",
        "compile_scope",
        "share_kernels",
        "share_beginnings",
        "reduction",
        "log_every",
        "checkpoint_every",
        "checkpoint_minutes",
        "keep_checkpoints",
        "max_loss_spikes",
        "eval_every",
        "core_metric_every",
        "sample_every",
        "tracker",
        "tracker_run",
        "allow_weak_sandbox",
        "grace_seconds",
    }
