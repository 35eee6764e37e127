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
    "line-end-in-id": "an id contains a line end: its first quote was probably not meant as one (--quote none)",
    "bad-time": "the time is empty or not readable",
    "time-not-integral": "an order number must be a whole number",
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
    "times-as-float": "times with '.0' at their end read as whole numbers",
    "times-with-fraction": "times with a fraction or an exponent read to the microsecond",
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
    "rounded-times": "times like 1.6E+09, which have lost their last digits: events share a moment that did not",
    "binary-values": "values of columns that nobody needs that are binary, not text: left out",
    "unmatched-users": "users of the log without a row in the table of users",
    "unmatched-items": "items of the log without a row in the table of items",
    "repeated-side-rows": "rows of a side table whose id came before: the first row counts",
}

#: Reason of a reject → what to do about it.
REMEDIES: Final = {
    "bad-time": "Times may be written as a number since 1970 (1598895159, 1598895159.5), 20200831, 2020083117, "
    "2020-08-31T17:32:39Z, 2020-08-31 17:32:39+00, 2020-08-31 17, 2020/08/31 17:32, 20200831T173239Z, 31.08.2020 17:32, "
    "08/31/2020 5:32:39 PM, Mon Aug 31 17:32:39 +0000 2020, 31 Aug 2020 17:32 or Aug 31, 2020. Another form is named with "
    "--time-format, e.g. --time-format '%d/%m/%y %H:%M'.",
    "line-end-in-id": "If quotes are letters in this file: --quote none",
}

#: Texts that mean "no id".
EMPTY_IDS: Final = frozenset(("", "NULL", "null", "NA", "N/A", "NaN", "nan", "None", "\\N"))
#: A user with more events is probably a machine.
HEAVY_USER_EVENTS = 1_000_000
