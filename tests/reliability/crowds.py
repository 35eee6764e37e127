"""Commands at the same time: equal ones compute once, different ones do not disturb each other."""

from world import TRAIN, replaced

from reliability.bench import End
from reliability.campaign import Campaign, Findings
from reliability.scenes import MAKERS, Scene, look, lost
from reliability.stops import promised

#: commands that are typed at once
CROWD = 16


def crowds(campaign: Campaign, count: int, crowd: int = CROWD) -> Findings:
    """Crowds of equal commands and of different ones, in turns."""
    found, equal = Findings(), [campaign.scenes[name] for name in MAKERS if name in campaign.scenes]
    for at in range(count):
        if campaign.late:
            break
        if at % 2 == 0 or "gc" not in campaign.scenes:
            found.add(equal_ones(campaign, equal[at // 2 % len(equal)], crowd))
        else:
            found.add(different_ones(campaign, campaign.scenes["gc"], crowd, at))
    return found


def equal_ones(campaign: Campaign, scene: Scene, crowd: int) -> Findings:
    """One command many times at once: one computes, all print the same id, nothing is made twice."""
    found = Findings()
    store = scene.case(campaign.bench.folder / "case")
    ends = campaign.bench.at_once(store, [scene.words] * crowd, **campaign.job)
    now = look(store)
    problems = [problem for end in ends for problem in unfit(end, (0,))]
    problems += lost(look(scene.before), now)
    if {end.made.get("id") for end in ends} != {scene.end.made.get("id")}:
        problems.append("not all print the same id")
    if sum(end.made.get("reused") is False for end in ends) != 1:
        problems.append(f"{sum(end.made.get('reused') is False for end in ends)} of them computed")
    if sorted(now.ids.values()) != sorted(scene.after.ids.values()):
        problems.append(f"the store has {len(now.ids)} artifacts instead of {len(scene.after.ids)}")
    for problem in dict.fromkeys(problems):
        found.wrong(f"{crowd} times {scene.name} at once: {problem}")
    found.count("crowds")
    found.count("equal commands", crowd)
    return found


def different_ones(campaign: Campaign, scene: Scene, crowd: int, turn: int) -> Findings:
    """Different commands at once, `gc` and `forget` among them: what a command printed is there, or it says why not."""
    found, before = Findings(), look(scene.before)
    store = scene.case(campaign.bench.folder / "case")
    fixed: list[tuple[str, ...]] = [
        ("artifacts", "gc", "--keep=2", "--apply"),
        ("artifacts", "forget", f"u{10 + turn}", "--apply"),
        ("artifacts", "verify"),
        ("artifacts", "list"),
        ("artifacts", "tag", "cloud@2", f"turn-{turn}"),
        ("memory",),
        ("evaluate", "cloud@2", "--threads=1", "--k=5"),
        ("score", "cloud@2", "--user=u3"),
        ("artifacts", "export", "cloud@2", f"--output=turn-{turn}.tar"),
    ]
    own = [("train", *replaced(TRAIN, "--epochs=1"), f"--seed={100 * turn + at}") for at in range(crowd)]
    commands = [(*words, "--json") for words in (fixed + own)[:crowd]]
    ends = campaign.bench.at_once(store, commands, **campaign.job)
    now = look(store)
    # a store that loses what gc and forget take: the artifacts that have a name stay
    forgot = ends[1].code == 0
    for words, end in zip(commands, ends, strict=True):
        # gone under it (3), or named by a number that is gone (2): both are said
        for problem in unfit(end, (0, 2, 3)):
            found.wrong(f"{' '.join(words[:2])} among {crowd}: {problem}")
        if words[0] in ("train", "memory", "evaluate") and not forgot:
            for problem in promised(end, now):
                found.wrong(f"{' '.join(words[:2])} among {crowd}: {problem}")
        found.count("different commands")
        found.count(f"{' '.join(words[:2]) if words[0] == 'artifacts' else words[0]} ended {end.code}")
    for reference, why in now.damaged.items():
        found.wrong(f"{crowd} at once: {reference} is damaged: {why}")
    for name, id in now.names.items():
        if id not in now.ids.values():
            found.wrong(f"{crowd} at once: the name {name} means nothing")
    for name in before.names.keys() - now.names.keys():
        found.wrong(f"{crowd} at once: the name {name} is gone")
    found.count("crowds")
    return found


def unfit(end: End, codes: tuple[int, ...]) -> list[str]:
    """What is wrong with how a command ended."""
    if end.problem:
        return [end.problem]
    return [] if end.code in codes else [f"exit {end.code}: {end.err.strip()[-300:]}"]
