"""Why a row is rejected, and what is reported about kept rows. Each text is for people."""

from typing import Final

#: Reason of a reject → its explanation.
REASONS: Final = {
    "unclosed-quote": "a quote is opened and never closed",
    "stray-quote": "a quote stands inside a field",
    "mixed-delimiters": "the record uses another delimiter than the file",
    "missing-fields": "the record has too few fields",
    "extra-fields": "the record has too many fields",
    "cut-last-row": "the file ends in the middle of this record",
    "field-too-long": "a field is longer than 64 KiB",
    "broken-json": "the line is not one JSON object",
    "nan-literal": "NaN or Infinity is not JSON",
    "duplicate-keys": "an object has one key twice",
    "too-deep": "objects are nested more than 64 deep",
    "lone-surrogate": "the text contains half of a surrogate pair, which is not a character",
    "nested-value": "a needed value is an object or a list",
    "empty-user": "the user id is empty, NULL or NA",
    "empty-item": "the item id is empty, NULL or NA",
    "nul-in-id": "an id contains a NUL character",
    "bad-time": "the time is empty or not readable",
    "time-not-integral": "a number of seconds (ms, …) must be a whole number written without exponent",
    "time-not-positive": "the time is zero or negative",
    "time-in-future": "the time is more than a day after --now",
    "time-does-not-exist": "the local time was skipped by a clock change",
    "bad-label": "the label is empty or not a number",
    "label-not-finite": "the label is NaN or infinite",
}

#: What is mended without losing a row → its explanation; counted by row or file.
NORMALISED: Final = {
    "byte-order-mark": "byte order marks removed",
    "blank-lines": "blank lines skipped",
    "mixed-types": "values of another type than the column's first read as text",
    "padded-ids": "ids with spaces around them trimmed",
    "ids-as-int": "ids like '123.0' turned into '123' (--ids int)",
    "times-as-float": "times like '881250949.0' read as whole numbers",
    "labels-true-false": "labels true/false read as 1/0",
}

#: What looks odd in kept rows → its explanation; counted.
WARNINGS: Final = {
    "padded-ids": "ids with spaces around them: trimmed; check that ' a' and 'a' are the same user or item",
    "lookalike-ids": "ids that differ only in their Unicode form (NFC/NFD): kept as different",
    "late-columns": "columns that first appear late in a JSON-lines file",
    "label-conflicts": "events with several labels: one was kept (--label-conflicts)",
    "labels-all-equal": "all labels are equal: AUC will be null, not 0.5",
    "heavy-users": "users with a million events or more (--max-user-events caps them)",
    "ids-over-2^53": "ids in a floating-point column beyond 2^53: neighbours may already be merged",
    "repeated-side-rows": "rows of a side table whose id came before: the first row counts",
}

#: Texts that mean "no id".
EMPTY_IDS: Final = frozenset(("", "NULL", "null", "NA", "N/A", "NaN", "nan", "None", "\\N"))
#: A user with more events is probably a machine.
HEAVY_USER_EVENTS = 1_000_000
