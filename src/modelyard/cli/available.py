"""What `list --available` shows: models on the disk, and downloads that were interrupted.

Laws of this file:
- It looks at the disk itself, so it needs no server; of a running one it takes the folders.
"""

from __future__ import annotations

from pathlib import Path

from modelyard.cli.configure import load_config
from modelyard.cli.output import note, print_json, print_table, say
from modelyard.cli.pull import in_bytes, server
from modelyard.cli.words import NOTHING, short_path

COLUMNS = ("NAME", "SIZE", "WEIGHTS", "ENGINE", "LICENCE", "SOURCE")


def list_available(url: str | None, as_json: bool) -> None:
    """Print what is in the models folders and not declared, and what was not fetched whole."""
    from modelyard.catalog.discover import scan
    from modelyard.downloads.places import unfinished_in
    from modelyard.runtime.pulls import with_downloads

    config = with_downloads(load_config(None))
    client = server(url)
    dirs = list(config.models_dirs)
    if client is not None:
        with client:
            dirs = [Path(folder) for folder in client.info().models_dirs]
    catalog = scan(dirs, engines=("llamacpp", "vllm", "transformers"))
    declared = {spec.source for spec in config.models} | {spec.id for spec in config.models}
    found = [m for m in catalog.found if m.id not in declared and str(m.source) not in declared]
    unfinished = [each for folder in dirs for each in unfinished_in(folder)]
    if as_json:
        models = [
            {
                "id": model.id,
                "bytes": model.weight_bytes,
                "quantization": model.quantization,
                "engine": model.engine.engine,
                "license": model.license,
                "source": str(model.source),
            }
            for model in found
        ]
        jobs = [
            {
                "model": job.model,
                "hub": job.hub,
                "revision": job.revision,
                "files": job.files,
                "total_bytes": job.total_bytes,
                "done_bytes": here,
            }
            for job, here in unfinished
        ]
        print_json({"models": models, "unfinished": jobs})
        return
    if found:
        rows = [
            (
                model.id,
                in_bytes(model.weight_bytes),
                model.quantization,
                model.engine.engine or NOTHING,
                model.license or NOTHING,
                short_path(str(model.source)),
            )
            for model in found
        ]
        print_table(COLUMNS, rows)
    for job, here in unfinished:
        flags = f" --revision {job.revision}" if job.revision else ""
        flags += "".join(f" --file '{glob}'" for glob in job.files)
        flags += f" --from {job.hub}" if job.hub != "hf" else ""
        part = f"{in_bytes(here)} of {in_bytes(job.total_bytes)}"
        say(f"unfinished, {part}: modelyard pull {job.model}{flags}")
    if not found and not unfinished:
        note("There is nothing in the models folders that is not declared.")
