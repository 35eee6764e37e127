"""Both ends of pipelines/device-round.sh: give every device its folder, and compare what came back with central learning."""

import argparse
import csv
import json
import os
from pathlib import Path

import numpy as np

from dcclctl import Store
from dcclctl.artifacts import Bundle, PatchSet
from dcclctl.stages.export import user_document, write_bundle

#: both sum floats of 32 bits, in another order
LARGEST = 1e-5


def prepare(store: Store, reference: str, folder: Path, devices: int) -> None:
    """Write the bundle once, and for each device its own log and what the cloud sends to it alone."""
    bundle = Bundle(store.resolve(reference))
    assert bundle.patches is not None
    write_bundle(bundle, folder / "bundle")
    (folder / "uplinks").mkdir()
    dataset = bundle.cloud.dataset
    ids = dataset.items["item_id"].to_list()
    for number, user in enumerate(bundle.patches.users["user_id"].to_list()[:devices]):
        own = folder / "devices" / f"{number:04d}"
        own.mkdir(parents=True)
        document = user_document(bundle, user)
        document["theta"], document["events"] = [], []  # the device learns both from its own log
        (own / "user.json").write_text(json.dumps(document))
        rows = dataset.log.events_of(int(bundle.patches.users["user_index"][number]))
        with (own / "log.csv").open("w", newline="") as file:
            lines = zip(dataset.log.item[rows], dataset.times[rows], dataset.log.label[rows], strict=True)
            csv.writer(file).writerows([ids[item], repr(float(time)), label] for item, time, label in lines)
    print(f"{devices} devices in {folder}")


def compare(store: Store, central: str, collected: str) -> None:
    """Print the largest difference of a number of θ̂ between the two."""
    learned, sent = (PatchSet(store.resolve(reference)) for reference in (central, collected))
    found = sent.users["user_index"].to_numpy().astype(np.int64)
    largest = float((learned.codes()[0][found] - sent.codes()[0][found]).abs().max())
    print(f"{len(found)} devices; the largest difference of a number of θ̂ to central learning is {largest:.1e}")
    if largest > LARGEST:
        raise SystemExit(f"devices and central learning differ by more than {LARGEST}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prepare", "compare"))
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--devices", type=int, default=50)
    options = parser.parse_args()
    store = Store(Path(os.environ.get("DCCL_STORE", ".dccl")))
    if options.what == "prepare":
        prepare(store, options.first, Path(options.second), options.devices)
    else:
        compare(store, options.first, options.second)


if __name__ == "__main__":
    main()
