"""Commands that can be pasted into a terminal, and words from files made harmless where they go."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from vae_lightning.configuration import targets

_PLAIN = re.compile(r"[\w./-]*[A-Za-z/][\w./-]*", re.ASCII)
_OTHER_TYPE = re.compile(r"null|true|false|[+-]?(nan|inf|[\d_.]+(e[+-]?[\d_]+)?)", re.IGNORECASE)


def program(name: str) -> str:
    """Return what to type for a program of this environment: its name if on PATH, else its path."""
    path = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if found and Path(found) == path else os.path.relpath(path)


def override(key: str, value: str | Path) -> str:
    """Return ``key=value``, quoted for Hydra where needed: it reads the value as this very text.

    A path is read as this path: commands expand ``~`` at its start.
    """
    text = str(value)
    if isinstance(value, Path) and text.startswith("~"):
        text = f"./{text}"
    if _PLAIN.fullmatch(text) and not _OTHER_TYPE.fullmatch(text):
        return f"{key}={text}"
    # Hydra's quotes don't keep OmegaConf from looking for references.
    escaped = re.sub(r"(\\*)\$\{", lambda found: r"\\"[0] * (2 * len(found[1]) + 1) + "${", text)
    return f"{key}={QuotedString(escaped, Quote.single).with_quotes()}"


def command(name: str, *arguments: str) -> str:
    """Return a line to paste into a shell that runs one of our commands with some arguments."""
    own = [f"allow=[{','.join(targets.allowed())}]"] if targets.allowed() else []
    words = [program("python"), "-m", f"vae_lightning.{name}", *arguments, *own]
    return " ".join(map(shell_word, words))


def shell_word(text: str) -> str:
    """Return a text quoted for bash, which needs ``$'…'`` for control characters."""
    if text.isprintable():
        return shlex.quote(text)
    plain = text.replace("\\", r"\\").replace("'", r"\'")
    escaped = (
        each if each.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(each))
        for each in plain
    )
    return f"$'{''.join(escaped)}'"


def without_password(text: str) -> str:
    """Return a text without the passwords of the addresses in it."""
    return re.sub(r"(://[^\s:/@]*):\S*@", r"\1:***@", text)


def printable(text: object) -> str:
    """Return a text from a file as one line without control characters, which a terminal obeys."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in str(text))


def printable_lines(text: str) -> str:
    """Return lines, with tabs, without other control characters."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def markdown(text: object) -> str:
    """Return a text from a file as words of a Markdown line or cell: no markup, HTML or links."""
    line = re.sub(r"([\\`*_~\[\]|#!$@])", r"\\\1", printable(text))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Many renderers make links of bare addresses.
    return line.replace("://", "\\://").replace("www.", r"www\.")


def spreadsheet_cell(text: str) -> str:
    """Return a text from a file as a cell that no spreadsheet takes for a formula.

    An apostrophe goes before what would start one, unless the text is a number.
    """
    try:
        float(text)
    except ValueError:
        starts = text.lstrip()[:1] in {*"=+-@＝＋－＠"} or text[:1] in {*"\t\r\n"}
        return f"'{text}" if starts else text
    return text
