"""words: devices made of functions, with a setting.

    count      how many words a text has
    longest    its longest words, as many as the setting `top` says

A request is a text, the reply ends with a newline.

    $ ldmfs run examples/words.py --set top=2 &
    /ldm/words/count
    /ldm/words/longest
    $ echo 'a file is a device' > /ldm/words/count; cat /ldm/words/count
    5
    $ echo 'a file is a device' > /ldm/words/longest; cat /ldm/words/longest
    device file
"""

from __future__ import annotations

from typing import Annotated

import ldmfs


def words(request: ldmfs.Request) -> list[str]:
    """Return the words of a request."""
    return bytes(request.data).decode(errors="replace").split()


def count(name: str, consumer_id: int, request: ldmfs.Request) -> bytes:
    """Answer with the number of words.  The first argument is the device's name: one handler can serve many."""
    return b"%d\n" % len(words(request))


class WordsSettings(ldmfs.Settings):
    """Keys of `[container.words]`, or of `--set`."""

    top: Annotated[int, ldmfs.Doc("how many words `longest` gives")] = 1


class Words(ldmfs.Provider):
    """What a text is made of: count, longest."""

    Settings = WordsSettings
    settings: WordsSettings

    def start(self) -> None:
        """Create the devices: a request handler is all that one needs, everything else is a keyword."""
        calls = frozenset({ldmfs.RequestType.CALL})  # a READ, with no text in it, is refused
        self.create_device("count", request_handler=count, accepts=calls, takes="a text", gives="a number")
        self.create_device("longest", request_handler=self.longest, accepts=calls, takes="a text", gives="words")

    def longest(self, name: str, consumer_id: int, request: ldmfs.Request) -> bytes:
        """Answer with the longest words."""
        found = sorted(dict.fromkeys(words(request)), key=len, reverse=True)[: self.settings.top]
        return " ".join(found).encode() + b"\n"


if __name__ == "__main__":
    ldmfs.run(Words)
