"""`sample`: the bundled log, written into a folder with the commands to type next."""

import shutil
from pathlib import Path

from dcclctl.errors import UsageError

#: what is written; the sizes and the licence are in the README
FILES = ("purchases.csv.gz", "products.csv.gz", "households.csv.gz", "dirty.csv", "README.md")
#: what to type in the folder, in order
NEXT = (
    "dcclctl ingest purchases.csv.gz --map user=household_id,item=product_id,time=time "
    "--items products.csv.gz --users households.csv.gz --repeats keep",
    "dcclctl train --epochs 5",
    "dcclctl patch",
    "dcclctl evaluate --against cloud --candidates 100",
    "dcclctl report",
)
_README = """# A log to try dcclctl on

Purchases of 697 households at a grocery chain over one year. Type in this folder:

    {commands}

`report.html` then says who gained from the patches, by activity. Every command takes `--help`, and `--plan` says what it
would do and about how long that takes. Where the data come from, and their licence:

"""


def write_sample(folder: Path) -> list[Path]:
    """Write the sample log and a README into a folder, which is made if it is not there.

    Returns:
        The files.

    Raises:
        UsageError: one of the files is there already, or the folder cannot be written.
    """
    targets = [folder / name for name in FILES]
    there = [target.name for target in targets if target.exists()]
    if there:
        raise UsageError(f"{folder} has {', '.join(there)} already", "Name another folder: nothing is overwritten.")
    source = _source()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target in targets:
            shutil.copyfile(source / target.name, target)
        about = (source / "README.md").read_text(encoding="utf-8").replace("sample_data/", "")
        text = _README.format(commands="\n    ".join(NEXT)) + about.replace("# Sample data", "## Sample data")
        (folder / "README.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}", "Name another folder.") from error
    return targets


def _source() -> Path:
    """Where the sample is: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "sample_data"
    return inside if inside.is_dir() else package.parent / "sample_data"
