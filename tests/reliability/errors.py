"""A system that refuses: the nth operation of a class fails with an error number, or the disk is full."""

import errno

from reliability.bench import CLASSES, End, plan
from reliability.campaign import Campaign, Findings, spread
from reliability.scenes import MAKERS, Scene, look
from reliability.stops import again, harmed

#: class of operation → the errors that the system may answer with
ERRORS = {
    "create": (errno.EACCES, errno.EMFILE, errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT),
    "write": (errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EINTR),
    "sync": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR),
    "rename": (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.EROFS),
    "remove": (errno.EACCES, errno.EIO, errno.EROFS),
    "folder": (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO),
    "mode": (errno.EPERM, errno.EIO, errno.EROFS),
    # EACCES would mean that another process holds the lock
    "lock": (errno.ENOLCK, errno.EIO, errno.EINTR),
    "open": (errno.EMFILE, errno.EACCES, errno.EIO, errno.EINTR),
    "read": (errno.EIO, errno.EINTR),
}
#: bytes that still fit on a full disk
BUDGETS = (0, 100, 5_000, 20_000, 60_000)
#: commands that write a file of the user's own: where that cannot be written, another name is the remedy (exit 2)
OUTSIDE = ("archive", "report")
#: Python itself repeats a call that a signal interrupted; a shim that says so once is such a call
ONCE = (errno.EINTR,)


def has_remedy(end: End) -> bool:
    """Does the error on stderr have a line that says what to do?"""
    lines = [line for line in end.err.splitlines() if line.strip()]
    errors = [at for at, line in enumerate(lines) if line.startswith("error: ")]
    return bool(errors) and any(line.startswith("  ") for line in lines[errors[-1] + 1 :])


def one_refused(campaign: Campaign, scene: Scene, faults: dict[str, int]) -> tuple[End, list[str]]:
    """Run a command under one fault, and again without: its end, and what is wrong."""
    before = look(scene.before)
    store = scene.case(campaign.bench.folder / "case")
    end = campaign.bench.run(store, scene.words, plan=faults, **campaign.job)
    now = look(store)
    problems = harmed(scene, before, end, now)
    codes = (0, 2, 3, 5) if scene.name in OUTSIDE else (0, 3, 5)
    if end.code not in codes and not end.problem:
        problems.append(f"exit {end.code}: {end.err.strip()[-300:]}")
    if end.code in (2, 3) and not has_remedy(end):
        problems.append(f"no remedy: {end.err.strip()[-300:]}")
    new = [reference for reference, id in now.ids.items() if id not in before.ids.values()]
    if scene.name in MAKERS and end.code != 0 and new and not any(ref in end.err + end.out for ref in new):
        problems.append(f"{new} is committed, and the error does not name it: {end.err.strip()[-300:]}")
    return end, problems or again(campaign, scene)


def refusals(campaign: Campaign, count: int) -> Findings:
    """Let operations of each class fail with each of its error numbers, once or from then on; then type the command again."""
    found, cases, wanted = Findings(), _refusals(campaign, count), count
    while len(cases) < count and wanted < 4 * count:  # a command has few operations of some classes
        wanted += count // 10 + 1
        cases = _refusals(campaign, wanted)
    for scene, name, at, number, action in campaign.in_time(cases):
        end, problems = one_refused(campaign, scene, plan(action, at, number, CLASSES[name]))
        for problem in problems:
            found.wrong(f"{scene.name}, {name} {at} {action} {errno.errorcode[number]}: {problem}")
        found.count("refusals")
        found.count(f"{errno.errorcode[number]} at {name}")
        found.count(f"in {scene.name}")
        found.count("exit 0 in spite of it" if end.code == 0 else f"exit {end.code}")
    return found


def _refusals(campaign: Campaign, count: int) -> list[tuple[Scene, str, int, int, str]]:
    """About so many cases: command, class, which operation of it, error number, and whether it fails once or from then on."""
    cases: list[tuple[Scene, str, int, int, str]] = []
    for scene, share in campaign.shares(count):
        for place, (name, numbers) in enumerate(ERRORS.items()):
            own = share * (place + 1) // len(ERRORS) - share * place // len(ERRORS)
            for at in spread(scene.end.counts[name], own) if own else []:
                number = numbers[len(cases) % len(numbers)]
                action = "fail" if number in ONCE or len(cases) % 4 < 2 else "fail_on"
                cases.append((scene, name, at, number, action))
    return cases


def full_disks(campaign: Campaign, count: int) -> Findings:
    """Fill the disk after a number of bytes, which the system says beforehand or does not say."""
    found = Findings()
    classes = CLASSES["create"] | CLASSES["write"] | CLASSES["folder"]
    cases = [
        (scene, BUDGETS[at // 2 % len(BUDGETS)], at % 2)
        for scene, share in campaign.shares(count)
        for at in range(share)
    ]
    for scene, budget, said in campaign.in_time(cases):
        faults = plan("full", classes=classes, budget=budget, said=said)
        for problem in one_refused(campaign, scene, faults)[1]:
            found.wrong(f"{scene.name}, {budget} bytes free{', as the system says' if said else ''}: {problem}")
        found.count("full disks")
        found.count(f"in {scene.name}")
    return found
