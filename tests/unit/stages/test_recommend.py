"""recommend: the lists of many users are those that score shows of each, also with new events, and are made shard by shard."""

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from world import DAY, N_ITEMS, N_USERS, PATCH, START, TRAIN, World, dcclctl, done, ingest, quiet_progress, rows

import dcclctl as public
from dcclctl.artifacts import CloudModel, Dataset, Recommendations
from dcclctl.artifacts.names import describe
from dcclctl.devices.serving import Subject
from dcclctl.errors import DataError, UsageError
from dcclctl.evaluation.lists import Lister
from dcclctl.events.log import TEST
from dcclctl.models.kind import MODELS
from dcclctl.stages.people import people_of
from dcclctl.stages.recommend import recommend
from dcclctl.stages.run import RunOptions
from dcclctl.stages.score import score
from dcclctl.store.store import Store

ONE_THREAD = {"threads": 1}


@pytest.fixture(scope="module", params=["first", "keep"])
def shop_of(
    request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, str]:
    """A store without and with repeats: cloud@1 and patches@1 (metapatch on the tail), and memory patches."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "first":
        world.copy(folder / "store")
    else:
        ingest(folder / "log", folder / "store", "--repeats=keep")
        done("train", *TRAIN, store=folder / "store")
        done("patch", "--users=tail", *PATCH, store=folder / "store")
    done("patch", "--cloud=cloud@1", "--set=epochs=2", "--threads=1", store=folder / "store")
    return Store(folder / "store"), request.param


@pytest.fixture(scope="module")
def own(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world of this file's own: recommend writes into its store."""
    return World(world.copy(tmp_path_factory.mktemp("own") / "store"), world.log, world.ids)


def lists_of(subject: Subject, logs: tuple[Path, ...] = (), **settings: Any) -> pl.DataFrame:
    return recommend(subject, ONE_THREAD | settings, logs=logs).lists


def check_against_score(subject: Subject, found: pl.DataFrame, user_ids: list[str], **settings: Any) -> None:
    """Every list is what score shows of its user."""
    logs = settings.pop("logs", ())
    by_user = {user: table for (user,), table in found.group_by("user_id", maintain_order=True)}
    for shown in score(subject, user_ids, ONE_THREAD | settings, logs=logs):
        (name,) = list(shown.rankings)[-1:]
        ranking = shown.rankings[name]
        table = by_user.get(shown.user_id, found[:0])
        for column in ("rank", "item_id", "name"):
            assert table[column].to_list() == ranking[column].to_list(), shown.user_id
        assert table["score"].to_list() == pytest.approx(ranking["score"].to_list(), abs=1e-5)
        assert set(table["served_by"]) <= {shown.served_by[name]}


RULES = [
    {"exclude": "auto", "as_of": "end"},
    {"exclude": "auto", "as_of": "test"},
    {"exclude": "none", "as_of": "end", "top": 80},
    {"exclude": "seen", "as_of": "end", "top": 80},
]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "-".join(map(str, rules.values())))
@pytest.mark.parametrize("reference", ["cloud@1", "patches@1", "patches@1+mean", "patches@1+shuffled", "patches@2"])
def test_a_list_is_what_score_shows(shop_of: tuple[Store, str], reference: str, rules: dict[str, Any]) -> None:
    store, repeats = shop_of
    subject = Subject.of(reference, store)
    dataset = subject.cloud.dataset
    found = lists_of(subject, **rules)
    user_ids = dataset.users["user_id"].to_list()
    assert found["user_id"].unique(maintain_order=True).to_list() == user_ids
    check_against_score(subject, found, user_ids, **rules)
    past = TEST if rules["as_of"] == "test" else 4
    events = dataset.artifact.read_table("events.parquet").filter((pl.col("period") < past) & (pl.col("label") > 0))
    had = events.join(dataset.users, on="user_index").join(dataset.items, on="item_index")
    again = found.join(had.select("user_id", "item_id").unique(), on=["user_id", "item_id"], how="semi")
    excluded = rules["exclude"] == "seen" or (rules["exclude"] == "auto" and repeats == "first")
    assert again.is_empty() if excluded else again.height > 10
    if rules["exclude"] == "none":
        assert found.height == N_USERS * N_ITEMS


def test_what_the_user_did_not_like_is_seen_too(tmp_path: Path) -> None:
    log, store = tmp_path / "log.csv", Store(tmp_path / "store")
    rated = [(user, item, rating, time) for user, item, time, rating in rows()]
    pl.DataFrame(rated, schema=["user", "item", "rating", "time"], orient="row").write_csv(log)
    done("ingest", log, "--label=rating>=4", store=store.root)
    done("train", "--model=popularity", store=store.root)
    found = lists_of(Subject.of("cloud@1", store), top=80)
    had = pl.DataFrame(rated, schema=["user_id", "item_id", "rating", "time"], orient="row")
    assert had.filter(pl.col("rating") < 4).height > 100
    assert found.height > 100 and found.join(had, on=["user_id", "item_id"], how="semi").is_empty()


@pytest.mark.parametrize("model", [model for model in MODELS if model != "din"])
def test_every_kind_of_model(world: World, tmp_path_factory: pytest.TempPathFactory, model: str) -> None:
    root = world.copy(tmp_path_factory.mktemp(model) / "store")
    ref = done("train", f"--model={model}", "--threads=1", store=root)["ref"]
    subject = Subject.of(ref, Store(root))
    user_ids = subject.cloud.dataset.users["user_id"].to_list()
    check_against_score(subject, lists_of(subject, top=7), user_ids, as_of="end", top=7)
    # and with new events of known and new users
    log = new_log(root.parent / "new.csv", [("u1", "i3", 41), ("brand", "i4", 41), ("brand", "i8", 42)])
    found = lists_of(subject, (log,), top=7)
    assert found["user_id"].unique(maintain_order=True).to_list() == [*user_ids, "brand"]
    check_against_score(subject, found, ["u1", "u2", "n1", "brand"], top=7, logs=(log,))


def test_the_encoder_and_who_served(own: World) -> None:
    subject = Subject.of("cloud@2+encoder", own.store)
    made = recommend(subject, ONE_THREAD)
    profile = own.dataset().users.select(pl.col("^profile_.*$")).to_numpy()
    assert made.facts["served_by"] == {"encoder": int(profile.any(1).sum())}
    check_against_score(subject, made.lists, own.dataset().users["user_id"].to_list(), as_of="end")
    made = recommend(Subject.of("patches@1", own.store), ONE_THREAD)
    kept = own.patches().users.filter("kept").height
    assert made.facts["served_by"] == {"patch": kept, "cloud": N_USERS - kept}


def test_a_memory_that_is_too_small_does_not_serve(shop_of: tuple[Store, str]) -> None:
    store, _ = shop_of
    subject = Subject.of("patches@2", store)
    assert subject.patches is not None
    assert subject.patches.facts["smallest_memory"] >= 1
    for as_of in ("test", "end"):
        found = lists_of(subject, as_of=as_of)
        served = dict(found.select("user_id", "served_by").unique().iter_rows())
        assert {user for user, by in served.items() if by == "cloud"} == (
            {f"n{user}" for user in range(5)} if as_of == "test" else set()
        )


# -- candidates


def test_candidates(own: World, tmp_path: Path) -> None:
    subject = Subject.of("patches@1", own.store)
    file = tmp_path / "in-stock.txt"
    file.write_text("\ufeffi3\ni78\ni9\n\ni3\nnever-heard-of\n")
    # few candidates are scored alone, many with all others
    for count in (4, 30):
        some = tmp_path / f"{count}.txt"
        some.write_text("\n".join(f"i{at}" for at in range(count)))
        settings = {"candidates": f"@{some}", "exclude": "none", "top": 30}
        everything = lists_of(subject, exclude="none", top=N_ITEMS)
        expected = everything.filter(pl.col("item_id").is_in([f"i{at}" for at in range(count)]))
        found = lists_of(subject, **settings)
        assert found.select("user_id", "item_id").equals(expected.select("user_id", "item_id"))
        assert found["score"].to_list() == pytest.approx(expected["score"].to_list(), abs=1e-5)
    made = recommend(subject, ONE_THREAD | {"candidates": f"@{file}", "exclude": "none", "top": 5})
    assert set(made.lists["item_id"]) == {"i3", "i78", "i9"}
    assert (made.facts["candidates"], made.facts["unknown_candidates"], made.facts["short_lists"]) == (3, 1, N_USERS)
    user_ids = own.dataset().users["user_id"].to_list()
    check_against_score(subject, made.lists, user_ids, candidates=f"@{file}", exclude="none", as_of="end", top=5)
    assert str(tmp_path) not in json.dumps(made.artifact.manifest)
    # users who have had all of them get no list
    made = recommend(subject, ONE_THREAD | {"candidates": f"@{file}", "exclude": "seen"})
    check_against_score(subject, made.lists, user_ids, candidates=f"@{file}", exclude="seen", as_of="end")
    events = own.dataset().artifact.read_table("events.parquet").join(own.dataset().items, on="item_index")
    had = events.filter(pl.col("item_id").is_in(["i3", "i78", "i9"])).group_by("user_index").len()
    assert made.facts["users_without_list"] == had.filter(pl.col("len") == 3).height
    assert made.facts["lists"] + made.facts["users_without_list"] == N_USERS


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("--candidates=@{file}", "", "the file is empty"),
        ("--candidates=@{file}", "what\nis-this\n", "dataset@1 has none of its 2 items"),
        ("--candidates=@{file}.not", "", "cannot read"),
        ("--candidates=i3", "", "is not @FILE"),
        ("--users=@{file}", "u1\nnobody\n", "dataset@1 has no user nobody"),
        ("--as-of=test --log={file}", "user_id,item_id,timestamp,rating\n", "gives events after it"),
        ("-o {file}.xlsx", "", "names no format"),
        ("-o {file}.d/top.csv", "", "there is no folder"),
        ("-o {folder}", "", "is a folder"),
    ],
)
def test_refused_before_anything_is_computed(
    own: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, text: str, message: str
) -> None:
    monkeypatch.setattr(Lister, "__init__", lambda *given: pytest.fail("computed"))
    (tmp_path / "given").write_text(text)
    (tmp_path / "folder.csv").mkdir()
    words = flag.format(file=tmp_path / "given", folder=tmp_path / "folder.csv").split()
    result = dcclctl("recommend", "cloud@1", *words, store=own.root)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


# -- an artifact like all others


def test_an_artifact(shop: Path) -> None:
    made = done("recommend", "patches", "--users=tail", "--top=3", "--name=nightly", "--threads=1", store=shop)
    assert made["ref"] == "recommendations@1"
    again = done("recommend", "patches@1", "--users=tail", "--top=3", "--threads=1", store=shop)
    assert (again["ref"], again["reused"]) == ("recommendations@1", True)
    tail = done("recommend", "patches", "--users=tail", "--top=3", "--exclude=seen", "--threads=1", store=shop)
    assert tail["ref"] == "recommendations@1"  # seen is what auto means here
    assert done("recommend", "patches+mean", "--users=tail", "--top=3", "--threads=1", store=shop)["reused"] is False
    listed = dcclctl("artifacts", "list", "--kind=recommendations", store=shop).stdout
    assert "nightly" in listed and "users by metapatch on din+mean" in listed
    assert describe(Store(shop).resolve("recommendations@1")) == f"top 3 of {made['users']} users by metapatch on din"
    assert dcclctl("artifacts", "verify", "recommendations@nightly", store=shop).exit_code == 0
    assert "model: metapatch on din (patches@1" in dcclctl("artifacts", "lineage", "recommendations", store=shop).stdout
    assert "served_by.patch" in dcclctl("artifacts", "show", "recommendations@1", store=shop).stdout
    assert "suffix" in dcclctl("artifacts", "diff", "recommendations@1", "recommendations@2", store=shop).stdout
    assert dcclctl("audit", "recommendations@1", store=shop).exit_code == 0
    found = Recommendations(Store(shop).resolve("recommendations@1"))
    assert found.model.ref == "patches@1"
    assert found.lists.height == made["users"] * 3


def test_an_interrupted_run_continues_with_the_missing_shards(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject.of("patches@1", Store(shop))
    settings = ONE_THREAD | {"shard_users": 16}
    made: list[int] = []
    whole = Lister.lists

    def counted(self: Lister, users: slice, *more: Any) -> pl.DataFrame:
        if made == [0, 16]:
            raise KeyboardInterrupt
        made.append(users.start)
        return whole(self, users, *more)

    monkeypatch.setattr(Lister, "lists", counted)
    with pytest.raises(KeyboardInterrupt):
        recommend(subject, settings)
    assert Store(shop).numbers("recommendations") == []
    monkeypatch.setattr(
        Lister, "lists", lambda self, users, *more: made.append(users.start) or whole(self, users, *more)
    )
    told: list[tuple[float, float]] = []
    found = recommend(subject, settings, RunOptions(lambda what, done, total, note: told.append((done, total))))
    assert made == [0, 16, 32, 48]
    assert told[-1] == (N_USERS, N_USERS) and [done for done, _ in told] == sorted(done for done, _ in told)
    assert found.facts["shards"] == 4
    assert [shard["user_id"].n_unique() for shard in found.shards()] == [16, 16, 16, 12]
    monkeypatch.undo()
    one = recommend(subject, ONE_THREAD)
    assert one.lists.equals(found.lists)
    kept = {name: value for name, value in one.facts.items() if name != "shards"}
    assert kept == {name: value for name, value in found.facts.items() if name != "shards"}


# -- files


NAMES = ['=cmd|"/c calc"!A1', "@sum(1)", "-5", "+1.5", "-x", "a,b", 'say "hi"', "two\nlines", "θ", "\tx", "plain"]


@pytest.fixture(scope="module")
def odd_names(tmp_path_factory: pytest.TempPathFactory) -> Recommendations:
    """Lists of items with names that a spreadsheet or a parser could stumble over."""
    folder = tmp_path_factory.mktemp("odd")
    with (folder / "events.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        for at, (user, item) in enumerate(itertools.product(range(6), range(len(NAMES)))):
            if (user + item) % 3:
                writer.writerow([f"-{user}" if user % 2 else f"=u{user}", f"i{item}", START + at * DAY])
    with (folder / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item_id", "name"), *((f"i{at}", name) for at, name in enumerate(NAMES))])
    done("ingest", folder / "events.csv", "--items", folder / "items.csv", store=folder / "store")
    ref = done("train", "--model=popularity", "--threads=1", store=folder / "store")["ref"]
    return recommend(
        Subject.of(ref, Store(folder / "store")), ONE_THREAD | {"exclude": "none", "shard_users": 2, "top": 20}
    )


def test_files_hold_the_lists(odd_names: Recommendations, tmp_path: Path) -> None:
    lists = odd_names.lists
    assert lists.height == 6 * len(NAMES) and odd_names.facts["shards"] == 3
    assert pl.read_parquet(odd_names.write(tmp_path / "top.parquet")).equals(lists)
    lines = odd_names.write(tmp_path / "top.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == lists.to_dicts()
    with odd_names.write(str(tmp_path / "top.csv")).open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    for row, cells in zip(lists.iter_rows(named=True), read, strict=True):
        for column, value in row.items():
            safe = str(value)
            if isinstance(value, str) and value[0] in "=+-@\t\r" and value not in ("-5", "+1.5", "-1", "-3"):
                safe = f"'{value}"
            assert cells[column] == safe or float(cells[column]) == value
    assert {path.name for path in tmp_path.iterdir()} == {"top.parquet", "top.jsonl", "top.csv"}


def test_a_file_is_replaced_only_by_a_whole_one(
    odd_names: Recommendations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "top.csv"
    target.write_text("yesterday's")

    def broken(self: Recommendations) -> Iterator[pl.DataFrame]:
        yield self.artifact.read_table("lists-00000.parquet")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Recommendations, "shards", broken)
        with pytest.raises(KeyboardInterrupt):
            odd_names.write(target)
    assert target.read_text() == "yesterday's"
    assert list(tmp_path.iterdir()) == [target]
    odd_names.write(target)
    assert target.read_text().startswith("user_id,rank,item_id,name,score,served_by\n")


def test_the_command_writes_and_says_what_it_made(shop: Path, tmp_path: Path) -> None:
    target = tmp_path / "top.csv"
    shown = dcclctl("recommend", "cloud@1", "--users=u1,n2", "--top=4", "-o", target, "--threads=1", store=shop)
    assert shown.exit_code == 0, shown.stderr
    assert "top 4 of 2 users, after each user's last event" in shown.stdout
    assert f"{target}: 8 rows of 2 users" in shown.stdout
    assert len(target.read_text().splitlines()) == 9
    # also when the lists are there already
    target.unlink()
    again = done("recommend", "cloud@1", "--users=u1,n2", "--top=4", "-o", target, "--threads=1", store=shop)
    assert again["reused"] and len(target.read_text().splitlines()) == 9


# -- new events


def new_log(path: Path, events: list[tuple[str, str, int]]) -> Path:
    """(user, item, day) of events that the model was not trained on."""
    lines = [f"{user},{item},{START + day * DAY},5" for user, item, day in events]
    path.write_text("\n".join(["user_id,item_id,timestamp,rating", *lines]) + "\n")
    return path


def ingested(folder: Path, extra: Path, *flags: str) -> Dataset:
    """The dataset of the world's log and another one, ingested together."""
    ingest(folder / "log", folder / "both", *flags)
    done("ingest", folder / "log" / "events.csv", extra, "--users", folder / "log" / "users.csv", "--items",
         folder / "log" / "items.csv", *flags, store=folder / "both")  # fmt: skip
    return Dataset(Store(folder / "both").resolve("dataset@2"))


@pytest.mark.parametrize("repeats", ["first", "keep"])
def test_histories_with_a_new_log_are_those_of_an_ingest_of_both(tmp_path: Path, repeats: str) -> None:
    """Late, repeated, overlapping and simultaneous events too."""
    ingest(tmp_path / "log", tmp_path / "store", f"--repeats={repeats}")
    draw = np.random.default_rng(3)
    events = [
        (f"u{draw.integers(40)}" if draw.random() < 0.8 else f"new{draw.integers(3)}", f"i{draw.integers(76)}", day)
        for day in np.sort(draw.integers(20, 46, 120)).tolist()
    ]
    log = new_log(tmp_path / "today.csv", events)
    overlap = [f"{user},{item},{when},{rating}" for user, item, when, rating in rows()[-30:]]
    log.write_text(log.read_text() + "\n".join(overlap) + "\n")
    both = ingested(tmp_path, log, f"--repeats={repeats}")
    people = people_of(Dataset(Store(tmp_path / "store").resolve("dataset")), [log], quiet_progress)
    assert people.facts["known_events"] == 30 if repeats == "keep" else people.facts["known_events"] > 10
    assert people.facts["new_users"] == 3 and people.users["user_id"].to_list()[-3:] == ["new0", "new1", "new2"]

    def history(dataset_log: Any, users: pl.DataFrame, items: pl.Series) -> dict[str, list[list[str]]]:
        """Each user's baskets of item ids."""
        found: dict[str, list[list[str]]] = {}
        for user in users.iter_rows(named=True):
            mine = dataset_log.events_of(user["user_index"])
            mine = mine[dataset_log.label[mine] > 0]
            baskets = [
                sorted(items[int(item)] for item in dataset_log.item[mine[dataset_log.history_end[mine] == end]])
                for end in np.unique(dataset_log.history_end[mine])
            ]
            found[user["user_id"]] = baskets
        return found

    known = Dataset(Store(tmp_path / "store").resolve("dataset"))
    assert history(people.log, people.users, known.items["item_id"]) == history(
        both.log, both.users, both.items["item_id"]
    )
    assert (np.diff(people.log.user * 4 + people.log.period) >= 0).all()


def test_a_nightly_run(shop_of: tuple[Store, str], tmp_path: Path) -> None:
    """Known users' lists follow from their longer histories; new users are served by the cloud model."""
    store, _ = shop_of
    log = new_log(tmp_path / "today.csv", [("u1", "i40", 41), ("u1", "i44", 42), ("brand-new", "i2", 41)])
    for reference in ("cloud@1", "patches@1", "patches@2"):
        subject = Subject.of(reference, store)
        made = recommend(subject, ONE_THREAD, logs=[log])
        before = lists_of(subject)
        assert made.facts["log"]["added"] == 3 and made.facts["newest_event"].startswith("2020-10-25")
        changed = made.lists.filter(pl.col("user_id") == "u1")
        assert not changed.equals(before.filter(pl.col("user_id") == "u1"))
        rest = made.lists.filter(~pl.col("user_id").is_in(["u1", "brand-new"]))
        assert rest.drop("score").equals(before.filter(pl.col("user_id") != "u1").drop("score"))
        new = made.lists.filter(pl.col("user_id") == "brand-new")
        assert new.height == 10 and set(new["served_by"]) == {"cloud"}
        check_against_score(subject, made.lists, ["u1", "u2", "brand-new"], logs=(log,))
        # and a user's events may be new users' too
        only = lists_of(subject, (log,), users="new")
        assert "brand-new" in set(only["user_id"])
    assert recommend(subject, ONE_THREAD | {"users": "brand-new"}, logs=[log]).facts["users"] == 1


def test_what_a_new_log_holds_is_counted_and_said(shop: Path, tmp_path: Path) -> None:
    log = new_log(tmp_path / "today.csv", [*[("u1", f"i{at}", 41) for at in range(70)], ("u2", "novel", 41)] * 2)
    known = rows()[0]
    log.write_text(log.read_text() + f"{known[0]},{known[1]},{known[2]},5\n" + ",i1,1600000000,5\n")
    shown = dcclctl("recommend", "cloud@1", f"--log={log}", "--threads=1", store=shop)
    assert shown.exit_code == 0, shown.stderr
    had = len({item for user, item, _, _ in rows() if user == "u1" and int(item[1:]) < 70})
    for text in (
        f"new log: 144 rows of {len({'u1', 'u2', known[0]})} known users and 0 new ones; {70 - had} events are new",
        "1 rows rejected: 1 × empty-user",
        "2 rows left out: of 1 items that the model does not know",
        "1 rows left out: events that the dataset has already",
        "70 events left out: duplicates",
        f"{had} events left out: repeats",
    ):
        assert text in shown.stdout, shown.stdout
    rejects = Store(shop).resolve("recommendations").read_table("rejects.parquet")
    assert rejects.select("source", "record", "reason", "raw").rows() == [
        ("today.csv", 144, "empty-user", ",i1,1600000000,5")
    ]
    # as many bad rows as the ingest would refuse
    log.write_text("user_id,item_id,timestamp,rating\n" + ",i1,1600000000,5\n" * 3)
    result = dcclctl("recommend", "cloud@1", f"--log={log}", store=shop)
    assert result.exit_code == 3 and "dataset@1 was ingested with --max-reject 0.01" in result.stderr


def test_a_new_log_of_another_kind(tmp_path: Path) -> None:
    """The dataset's mapping, label and behaviours hold for the new log; so does its kind of time."""
    lines = [f"{user},{item},{at},{kind},{stars}" for at, (user, item, kind, stars) in enumerate(
        itertools.product(("a", "b", "c", "d"), ("x", "y", "z"), ("buy", "view"), (1, 5))
    )]  # fmt: skip
    (tmp_path / "log.csv").write_text("\n".join(["who,what,n,event,stars", *lines]) + "\n")
    flags = ("--map=user=who,item=what,time=n", "--behaviours=buy", "--label=stars>=4")
    done("ingest", tmp_path / "log.csv", *flags, "--time-unit=ordinal", "--split=leave-one-out", "--repeats=keep",
         store=tmp_path / "store")  # fmt: skip
    dataset = Dataset(Store(tmp_path / "store").resolve("dataset"))
    new = tmp_path / "new.csv"
    new.write_text("who,what,n,event,stars\na,x,0,view,5\na,z,1,buy,5\na,y,2,buy,1\ne,x,3,buy,5\n")
    people = people_of(dataset, [new], quiet_progress)
    assert people.facts["other_behaviours"] == 1 and people.facts["added"] == 3
    mine = people.log.events_of(0)
    assert dataset.items["item_id"].gather(people.log.item[mine[-2:]]).to_list() == ["z", "y"]  # after all others
    assert people.log.label[mine[-2:]].tolist() == [1, 0]
    new.write_text("who,what,n,stars,event\na,x,2020-01-01T00:00:00Z,5,buy\n")
    with pytest.raises(DataError):
        people_of(dataset, [new], quiet_progress)
    new.write_text("who,what,n,stars\na,x,0,5\n")
    with pytest.raises(UsageError, match="no behaviour column, and dataset@1 keeps buy only"):
        people_of(dataset, [new], quiet_progress)
    new.write_text("who,what,n,event\na,x,0,buy\n")
    with pytest.raises(UsageError, match="no column 'stars'"):
        people_of(dataset, [new], quiet_progress)


def test_from_python(shop: Path, tmp_path: Path) -> None:
    store = Store(shop)
    cloud = public.CloudModel(CloudModel(store.resolve("cloud@1")).artifact)
    frame = cloud.recommend(users="tail", k=3, threads=1)
    assert frame.columns == ["user_id", "rank", "item_id", "name", "score", "served_by"]
    log = new_log(tmp_path / "today.csv", [("u1", "i40", 41)])
    made = public.recommend(cloud, users="tail", top=3, threads=1, log=log, name="tonight")
    assert isinstance(made, public.Recommendations)
    assert store.resolve("recommendations@tonight").id == made.id != store.resolve("recommendations@1").id
    assert made.write(tmp_path / "top.parquet").exists()
