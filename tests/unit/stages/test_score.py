"""score: users explained, with the figures that evaluate has."""

from pathlib import Path

import polars as pl
import pytest
from test_evaluate import PlainLog, PlainModel
from world import World, dcclctl, done, ingest

from dcclctl.devices.serving import Subject
from dcclctl.errors import UsageError
from dcclctl.stages.score import score
from dcclctl.store.store import Store

ONE_THREAD = {"threads": 1}


@pytest.mark.parametrize("user_id", ["u1", "u8", "n2"])
def test_rankings_against_the_plain_model(world: World, user_id: str) -> None:
    (found,) = score(Subject.of("patches@1", world.store), [user_id], ONE_THREAD | {"top": 8})
    log = PlainLog.of(world.store)
    users, items = world.dataset().users, world.dataset().items
    user = users.row(by_predicate=pl.col("user_id") == user_id, named=True)
    mine = [event for event in log.events if event["user_index"] == user["user_index"]]
    past = [event for event in mine if event["period"] < 3]
    history = [event["item_index"] for event in past]
    seen = set(history)
    assert (found.group, found.events) == (user["group"], len(past))
    assert found.history["item_id"].to_list() == [items["item_id"][item] for item in history[::-1][:8]]
    assert found.test_items == [items["item_id"][event["item_index"]] for event in mine if event["period"] == 3]
    for name, reference in (("cloud", "cloud@1"), ("patched", "patches@1")):
        model = PlainModel(world.store, reference)
        logits = {item: model.logit(user["user_index"], history[-8:], item) for item in range(80)}
        best = sorted(set(logits) - seen, key=lambda item: -logits[item])[:8]
        ranking = found.rankings[name]
        assert ranking["item_id"].to_list() == [items["item_id"][item] for item in best]
        assert ranking["score"].to_list() == pytest.approx([logits[item] for item in best], abs=1e-5)
        assert ranking["rank"].to_list() == list(range(1, 9))
    if user["group"] != "tail":
        assert found.served_by["patched"] == "cloud"
        assert found.rankings["patched"].equals(found.rankings["cloud"])
    cloud_rank = dict(found.rankings["cloud"].select("item_id", "rank").iter_rows())
    for row in found.rankings["patched"].to_dicts():
        if row["item_id"] in cloud_rank:
            assert row["cloud_rank"] == cloud_rank[row["item_id"]]


def test_repeated_items_stay_in_a_log_that_keeps_them(tmp_path: Path) -> None:
    ingest(tmp_path / "log", tmp_path, "--repeats=keep")
    done("train", "--epochs=1", "--threads=1", store=tmp_path)
    (found,) = score(Subject.of("cloud", Store(tmp_path)), ["u1"], ONE_THREAD | {"top": 80})
    assert found.rankings["cloud"].height == 80
    assert list(found.rankings) == ["cloud"]


def test_marks_in_the_table(world: World) -> None:
    for user in ("u1", "u2", "u4", "u5", "u6", "u8", "n0"):
        shown = dcclctl("score", "patches@1", f"--user={user}", "--top=80", store=world.root)
        (found,) = done("score", "patches@1", f"--user={user}", "--top=80", store=world.root)["users"]
        taken = set(found["test_items"])
        assert shown.stdout.count("✓") == 2 * len(taken)
        for row in found["rankings"]["patched"]:
            moved = row["cloud_rank"] - row["rank"]
            line = next(line for line in shown.stdout.splitlines() if line.startswith(f"│ {row['rank']:4} "))
            cell = line.split("│")[3].strip()
            arrow = "" if moved == 0 else f"  {'▲' if moved > 0 else '▼'}{abs(moved)}"
            assert cell == f"Thing {row['item_id'][1:]} ({row['item_id']}){arrow}" + (
                "  ✓" if row["item_id"] in taken else ""
            )
    assert "▲" in shown.stdout or "▼" in shown.stdout or found["served_by"]["patched"] == "cloud"


def test_json(world: World) -> None:
    found = done("score", "patches", "--user=u1", "--top=3", store=world.root)
    assert (found["ref"], found["id"], found["reused"]) == ("patches@1", world.ids["patch"], False)
    (user,) = found["users"]
    assert user["served_by"] == {"cloud": "cloud", "patched": "patch"}
    assert [len(rows) for rows in user["rankings"].values()] == [3, 3]


def test_encoder(world: World) -> None:
    found = done("score", "cloud@2+encoder", "--user=n1", store=world.root)
    assert found["users"][0]["served_by"]["patched"] == "encoder"


@pytest.mark.parametrize("flags", [["cloud@1+encoder"], ["patches@1", "--unpatched=encoder"]])
def test_an_encoder_that_is_not_there(world: World, flags: list[str]) -> None:
    result = dcclctl("score", *flags, "--user=n1", store=world.root)
    assert result.exit_code == 2
    assert "cloud@1 has no encoder U yet" in result.stderr


def test_settings_from_the_file(world: World, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('[score]\nunpatched = "encoder"\n')
    flags = ("score", "patches", "--user=n1", "--config", tmp_path / "settings.toml")
    assert "has no encoder" in dcclctl(*flags, store=world.root).stderr
    assert done(*flags, "--unpatched=cloud", store=world.root)["users"][0]["served_by"]["patched"] == "cloud"


def test_items_without_a_name(tmp_path: Path, world: World) -> None:
    done("ingest", world.log, store=tmp_path)
    done("train", "--epochs=1", "--threads=1", store=tmp_path)
    shown = dcclctl("score", "cloud", "--user=u1", "--top=80", store=tmp_path).stdout
    assert "│ i76 " in shown and "None" not in shown


def test_unknown_user(world: World) -> None:
    with pytest.raises(UsageError, match="dataset@1 has no user 'nobody'") as error:
        score(Subject.of("cloud@1", world.store), ["u1", "nobody"], ONE_THREAD)
    assert error.value.remedy.startswith(f"Its users are {world.dataset().users['user_id'][0]}, ")
    assert dcclctl("score", "cloud@1", "--user=nobody", store=world.root).exit_code == 2


def test_every_user_that_is_asked_for_is_shown(world: World) -> None:
    shown = dcclctl("score", "patches@1", "--user=u8", "--user=n2", "--user=u8", "--top=3", store=world.root).stdout
    assert [line.split(":")[0] for line in shown.splitlines() if line.startswith("user ")] == ["user u8", "user n2"]
    both = done("score", "patches@1", "--user=u8", "--user=n2", "--top=3", store=world.root)["users"]
    alone = [
        done("score", "patches@1", f"--user={user}", "--top=3", store=world.root)["users"] for user in ("u8", "n2")
    ]
    assert [[user] for user in both] == alone
