"""A command that is stopped: killed before an operation on a file, torn in the middle of a write, or sent a signal."""

import signal

from reliability.bench import CHANGES, CLASSES, End, plan
from reliability.campaign import Campaign, Findings, spread
from reliability.scenes import DELETERS, MAKERS, Scene, State, look, lost

#: what a user's Ctrl-C and a scheduler send
SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: operations at which signals come: all that change something, and opening
WHEN_SIGNALLED = CHANGES | CLASSES["open"]


def deletable(scene: Scene, before: State) -> list[str]:
    """References that the command takes away when nothing happens to it."""
    return [reference for reference, id in before.ids.items() if scene.after.ids.get(reference) != id]


def promised(end: End, now: State) -> list[str]:
    """A reference that was printed is in the store."""
    ref, id = end.made.get("ref"), end.made.get("id")
    return [f"printed {ref}, which is not there"] if ref and "@" in str(ref) and id not in now.ids.values() else []


def harmed(scene: Scene, before: State, end: End, now: State) -> list[str]:
    """What a fault broke, before the command is typed again."""
    problems = [end.problem] if end.problem else []
    return problems + lost(before, now, deletable(scene, before)) + promised(end, now)


def again(campaign: Campaign, scene: Scene) -> list[str]:
    """Type the command again after a fault, in the same store: what is wrong then."""
    store = campaign.bench.folder / "case" / "store"
    end = campaign.bench.run(store, scene.words, **campaign.job)
    if end.problem:
        return [f"typed again: {end.problem}"]
    # what the first call deleted, the second cannot find
    if end.code != 0 and not (scene.name in DELETERS and end.code == 2):
        return [f"typed again: exit {end.code}: {end.err.strip()[-300:]}"]
    now = look(store)
    problems = lost(State(), now)
    if scene.name in MAKERS and end.made.get("id") != scene.end.made["id"]:
        problems.append("another id")
    wanted, found = set(scene.after.ids.values()), set(now.ids.values())
    if found != wanted:
        problems.append(f"{len(found - wanted)} artifacts too many and {len(wanted - found)} too few")
    if not set(scene.after.names) <= set(now.names):
        problems.append("a name is missing")
    return [f"typed again: {each}" for each in problems]


def stopped(campaign: Campaign, scene: Scene, at: int, action: str, value: int = 0) -> Findings:
    """Stop a command at an operation, look at the store, and type it again."""
    found, before = Findings(), look(scene.before)
    how = signal.Signals(value).name if action == "signal" else action
    classes = WHEN_SIGNALLED if action == "signal" else CHANGES
    store = scene.case(campaign.bench.folder / "case")
    end = campaign.bench.run(store, scene.words, plan=plan(action, at, value, classes), **campaign.job)
    problems = harmed(scene, before, end, look(store))
    if action == "signal" and end.code not in (0, 128 + value):
        problems.append(f"exit {end.code}: {end.err.strip()[-300:]}")
    elif action == "signal" and end.code and "continues where it stopped" not in end.err:
        problems.append(f"says nothing: {end.err[-200:]!r}")
    elif action != "signal" and end.code != -signal.SIGKILL:
        problems.append(f"was not killed: exit {end.code}")
    for problem in problems or again(campaign, scene):
        found.wrong(f"{scene.name}, {how} at operation {at} ({end.hit}): {problem}")
    found.count(f"{how} at {end.hit}")
    found.count(f"in {scene.name}")
    return found


def kills(campaign: Campaign, count: int) -> Findings:
    """Kill every command at operations spread over all of its operations, every fourth time in the middle of a write."""
    found = Findings()
    cases = [(scene, at) for scene, share in campaign.shares(count) for at in spread(scene.end.count, share)]
    for scene, at in campaign.in_time(cases):
        found.add(stopped(campaign, scene, at, "kill" if at % 4 else "tear"))
        found.count("kills")
    found.count("operations of all commands", sum(scene.end.count for scene in campaign.scenes.values()))
    return found


def signals(campaign: Campaign, count: int) -> Findings:
    """Send SIGINT and SIGTERM, in turns, at operations spread over all of a command."""
    found = Findings()
    cases = [
        (scene, at, SIGNALS[turn % len(SIGNALS)])
        for scene, share in campaign.shares(count)
        for turn, at in enumerate(spread(scene.end.count + scene.end.counts["open"], share))
    ]
    for scene, at, number in campaign.in_time(cases):
        found.add(stopped(campaign, scene, at, "signal", number))
        found.count("signals")
    return found
