"""One reader under atheris: `python -m reliability.guided READER SECONDS SEED PLANT RESULT`.

Imported before everything else of the campaign, because only what is imported under its eyes tells its coverage.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dcclctl"]):
    from reliability import readers

    readers.import_readers()

if __name__ == "__main__":
    readers.run_target(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
