"""eSASRec as RecTools has it, an outside oracle for our SASRec: the same events, every item ranked.

    python research/esasrec.py write --store results/amazon-beauty.store --dataset dataset@1 --to esasrec/beauty
    python -m venv rectools && rectools/bin/pip install torch==2.13.0 'numpy<2' 'pandas<3' 'rectools[torch]==0.19.0' polars
    rectools/bin/python research/esasrec.py rank --from esasrec/beauty [--size 64] [--seed 0]

`write` needs dcclctl: it writes what a model may learn from (`cloud` and `device`), and each event of `valid` and `test` with
the history before it. `rank` needs RecTools and not dcclctl: eSASRec with our number of numbers per item learns, the epoch
with the best NDCG@10 on `valid` is kept, and HR@10 and NDCG@10 are means over users of the means over their events, as
`dcclctl evaluate --candidates all` makes them.

Source: Tikhonovich et al., "eSASRec", RecSys 2025 (arXiv 2508.06450): SASRec's objective, LiGR layers, softmax over sampled
negatives. Differs: the size of an embedding and the learning rate are ours unless they are given.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import polars as pl

K = 10


def write(options: argparse.Namespace) -> None:
    """The events of a dataset as tables: learn (user, item, place), asked (event, user, item), before (event, item, place)."""
    from dcclctl import Store
    from dcclctl.artifacts import Dataset
    from dcclctl.events.log import CLOUD, DEVICE, TEST, VALID

    log = Dataset(Store(options.store).resolve(options.dataset)).log
    options.to.mkdir(parents=True, exist_ok=True)
    rows = log.events_in(CLOUD, DEVICE)
    rows = rows[log.label[rows] > 0]
    learn = pl.DataFrame({"user": log.user[rows], "item": log.item[rows], "place": rows})
    learn.write_parquet(options.to / "learn.parquet")
    for name, period in (("valid", VALID), ("test", TEST)):
        rows = log.events_in(period)
        rows = rows[log.label[rows] > 0]
        asked = pl.DataFrame({"event": rows, "user": log.user[rows], "item": log.item[rows]})
        asked.write_parquet(options.to / f"{name}.parquet")
        start, end = log.history_start[rows], log.history_end[rows]
        owner = np.repeat(rows, end - start)
        place = np.concatenate([np.arange(a, b) for a, b in zip(start, end, strict=True)] or [np.zeros(0, int)])
        before = pl.DataFrame({"event": owner, "item": log.sequence.numpy()[place], "place": place})
        before.write_parquet(options.to / f"{name}.before.parquet")
    facts = {"repeats": log.repeats, "catalogue": log.catalogue(TEST).tolist()}
    (options.to / "facts.json").write_text(json.dumps(facts))


class Oracle:
    """One eSASRec on one log.

    Args:
        folder: of `write`. options: size, seed and the rest of the command line.
    """

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        import torch
        from pytorch_lightning import Trainer, seed_everything
        from rectools.models import SASRecModel
        from rectools.models.nn.transformers.ligr import LiGRLayers

        torch.set_num_threads(options.threads)
        seed_everything(options.seed)
        self.folder, self.options = folder, options
        self.facts = json.loads((folder / "facts.json").read_text())
        learn = pl.read_parquet(folder / "learn.parquet")
        self.dataset = self._dataset(learn["user"], learn["item"], learn["place"])

        def trainer() -> Trainer:
            silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
            return Trainer(max_epochs=1, min_epochs=1, logger=False, accelerator="cpu", devices=1, **silent)

        self.model = SASRecModel(
            n_factors=options.size,
            n_blocks=2,
            n_heads=options.heads,
            session_max_len=options.history,
            dropout_rate=options.dropout,
            loss="sampled_softmax",
            n_negatives=options.negatives,
            lr=options.learning_rate,
            batch_size=128,
            transformer_layers_type=LiGRLayers,
            get_trainer_func=trainer,
            recommend_torch_device="cpu",
        )

    @staticmethod
    def _dataset(users: pl.Series, items: pl.Series, places: pl.Series) -> "object":
        import pandas as pd
        from rectools import Columns
        from rectools.dataset import Dataset

        day = np.datetime64("2000-01-01", "s") + places.to_numpy().astype("timedelta64[s]")
        table = {
            Columns.User: users.to_numpy(),
            Columns.Item: items.to_numpy(),
            Columns.Weight: 1.0,
            Columns.Datetime: day,
        }
        return Dataset.construct(pd.DataFrame(table))

    def measured(self, name: str) -> dict[str, float]:
        """HR@10 and NDCG@10 on a period, means over users."""
        asked = pl.read_parquet(self.folder / f"{name}.parquet")
        before = pl.read_parquet(self.folder / f"{name}.before.parquet")
        served = before["event"].unique().sort()
        histories = self._dataset(before["event"], before["item"], before["place"])
        known = np.intersect1d(self.facts["catalogue"], self.dataset.item_id_map.external_ids)
        lists = self.model.recommend(
            served.to_numpy(),
            histories,
            k=K,
            filter_viewed=not self.facts["repeats"],
            items_to_recommend=known,
            on_unsupported_targets="ignore",
        )
        found = pl.DataFrame(
            {
                "event": lists["user_id"].to_numpy(),
                "item": lists["item_id"].to_numpy(),
                "rank": lists["rank"].to_numpy(),
            }
        )
        hits = asked.join(found, on=["event", "item"], how="left")
        gain = (1 / (pl.col("rank") + 1).log(2)).fill_null(0.0)
        users = hits.group_by("user").agg(pl.col("rank").is_not_null().mean().alias("hr"), gain.mean().alias("ndcg"))
        without = asked.height - asked.filter(pl.col("event").is_in(served.implode())).height
        return {
            "users": users.height,
            "hr": users["hr"].mean(),
            "ndcg": users["ndcg"].mean(),
            "without history": without,
        }

    def fit(self) -> dict[str, float]:
        """Learn until valid is ranked no better for `patience` looks; the best weights stay."""
        best, looks, kept = (-1.0, 0), 0, None
        for epoch in range(self.options.look, self.options.epochs + 1, self.options.look):
            started = time.process_time()
            self.model.fit_partial(self.dataset, min_epochs=self.options.look, max_epochs=self.options.look)
            values = self.measured("valid")
            print(json.dumps({"epoch": epoch, **values, "seconds": round(time.process_time() - started)}), flush=True)
            if values["ndcg"] > best[0]:
                best, looks = (values["ndcg"], epoch), 0
                kept = copy.deepcopy(self.model.torch_model.state_dict())
            else:
                looks += 1
                if looks >= self.options.patience:
                    break
        self.model.torch_model.load_state_dict(kept)
        return {"epoch": best[1], "valid ndcg": best[0]}


def rank(options: argparse.Namespace) -> None:
    oracle = Oracle(options.given, options)
    made = oracle.fit()
    print(json.dumps({"size": options.size, "seed": options.seed, **made, **oracle.measured("test")}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("write", help="the events of a dataset, as tables")
    part.add_argument("--store", type=Path, required=True)
    part.add_argument("--dataset", default="dataset@1")
    part.add_argument("--to", type=Path, required=True)
    part.set_defaults(run=write)
    part = parts.add_parser("rank", help="learn, and rank every item")
    part.add_argument("--from", dest="given", type=Path, required=True)
    part.add_argument("--size", type=int, default=64)
    part.add_argument(
        "--history", type=int, default=50, help="items of a history that it reads; all are padded to that many"
    )
    part.add_argument("--heads", type=int, default=2)
    part.add_argument("--negatives", type=int, default=256)
    part.add_argument("--dropout", type=float, default=0.2)
    part.add_argument("--learning-rate", type=float, default=1e-3)
    part.add_argument("--epochs", type=int, default=100)
    part.add_argument("--look", type=int, default=2, help="epochs between two looks at valid")
    part.add_argument("--patience", type=int, default=3, help="looks without a better ranking, at most")
    part.add_argument("--threads", type=int, default=1)
    part.add_argument("--seed", type=int, default=0)
    part.set_defaults(run=rank)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
