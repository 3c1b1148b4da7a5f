"""Commands about the configuration: config check, config schema, config show."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli.exits import tell
from modelyard.cli.options import Json, Url
from modelyard.cli.output import note, print_json, say
from modelyard.cli.words import counted, listed, short_path

if TYPE_CHECKING:
    from modelyard.config import Config

commands = typer.Typer(
    name="config", help="Check and show the configuration.", no_args_is_help=True
)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Configuration file. Default: MODELYARD_CONFIG, else the one in the platform's folder"
        " for settings, if there is one.",
    ),
]


def load_config(
    file: Path | None,
    overrides: Mapping[str, object] | None = None,
    content: bytes | None = None,
) -> Config:
    """The configuration that a command is to use. Raises ConfigError with all problems.

    `content` stands for what the file holds, to see what it would mean.
    """
    from modelyard.config import default_path, load

    named = os.environ.get("MODELYARD_CONFIG")
    path = file or (Path(named) if named else default_path())
    return load(path, env=os.environ, overrides=overrides or {}, content=content)


@commands.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Configuration file to check.")],
    as_json: Json = False,
) -> None:
    """Check a configuration file: every problem with its line and key. Starts nothing."""
    from modelyard.app import engine_problems
    from modelyard.core.errors import ConfigError

    try:
        config = load_config(file)
        problems = engine_problems(config)
        if problems:
            raise ConfigError(str(file), problems)
    except ConfigError as error:
        if as_json:
            print_json({"file": str(file), "ok": False, "problems": error.problems})
        raise typer.Exit(tell(error)) from None
    if as_json:
        print_json({"file": str(file), "ok": True, "problems": []})
    else:
        say(f"{file} is fine: {_declared(config)}")


@commands.command()
def reload(url: Url = None, as_json: Json = False) -> None:
    """Have the server read its configuration file anew.

    Its models follow the file at once; what needs a restart of the server is listed.
    """
    from modelyard.client import Client

    with Client(url) as client:
        done = client.reload()
    if as_json:
        print_json(done)
        return
    say(f"{short_path(done.path)}: read anew")
    for word, names in (
        ("added", done.added),
        ("changed", done.changed),
        ("removed", done.removed),
        ("only after a restart of the server", done.needs_restart),
    ):
        if names:
            say(f"  {word}: {listed(names)}")


@commands.command()
def schema(as_json: Json = False) -> None:  # noqa: ARG001  # it is JSON in any case
    """Print the JSON Schema of the configuration file, for editors."""
    from modelyard.config import json_schema

    print_json(json_schema())


@commands.command()
def show(config: ConfigFile = None, as_json: Json = False) -> None:
    """Print the configuration in force: file, variables and defaults, without secrets."""
    from modelyard.config import describe

    chosen = load_config(config)
    for text in chosen.notes:
        note(text)
    described = describe(chosen)
    if as_json:
        print_json(described)
    else:
        say(_yaml(described).rstrip())


def _yaml(value: dict[str, Any]) -> str:
    import io

    from ruamel.yaml import YAML

    written = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # see its source
    yaml.dump(value, written)
    return written.getvalue()


def _declared(config: Config) -> str:
    folders = counted(len(config.models_dirs), "folder")
    return f"{counted(len(config.models), 'model')} declared, {folders} to look for more in"
