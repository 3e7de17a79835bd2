"""`python -m tests.hostile.fuzz`: bytes that are changed by chance, and kept where they reach code that none before them did (libFuzzer, by way of atheris).

    python -m tests.hostile.fuzz --seconds 600
    python -m tests.hostile.fuzz --seconds 60 --corpus FOLDER

Atheris is no dependency of the tests: `pip install atheris`, or `tox -e fuzz`, which has it. What breaks a target is written to the folder of the corpus as `crash-…`, with
a traceback; giving that file's path as the only argument tries it again. Exit code 0: nothing broke. 3: there is no atheris here.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path

NO_ATHERIS = 3
INPUT_BYTES_MAX = 8192


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description="Fuzzing that coverage guides.", allow_abbrev=False)
    parser.add_argument("--seconds", type=int, default=60, help="[default: 60]")
    parser.add_argument("--corpus", type=Path, default=None, help="a folder of inputs, which grows [default: a new one]")
    parser.add_argument("--seed", type=int, default=0, help="of chance; 0: another each time [default: 0]")
    parser.add_argument("input", type=Path, nargs="?", help="one input, to be tried once")
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write("atheris is not installed\n")
        return NO_ATHERIS
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["proteus_shards"]):
        targets = importlib.import_module("tests.hostile.fuzz_targets")
    if given.input is not None:
        targets.check(given.input.read_bytes())
        return 0
    folder = given.corpus or Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder.mkdir(exist_ok=True)
    for number, seed in enumerate(targets.SEEDS):
        (folder / f"seed-{number:03}").write_bytes(seed)
    options = [
        f"-max_total_time={given.seconds}",
        f"-seed={given.seed}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-artifact_prefix={folder}/",
        "-timeout=20",
        "-rss_limit_mb=2048",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder)], targets.check)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
