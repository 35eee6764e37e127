"""What a bundle costs a device and what it is worth when it grows old, as words for the terminal and the page."""

from typing import TYPE_CHECKING

from dcclctl.report.comparison import interval, metric_name, points

if TYPE_CHECKING:
    from dcclctl.devices.bundle.spec import Aged, Measured

#: headings of `age_rows`
AGES = ("blocks old", "events of", "metric", "gain above its cloud model", "change against new patches")


def cost_rows(measured: "Measured") -> list[tuple[str, str]]:
    """What was measured → its figures."""
    rows = [
        ("download", f"{measured.download_bytes:,} bytes, of which {measured.item_bytes:,} for each item"),
        ("kept of the user", f"at most {measured.user_bytes:,} bytes"),
    ]
    for count, spent in measured.milliseconds.items():
        rows.append((f"ranking {count} items", f"{spent.p50:.2f} ms, 95th percentile {spent.p95:.2f} ms"))
    rows.append(("opening the graphs and the first ranking", f"{measured.open_milliseconds:.0f} ms"))
    if measured.learning_step_milliseconds is not None:
        rows.append(("one learning step on 50 rows", f"{measured.learning_step_milliseconds:.2f} ms"))
    if measured.ram_bytes is not None and measured.ram_own_bytes is not None:
        own = f"of which {measured.ram_own_bytes / 1e6:.1f} MB for the bundle"
        rows.append(("memory", f"{measured.ram_bytes / 1e6:.0f} MB with Python and ONNX Runtime, {own}"))
    work = f"{measured.macs / 1e6:.1f} million multiplications and {measured.moved_bytes / 1e6:.1f} MB moved"
    rows.append(("ranking 300 items", f"{work}: about {measured.microjoules:,.0f} µJ (for comparison, not measured)"))
    rows.append(("saving the device's state", f"writes {measured.written_bytes:,} bytes"))
    if measured.uplink_bytes:
        rows.append(("a round", f"sends {measured.uplink_bytes:,} bytes of θ̂"))
    return rows


def age_rows(ages: "list[Aged]") -> list[tuple[str, ...]]:
    """The staleness curve, a row for each age and metric."""
    return [
        (
            str(each.blocks_old) if each.blocks_old else "new",
            each.on,
            metric_name(each.metric),
            f"{points(each.gain)} {interval(each.low, each.high)}".strip(),
            f"{points(each.change)} {interval(each.change_low, each.change_high)}".strip() if each.blocks_old else "",
        )
        for each in ages
    ]
