"""The flow around the line: its parameters stand at the top level, as commands and forms need."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from prefect import Flow
from pydantic import BaseModel, Field

from flows.line import Line
from flows.parameters import parse_parameters
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.config.base import Config

Follow = Callable[[Line], ArtifactRef | None]


def line_flow(name: str, follow: Follow, parameters: type[Config]) -> Flow[..., ArtifactRef | None]:
    """A flow that takes the fields of `parameters` by name and runs `follow` with them.

    So `-p preset=tiny` names a field, and a form has one entry a field, with its help.
    """

    def run(**values: Any) -> ArtifactRef | None:
        with Line(parse_parameters(values)) as line:
            return follow(line)

    run.__name__, run.__module__ = name, follow.__module__
    # Prefect learns names, types and defaults from the signature, and help from the docstring.
    run.__signature__ = signature_of(parameters)  # type: ignore[attr-defined]
    run.__doc__ = documentation_of(follow.__doc__ or "", parameters)
    return Flow(
        run,
        name=name,
        description=follow.__doc__,
        flow_run_name="{preset}",
        persist_result=False,
    )


def signature_of(model: type[BaseModel]) -> inspect.Signature:
    """The signature of a function that takes the fields of a model by name."""
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.get_default(call_default_factory=True),
                annotation=Annotated[
                    field.annotation, Field(json_schema_extra=field.json_schema_extra)
                ],
            )
            for name, field in model.model_fields.items()
        ]
    )


def documentation_of(summary: str, model: type[BaseModel]) -> str:
    """A docstring with the help of every field, in the form that Prefect reads."""
    lines = (f"    {name}: {field.description}" for name, field in model.model_fields.items())
    return "\n".join([summary, "", "Args:", *lines, ""])
