"""Fuzzes the parsers of model files: GGUF, safetensors, and the small files of a folder.

    python -m bench.fuzz_catalog --inputs 200000 [--seed 1] [--keep FOLDER]

Prints what came of it, and ends with 1 if anything was wrong; with `--keep`, inputs that were are
written there, to be added to tests/catalog/fuzz. Memory is bounded for the whole process
(RLIMIT_AS), processor time for each input; see tests/catalog/fuzzing.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from tests.catalog.fuzzing import run, seeds

TABLE = Path(__file__).parent.parent / "tests/catalog/real_models.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    whole = seeds(json.loads(TABLE.read_text(encoding="utf-8")))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        found = run(args.inputs, args.seed, Path(place), whole)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{found}; {args.inputs / seconds:.0f} a second, resident at most {peak} MiB")
    for name, content, what in found.wrong[:10]:
        print(f"\n{name}, {len(content)} bytes: {what}")
        if args.keep is not None:
            digest = hashlib.sha256(content).hexdigest()[:12]
            (args.keep / f"{name}-{digest}").write_bytes(content)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
