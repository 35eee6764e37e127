"""Evaluation against a plain loop: one event at a time, one item at a time, in simple Python."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score
from world import DISTILL, EVALUATE, PATCH, TRAIN, World, dcclctl, done, ingest

from dcclctl.devices.serving import serve
from dcclctl.errors import ArtifactError, UsageError
from dcclctl.evaluation import parts
from dcclctl.events.log import TEST
from dcclctl.events.sampling import hashes
from dcclctl.models.kind import open_backbone
from dcclctl.stages import evaluate as stage
from dcclctl.stages.evaluate import open_subjects
from dcclctl.stages.run import RunOptions
from dcclctl.store.store import Store

PERIODS = ("cloud", "device", "valid", "test")


def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, x * slope)


class PlainModel:
    """DIN with an optional patch, from the files of the artifacts alone, in the textbook form and double precision."""

    def __init__(self, store: Store, reference: str) -> None:
        artifact = store.resolve(reference)
        self.patch_of: dict[int, torch.Tensor] = {}
        if artifact.kind == "patches":
            self.basis = {k: v.double() for k, v in artifact.read_tensors("basis.safetensors").items()}
            self.bottleneck = artifact.tensor_metadata("basis.safetensors")["bottleneck"]
            for row in artifact.read_table("users.parquet").to_dicts():
                theta = artifact.read_tensors(f"theta-{row['shard']:05d}.safetensors")["theta"][row["row"]].double()
                self.patch_of[row["user_index"]] = self.basis["origin"] + self.basis["theta"] @ theta
            artifact = store.find("cloud", artifact.inputs["cloud"].id)
        self.weights = {k: v.double() for k, v in artifact.read_tensors("model.safetensors").items()}
        dataset = store.find("dataset", artifact.inputs["dataset"].id)
        self.categories = dataset.read_table("items.parquet")["category_indices"].to_list()
        users = dataset.read_table("users.parquet")
        self.profile = users.select(pl.col("^profile_.*$")).rows()
        self.history = artifact.read_json("model.json")["history"]

    def embedding(self, item: int) -> torch.Tensor:
        table = self.weights["category_table"]
        own = self.categories[item]
        mean = sum((table[code] for code in own), torch.zeros_like(table[0])) / max(len(own), 1)
        return torch.cat([self.weights["item_table"][item], mean])

    def logit(self, user: int, history: list[int], item: int) -> float:
        w = self.weights
        q = self.embedding(item)
        interest = torch.zeros_like(q)
        for past in history:
            k = self.embedding(past)
            units = w["attention_query.weight"] @ q + w["attention_key.weight"] @ k + w["attention_key.bias"]
            units = prelu(units + w["attention_product.weight"] @ (q * k), w["attention_slope"])
            interest = interest + (w["attention_out.weight"][0] @ units + w["attention_out.bias"][0]) * k
        about = [w[f"profile_tables.{column}"][code] for column, code in enumerate(self.profile[user])]
        z = torch.cat([q, interest, q * interest, *about])
        z = prelu(w["hidden_1.weight"] @ z + w["hidden_1.bias"], w["slope_1"])
        patch = self.patch_of.get(user)
        if patch is not None:
            (h1, h2), r = (len(w["slope_1"]), len(w["slope_2"])), self.bottleneck
            down_1, up_1, down_2, up_2, out, bias = torch.split(patch, [r * h1, h1 * r, r * h2, h2 * r, h2, 1])
            z = z + up_1.view(h1, r) @ torch.tanh(down_1.view(r, h1) @ z)
        z = prelu(w["hidden_2.weight"] @ z + w["hidden_2.bias"], w["slope_2"])
        logit = w["out.weight"][0] @ z + w["out.bias"][0]
        if patch is not None:
            z2 = z + up_2.view(h2, r) @ torch.tanh(down_2.view(r, h2) @ z)
            logit = (w["out.weight"][0] + out) @ z2 + w["out.bias"][0] + bias[0]
        return float(logit)


@dataclass
class PlainLog:
    """Events as dictionaries, user by user, oldest first."""

    events: list[dict[str, Any]]
    repeats: str
    observed: bool

    @classmethod
    def of(cls, store: Store) -> "PlainLog":
        dataset = store.resolve("dataset")
        events = dataset.read_table("events.parquet").with_row_index("row").to_dicts()
        return cls(events, dataset.facts["repeats"], dataset.facts["labels"] == "observed")

    def history(self, event: dict[str, Any], limit: int) -> list[int]:
        earlier = [
            other["item_index"]
            for other in self.events
            if other["user_index"] == event["user_index"] and other["label"] and other["time_us"] < event["time_us"]
        ]
        return earlier[-limit:]

    def candidates(self, event: dict[str, Any]) -> list[int]:
        """Items that could be shown beside the event's own: those known by the end of the test period, less the user's.

        The user's are, with repeats, the rest of the basket; else all of the period and what the user had before.
        """
        mine = [other for other in self.events if other["user_index"] == event["user_index"]]
        if self.repeats == "keep":
            theirs = {other["item_index"] for other in mine if other["label"] and other["time_us"] == event["time_us"]}
        else:
            theirs = {
                other["item_index"]
                for other in mine
                if other["period"] < event["period"] or (other["label"] and other["period"] == event["period"])
            }
        return [item for item in sorted({other["item_index"] for other in self.events}) if item not in theirs]

    def drawn(self, event: dict[str, Any], count: int) -> list[int]:
        """The documented draw: item = hash(seed, purpose, round 0, event, slot, attempt) mod catalogue.

        A slot whose item may not be drawn, or stands in an earlier slot, is drawn again. After 50 attempts what is left is
        listed in the order of its hashes.
        """
        catalogue = sorted({other["item_index"] for other in self.events})
        allowed, key = set(self.candidates(event)), event["row"]

        def draw(slot: int, attempt: int) -> int:
            return catalogue[int(hashes(0, "evaluate", 0, key, slot, attempt)) % len(catalogue)]

        found = [draw(slot, 0) for slot in range(count)]
        for attempt in range(1, 51):
            wrong = [slot for slot, item in enumerate(found) if item not in allowed or item in found[:slot]]
            if not wrong:
                return found
            for slot in wrong:
                found[slot] = draw(slot, attempt)
        return sorted(allowed, key=lambda item: int(hashes(0, "evaluate/left", key, 0, item)))[:count]


def plain_metrics(
    model: PlainModel, log: PlainLog, user: int, candidates: str, negatives: int, ks: tuple[int, ...]
) -> dict[str, float | None]:
    """HR, NDCG, MRR, AUC and log loss of one user."""
    rank_of, labels, scores = [], [], []
    for event in log.events:
        if event["user_index"] != user or event["period"] != 3:
            continue
        history = log.history(event, model.history)
        own = model.logit(user, history, event["item_index"])
        labels.append(event["label"])
        scores.append(own)
        wanted = 0 if candidates == "all" else int(candidates)
        sampled = log.drawn(event, max(wanted, negatives))
        if event["label"]:
            others = log.candidates(event) if candidates == "all" else sampled[:wanted]
            logits = [model.logit(user, history, item) for item in others]
            if not logits:
                continue
            rank_of.append(1 + sum(x > own for x in logits) + 0.5 * sum(x == own for x in logits))
        if not log.observed:
            for item in sampled[:negatives]:
                labels.append(0)
                scores.append(model.logit(user, history, item))
    found: dict[str, float | None] = {}
    suffix = "" if candidates == "all" else f"/{candidates}"

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    for k in ks:
        found[f"hr@{k}{suffix}"] = mean([float(rank <= k) for rank in rank_of])
        found[f"ndcg@{k}{suffix}"] = mean([1 / math.log2(1 + rank) if rank <= k else 0.0 for rank in rank_of])
    found[f"mrr{suffix}"] = mean([1 / rank for rank in rank_of])
    found["auc"] = float(roc_auc_score(labels, scores)) if len(set(labels)) == 2 else None
    found["auc, ties"] = ties(labels, scores)
    chances = [1 / (1 + math.exp(-score)) for score in scores]
    found["log_loss"] = mean([-math.log(p if y else 1 - p) for p, y in zip(chances, labels, strict=True)])
    return found


def ties(labels: list[int], scores: list[float]) -> float:
    """By how much AUC may differ if scores that are equal but for rounding stand in one order or the other.

    One item in two events with one history is scored twice, and in a batch sums are rounded as its place has it.
    """
    positive, negative = (np.array(scores)[np.array(labels) == label] for label in (1, 0))
    if not len(positive) or not len(negative):
        return 0.0
    return float((np.abs(positive[:, None] - negative) < 1e-6).mean())


def some_users(table: pl.DataFrame, count: int = 4) -> list[int]:
    """A few users of every group, one without AUC among them if there is one."""
    chosen = [users["user_index"][: count // 2].to_list() for _, users in table.group_by("group", maintain_order=True)]
    one_class = table.filter(pl.col("auc").is_null())["user_index"].to_list()[:1]
    return sorted({user for users in [*chosen, one_class] for user in users})


def compare(store: Path, flags: tuple[str, ...], candidates: str, negatives: int) -> pl.DataFrame:
    """Evaluate cloud@1 and patches@1, and hold some users' figures against the plain loop; returns the table."""
    place = Store(store)
    arguments = ("cloud@1", "patches@1", "--k=3,10", "--threads=1", f"--set=evaluate.auc_negatives={negatives}", *flags)
    made = done("evaluate", *arguments, f"--candidates={candidates}", store=store)
    table = place.resolve(made["ref"]).read_table("per_user.parquet")
    log = PlainLog.of(place)
    for name in table["subject"].unique(maintain_order=True):
        model = PlainModel(place, name)
        mine = table.filter(pl.col("subject") == name)
        for user in some_users(mine):
            row = mine.row(by_predicate=pl.col("user_index") == user, named=True)
            expected = plain_metrics(model, log, user, candidates, negatives, (3, 10))
            slack = {"auc": expected.pop("auc, ties")}
            for metric, value in expected.items():
                near = None if value is None else pytest.approx(value, abs=1e-6 + (slack.get(metric) or 0))
                assert row[metric] == near, (name, user, metric)
    return table


@pytest.mark.parametrize("candidates", ["all", "7"])
def test_plain_loop_first(shop: Path, candidates: str) -> None:
    table = compare(shop, (), candidates, negatives=9)
    cloud, patched = (table.filter(pl.col("subject").str.starts_with(kind)) for kind in ("cloud", "patches"))
    assert not cloud["log_loss"].equals(patched["log_loss"])  # the patches do something


@pytest.fixture(scope="module", params=["keep-implicit", "first-observed", "keep-observed"])
def other_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same log with other readings of repeats and labels."""
    repeats, labels = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    flags = [f"--repeats={repeats}"] + (["--label", "rating>=3"] if labels == "observed" else [])
    ingest(folder / "log", folder / "store", *flags)
    done("train", *TRAIN, store=folder / "store")
    done("patch", *PATCH, store=folder / "store")
    return folder / "store"


@pytest.mark.parametrize("candidates", ["all", "7"])
def test_plain_loop_of_other_readings(other_world: Path, candidates: str) -> None:
    table = compare(other_world, (), candidates, negatives=9)
    log = PlainLog.of(Store(other_world))
    if not log.observed:
        assert table["auc"].null_count() == 0
        return
    # users whose test events have one label: no AUC, never 0.5, and counted
    labels: dict[int, set[int]] = {}
    for event in log.events:
        if event["period"] == 3:
            labels.setdefault(event["user_index"], set()).add(event["label"])
    alone = {user for user, seen in labels.items() if len(seen) == 1}
    assert alone
    assert set(table.filter(pl.col("auc").is_null())["user_index"]) == alone
    evaluation = Store(other_world).resolve("evaluation")
    assert evaluation.facts["users_without_auc"] == len(alone)
    gauc = evaluation.read_table("aggregate.parquet").filter((pl.col("metric") == "gauc") & (pl.col("group") == "all"))
    assert gauc["users"].to_list() == [len(labels) - len(alone)] * 2
    # a user without a positive has no rank, but has an AUC row and a log loss
    unlucky = {user for user, seen in labels.items() if seen == {0}}
    ranks = table.filter(pl.col("user_index").is_in(list(unlucky)))
    assert ranks[next(name for name in table.columns if name.startswith("mrr"))].null_count() == len(ranks)
    shown = dcclctl("evaluate", "cloud@1", "patches@1", *EVALUATE, store=other_world).stdout
    assert f"{len(alone)} users have events of one label only, therefore no AUC" in shown


def metric_values(store: Path, *flags: str) -> dict[tuple[str, str, str], float | None]:
    found = done("evaluate", *EVALUATE, *flags, store=store)
    table = Store(store).resolve(found["ref"]).read_table("aggregate.parquet")
    return {(row["subject"], row["group"], row["metric"]): row["value"] for row in table.to_dicts()}


@pytest.mark.parametrize(
    "flags", [("--set=evaluate.batch_events=1",), ("--set=evaluate.batch_events=7",), ("--threads=2",)]
)
@pytest.mark.parametrize("candidates", ["all", "20"])
def test_batches_and_threads_change_nothing(shop: Path, candidates: str, flags: tuple[str, ...]) -> None:
    usual = metric_values(shop, f"--candidates={candidates}")
    other = metric_values(shop, f"--candidates={candidates}", *flags)
    assert usual.keys() == other.keys()
    for key, value in usual.items():
        assert other[key] == (None if value is None else pytest.approx(value, abs=1e-6)), key


def test_every_subject_gets_the_same_candidates(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over another cloud model, whose batches may be cut elsewhere."""
    seen: dict[int, list[list[int]]] = {}
    original = parts.score

    def watching(*arguments: Any) -> Iterator[Any]:
        for batch, logits in original(*arguments):
            for event, items in zip(batch.events, batch.items.tolist(), strict=True):
                seen.setdefault(int(event), []).append(items)
            yield batch, logits

    monkeypatch.setattr(parts, "score", watching)
    done("evaluate", "cloud@1", "patches@1", "cloud@2", "--candidates=12", *EVALUATE, store=shop)
    assert len(seen) == Store(shop).resolve("evaluation").facts["events"]
    for drawn in seen.values():
        assert len(drawn) == 2  # once for cloud@1 with its patches, once for cloud@2
        assert drawn[0] == drawn[1]


def test_another_seed_draws_other_candidates(shop: Path) -> None:
    first, second = (metric_values(shop, "--candidates=12", f"--seed={seed}") for seed in (0, 1))
    assert first != second


def test_users_without_a_patch_are_counted(world: World, shop: Path) -> None:
    done("patch", "--method=metapatch", "--users=u1,u2,u3", "--cloud=cloud@2", "--threads=1", store=shop)
    place = Store(shop)
    by = {}
    for unpatched in ("cloud", "encoder"):
        done("evaluate", "patches@2", "cloud@2", f"--unpatched={unpatched}", *EVALUATE, store=shop)
        evaluation = place.resolve("evaluation")
        table = evaluation.read_table("per_user.parquet")
        subjects = table["subject"].unique(maintain_order=True).to_list()
        patched = table.filter(pl.col("subject") == subjects[0])
        counts = dict(patched["served_by"].value_counts().iter_rows())
        assert set(counts) == {"patch", unpatched}
        assert sum(counts.values()) == evaluation.facts["users"]
        assert set(patched.filter(pl.col("served_by") == "patch")["user_id"]) <= {"u1", "u2", "u3"}
        assert evaluation.facts["subjects"][subjects[0]]["served_by"] == counts
        by[unpatched] = {
            row["user_id"]: row["log_loss"] for row in patched.filter(pl.col("served_by") != "patch").to_dicts()
        }
        cloud = {r["user_id"]: r["log_loss"] for r in table.filter(pl.col("subject") == subjects[1]).to_dicts()}
        same = [by[unpatched][user] == cloud[user] for user in by[unpatched]]
        # the cloud model to the last bit, or U(0, u)'s patch
        assert all(same) if unpatched == "cloud" else not any(same)


def test_everybody_by_the_encoder(shop: Path) -> None:
    made = done("evaluate", "cloud@2", "cloud@2+encoder", *EVALUATE, store=shop)
    assert made["subjects"] == ["cloud@2", "cloud@2+encoder"]
    table = Store(shop).resolve("evaluation").read_table("per_user.parquet")
    assert table["served_by"].unique(maintain_order=True).to_list() == ["cloud", "encoder"]
    halves = table.partition_by("subject", maintain_order=True)
    assert not halves[0]["log_loss"].equals(halves[1]["log_loss"])


def test_who_says_nothing_is_served_and_counted_by_the_cloud_model(shop: Path) -> None:
    subject = open_subjects(["cloud@2+encoder"], Store(shop))[0]
    log = subject.cloud.dataset.log
    log.profile[::2] = 0
    backbone = open_backbone(subject.cloud, torch.device("cpu"))
    served = serve(subject, backbone)
    assert set(served.by[::2]) == {"cloud"} and set(served.by[1::2]) == {"encoder"}
    events = log.events_in(TEST)
    candidates = torch.arange(5).expand(len(events), -1)
    with torch.no_grad():
        z1 = backbone.activations(events, candidates)
        found, plain = (one(events, candidates, z1) for one in (served.head, backbone.head))
    silent = torch.from_numpy(log.user[events] % 2 == 0)
    torch.testing.assert_close(found[silent], plain[silent], atol=1e-6, rtol=0)
    assert not torch.isclose(found[~silent], plain[~silent], atol=1e-6, rtol=0).all(1).any()


def test_an_encoder_that_is_not_there(world: World) -> None:
    for arguments in (["cloud@1+encoder"], ["patches@1", "--unpatched=encoder"]):
        result = dcclctl("evaluate", *arguments, store=world.root)
        assert result.exit_code == 2
        assert "cloud@1 has no encoder U yet" in result.stderr and "dcclctl distill" in result.stderr


def test_new_users_and_unseen_items_are_scored(world: World) -> None:
    evaluation = world.artifact("evaluation@1")
    table = evaluation.read_table("per_user.parquet").filter(pl.col("subject").str.starts_with("patches"))
    new = table.filter(pl.col("group") == "new")
    assert set(new["user_id"]) == {f"n{user}" for user in range(5)}
    assert new["served_by"].unique().to_list() == ["cloud"]
    assert new["mrr"].null_count() == 0
    aggregate = evaluation.read_table("aggregate.parquet")
    row = aggregate.filter((pl.col("group") == "new") & (pl.col("metric") == "mrr"))
    assert row["users"].to_list() == [5, 5, 5]
    shown = dcclctl("evaluate", *EVALUATE, store=world.root).stdout
    assert [line for line in shown.splitlines() if line.startswith("new, users")]
    # items that nobody had before the test period are scored like all others, and ranked
    events = world.dataset().artifact.read_table("events.parquet")
    before = set(events.filter(pl.col("period") < 3)["item_index"])
    unseen = events.filter((pl.col("period") == 3) & ~pl.col("item_index").is_in(list(before)))
    assert len(unseen) > 0
    assert evaluation.facts["events"] == events.filter(pl.col("period") == 3).height


def test_aggregates_are_means_of_the_table(world: World) -> None:
    evaluation = world.artifact("evaluation@1")
    table, aggregate = (evaluation.read_table(f"{name}.parquet") for name in ("per_user", "aggregate"))
    groups = {
        "all": pl.lit(True),
        "head": pl.col("group") == "head",
        "tail": pl.col("group") == "tail",
        "activity-00": pl.col("activity_group") == 0,
        "activity-19": pl.col("activity_group") == 19,
    }
    for subject in table["subject"].unique(maintain_order=True):
        for group, members in groups.items():
            for metric, column in (("ndcg@10", "ndcg@10"), ("gauc", "auc")):
                values = table.filter((pl.col("subject") == subject) & members)[column].drop_nulls().to_list()
                row = aggregate.row(
                    by_predicate=(pl.col("subject") == subject)
                    & (pl.col("group") == group)
                    & (pl.col("metric") == metric),
                    named=True,
                )
                assert row["users"] == len(values)
                assert row["value"] == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_patches_of_nothing_are_the_cloud_model(shop: Path) -> None:
    """Nothing held back proves nothing, so the guard switches every patch off: θ̂ = 0 is f to the last bit."""
    made = done("patch", "--cloud=cloud@1", "--guard", "--held-back=0", *PATCH, store=shop)
    assert made["kept"] == 0
    done("evaluate", "cloud@1", made["ref"], *EVALUATE, store=shop)
    evaluation = Store(shop).resolve("evaluation")
    table = evaluation.read_table("per_user.parquet")
    cloud, patched = (part.drop("subject") for part in table.partition_by("subject", maintain_order=True))
    assert cloud.equals(patched)


def test_two_datasets_do_not_stand_side_by_side(shop: Path, tmp_path: Path) -> None:
    ingest(tmp_path / "log", shop, "--repeats=keep")
    done("train", *TRAIN, "--epochs=1", store=shop)
    result = dcclctl("evaluate", "cloud@1", "cloud@3", store=shop)
    assert result.exit_code == 3
    for name in ("cloud@1", "cloud@3", "dataset@1", "dataset@2"):
        assert name in result.stderr
    with pytest.raises(ArtifactError, match="different datasets"):
        stage.evaluate(open_subjects(["cloud@3", "patches@1"], Store(shop)))


def test_what_cannot_be_evaluated(world: World) -> None:
    for references, message in [
        (["cloud@1", "cloud@1"], "named twice"),
        (["dataset@1"], "cannot serve users"),
        (["patches@1+encoder"], "cannot serve users"),
        (["evaluation@1"], "cannot serve users"),
    ]:
        with pytest.raises(UsageError, match=message):
            stage.evaluate(open_subjects(references, world.store))
    with pytest.raises(UsageError, match="nothing to evaluate"):
        stage.evaluate([])


def test_one_period_or_part_of_it(shop: Path) -> None:
    events = Store(shop).resolve("dataset").read_table("events.parquet")
    for on, period in (("valid", 2), ("test", 3), ("device", 1)):
        made = done("evaluate", "cloud@1", f"--on={on}", *EVALUATE, store=shop)
        assert made["events"] == events.filter(pl.col("period") == period).height
    parts = [done("evaluate", "cloud@1", f"--on=device:{part}/2", *EVALUATE, store=shop) for part in (1, 2)]
    assert [part["events"] for part in parts] != [made["events"]] * 2
    assert sum(part["events"] for part in parts) == made["events"]


def test_more_candidates_than_items_ranks_all(shop: Path) -> None:
    assert done("evaluate", "cloud@1", "--candidates=5000", *EVALUATE, store=shop)["candidates"] == "all"
    assert done("evaluate", "cloud@1", "--candidates=79", *EVALUATE, store=shop)["candidates"] == 79


def test_sampled_columns_say_so(shop: Path) -> None:
    made = done("evaluate", "cloud@1", "--candidates=12", *EVALUATE, store=shop)
    names = {row["metric"] for row in made["metrics"]}
    assert names == {"hr@3/12", "hr@10/12", "ndcg@3/12", "ndcg@10/12", "mrr/12", "gauc", "log_loss"}
    shown = dcclctl("evaluate", "cloud@1", "--candidates=12", *EVALUATE, store=shop).stdout
    # HR@3, HR@10, NDCG@10 and MRR; not GAUC and log loss beside them
    heading = next(line for line in shown.splitlines() if "group" in line and "GAUC" in line)
    assert heading.count("sampled") == 4 and "12 sampled items" in shown


def test_cutoffs_are_sorted_and_distinct(shop: Path) -> None:
    one = done("evaluate", "cloud@1", "--k=10,3,10", "--threads=1", store=shop)
    two = done("evaluate", "cloud@1", "--k=3,10", "--threads=1", store=shop)
    assert one["id"] == two["id"] and two["reused"]


def test_progress_reaches_the_end(shop: Path) -> None:
    calls: list[tuple[str, float, float, str]] = []
    subjects = open_subjects(["cloud@1", "cloud@2"], Store(shop))
    stage.evaluate(subjects, {"threads": 1, "seed": 5}, RunOptions(lambda *call: calls.append(call)))
    scored = [call for call in calls if call[0] == "evaluate"]
    done_so_far = [call[1] for call in scored]
    assert done_so_far == sorted(done_so_far)
    assert scored[-1][1] == scored[-1][2]


def test_references_of_every_form(world: World) -> None:
    for reference in ("patches", "patches@latest", "patches@1", f"patches@{world.ids['patch'][:8]}"):
        (subject,) = open_subjects([reference], world.store)
        assert (subject.artifact.id, subject.cloud.artifact.id) == (world.ids["patch"], world.ids["train"])


def test_the_manifest_names_ids_only(world: World) -> None:
    text = json.dumps(world.artifact("evaluation@1").manifest)
    assert not re.search(r"(cloud|patches)@(latest|\d{1,6}\b)", text)


def test_beyond_accuracy(world: World) -> None:
    facts = world.artifact("evaluation@1").facts["subjects"]
    for about in facts.values():
        assert 0 < about["coverage"] <= 1 and 0 <= about["gini"] <= 1 and about["novelty"] > 0
        assert 0 <= about["ece"] <= 1
    assert np.isfinite([about["novelty"] for about in facts.values()]).all()


def test_distilled_twice_serves_by_the_newer_encoder(shop: Path) -> None:
    done("patch", "--method=metapatch", "--cloud=cloud@2", "--threads=1", store=shop)
    made = done("distill", *DISTILL, store=shop)
    assert made["round"] == 2
    assert done("evaluate", f"{made['ref']}+encoder", *EVALUATE, store=shop)["users"] == 47


def test_users_of_a_mean(tmp_path: Path) -> None:
    """Users without a positive event are in no HR, NDCG or MRR: the table counts them for log loss only, and a line says so."""
    store, log = tmp_path / "store", tmp_path / "log.csv"
    draw = np.random.default_rng(0)
    rows = [
        f"{user},{draw.integers(40)},{1 + 4 * (user % 3 > 0)},{1_600_000_000 + at * 90}"
        for at in range(60)
        for user in range(12)
    ]
    log.write_text("\n".join(["user_id,item_id,rating,timestamp", *rows]) + "\n")
    done("ingest", log, "--label", "rating>=5", "--repeats=keep", store=store)
    done("train", "--model=popularity", "--threads=1", store=store)
    told = done("evaluate", "cloud@1", "--threads=1", store=store)
    users = {row["metric"]: row["users"] for row in told["metrics"] if row["group"] == "all"}
    assert (users["hr@10"], users["log_loss"], users["gauc"]) == (8, 12, 0)
    shown = dcclctl("evaluate", "cloud@1", "--threads=1", store=store).stdout
    [line] = [line for line in shown.splitlines() if line.startswith("all, users")]
    assert line.split()[2:] == ["8"] * 5 + ["0", "12"]
    assert "4 users have no positive event that can be ranked, therefore no HR, NDCG and MRR" in shown
    assert "test of log.csv, 2020-09-13 to 2020-09-13 (dataset@1): " in shown
