"""The distributions whose documentation the harvest reads.

All of them come with the core dependencies, none with an extra, so that installing an extra
changes nothing; those that hold much code and little prose are left out. Another list asks for
another `HarvestSource.filter_version`.
"""

_NAMES = """
aiobotocore aiohappyeyeballs aiohttp aioitertools aiosqlite alembic annotated-types anyio
asyncpg attrs beartype botocore burner-redis cachetools cffi charset-normalizer click
cloudpickle colorama cronsim cyclopts docker docstring-parser exceptiongroup fastapi
filelock fsspec graphviz griffelib h11 h2 hpack httpcore httpx humanize hyperframe jinja2
jmespath jsonpatch jsonschema mako markdown markdown-it-py mpmath multidict networkx numpy
oauthlib opentelemetry-api packaging pathspec pluggy prefect prometheus-client psutil
py-key-value-aio pyarrow pycparser pydantic pydantic-core pydantic-extra-types
pydantic-settings pydocket python-dateutil python-dotenv python-json-logger python-slugify
pyyaml readchar redis referencing regex requests requests-oauthlib rich rich-rst rustbpe
s3fs safetensors sqlalchemy starlette sympy tiktoken torch typer typing-extensions tzlocal
uncalled-for urllib3 uvicorn websockets wrapt yarl
"""
DISTRIBUTIONS: tuple[str, ...] = tuple(_NAMES.split())
