"""All readers under atheris, one after another: `python -m reliability.guided SECONDS SEED PLANT FOLDER`.

Imported before everything else of the campaign, because only what is imported under its eyes tells its coverage. That takes
long, so it is done once, and each reader gets a process that is forked from this one. FOLDER gets NUMBER.json with what was
found, NUMBER.err with what libFuzzer said, and NUMBER.code with the exit code.
"""

import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dcclctl"]):
    from reliability import readers

    readers.import_readers()


def main() -> None:
    seconds, seed, plant, folder = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    for number, name in enumerate(readers.TARGETS):
        process = os.fork()
        if process == 0:
            said = os.open(folder / f"{number}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(said, 2)
            readers.run_target(name, seconds, seed, plant, folder / f"{number}.json")
            os._exit(0)
        _, status = os.waitpid(process, 0)
        (folder / f"{number}.code").write_text(str(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main()
