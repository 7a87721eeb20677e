"""Remove user names, passwords and keys from URLs."""

import re

_SPACE_OR_QUOTE = "[^\\s'\"<>]"
_CREDENTIALS = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*://){_SPACE_OR_QUOTE}*@")
_QUERY = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>?]*)\?{_SPACE_OR_QUOTE}+")


def redacted(text: str) -> str:
    """`text` with the credentials of every URL in it replaced by `***`.

    Args:
        text: A URL, or a message or traceback that may contain some. Everything between `://` and the last `@` of a URL
            is removed, because keys may contain any character, and so is everything after a `?`.
    """
    if "://" not in text:
        return text
    return _QUERY.sub(r"\1?***", _CREDENTIALS.sub(r"\1***@", text))
