"""What is wrong with a value that pydantic refuses, in certtrain's words and with the value."""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic_core import ErrorDetails

SEPARATOR = "', '"  # between the names that pydantic lists
_OWN = "Value error, "  # what pydantic puts before a message of certtrain's own
LONGEST_SHOWN = 40  # characters of a value that is shown
LONGEST_WORD, LONGEST_TEXT = 80, 1500  # characters of what a file's text may add to a message

# A text of a certain form, by its regular expression.
_PATTERNS = {
    r"^[\w.-]+$": "letters, digits, dots, dashes and underscores",
    r"(?s)^.+\.py:[^\W\d]\w*$": "a file and a name in it, like mine.py:Mine",
    r"^\w+(\.\w+){0,7}$": "a name of letters, digits and underscores, of up to eight parts between dots",
    "^[0-9a-f]{64}$": "a hash of 64 hexadecimal digits",
}
_SAY: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than_equal": lambda context: f"at least {context['ge']}",
    "greater_than": lambda context: f"above {context['gt']}",
    "less_than_equal": lambda context: f"at most {context['le']}",
    "less_than": lambda context: f"below {context['lt']}",
    "literal_error": lambda context: context["expected"],
    "too_short": lambda context: f"a list of at least {context['min_length']}",
    "too_long": lambda context: f"a list of at most {context['max_length']}",
    "string_too_short": lambda context: f"text of at least {_characters(context['min_length'])}",
    "string_too_long": lambda context: f"text of at most {_characters(context['max_length'])}",
    "string_pattern_mismatch": lambda context: _PATTERNS.get(context["pattern"], f"like {context['pattern']}"),
}
_KINDS = {
    "a whole number": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "a number": ("float_type", "float_parsing"),
    "a finite number": ("finite_number",),
    "true or false": ("bool_type", "bool_parsing"),
    "text": ("string_type",),
    "a list, like [1, 2]": ("tuple_type", "list_type"),
    "a section with fields": ("model_type", "model_attributes_type", "dict_type", "mapping_type", "dataclass_type"),
}
_EXPECTED = {kind: words for words, kinds in _KINDS.items() for kind in kinds}


def problem_text(problem: ErrorDetails) -> str:
    """What is wrong with one value; a message of certtrain's own stays as it is."""
    kind, context = problem["type"], problem.get("ctx", {})
    match kind:
        case "missing":
            return "must be given"
        case "extra_forbidden":
            return "there is no such field"
        case "json_invalid":
            return f"is not JSON: {context['error']}"
        case "union_tag_not_found":
            field = context["discriminator"].strip("'")
            return f"must be a section with fields, {field!r} among them, not {shown(problem['input'])}"
        case "union_tag_invalid":
            tag, known = str(context["tag"]), context["expected_tags"]
            return f"{tag!r} is not known; choose from: {known}{suggestion(tag, known[1:-1].split(SEPARATOR))}"
    expected = _SAY[kind](context) if kind in _SAY else _EXPECTED.get(kind)
    if expected is None:
        return problem["msg"].removeprefix(_OWN)
    return f"must be {expected}, not {shown(problem['input'])}"


def _characters(count: int) -> str:
    return "1 character" if count == 1 else f"{count} characters"


def shown(value: Any) -> str:
    """A value as text, shortened if it is long."""
    return _cut(repr(value), LONGEST_SHOWN)


def readable(text: str) -> str:
    """A message in which there may be text from a file that nobody here wrote, cut where it is long.

    Characters that control a terminal are written as Python writes them.
    """
    plain = "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)
    words = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda found: _cut(found[0], LONGEST_WORD), plain)
    return _cut(words, LONGEST_TEXT)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def suggestion(word: str, known: Iterable[str]) -> str:
    """Like "; did you mean 'train.epochs'?", if something that is known is similar; else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
