"""Tokens of a reply as pieces that a client may see: no half character, no part of a stop text."""

from collections.abc import Sequence

from nanochat_core.inference.streaming import Piece, ReplyDecoder
from nanochat_core.tokenizer.tokenizer import Tokenizer


class Reply:
    """The text of one reply while it grows; `is_stopped` as soon as a stop text was found."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._decoder = ReplyDecoder(tokenizer)
        self._scanner = StopScanner(stops) if stops else None
        self.is_stopped = False

    def feed(self, token: int) -> tuple[Piece, ...]:
        """The pieces that can be shown now that this token is there."""
        piece = self._decoder.feed(token)
        if piece is None:
            return ()
        return (piece,) if self._scanner is None else self._scan(self._scanner, piece)

    def end(self) -> tuple[Piece, ...]:
        """What was held back until now; call it once, when no token follows."""
        if self.is_stopped:
            return ()
        piece = self._decoder.finish()
        if self._scanner is None:
            return () if piece is None else (piece,)
        shown = () if piece is None else self._scan(self._scanner, piece)
        return shown if self.is_stopped else (*shown, *self._scanner.release())

    def _scan(self, scanner: "StopScanner", piece: Piece) -> tuple[Piece, ...]:
        shown = tuple(scanner.feed(piece))
        self.is_stopped = scanner.is_found
        return shown


class StopScanner:
    """Looks for stop texts in the visible text, and holds back what may be the start of one.

    Tool calls are no visible text: a stop text is found across them.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held: list[Piece] = []
        self.is_found = False

    def feed(self, piece: Piece) -> list[Piece]:
        """The pieces that are safe to show; after a stop text is found, those before it."""
        self._held.append(piece)
        visible = "".join(held.text for held in self._held if held.kind == "text")
        # The one that is complete first counts, so that nothing depends on how the text is cut.
        ends = [(i + len(stop), i) for stop in self._stops if (i := visible.find(stop)) >= 0]
        if ends:
            self.is_found = True
            shown = self._take(min(ends)[1])
            self._held = []
            return shown
        num_doubtful = max((_overlap(visible, stop) for stop in self._stops), default=0)
        return self.release() if num_doubtful == 0 else self._take(len(visible) - num_doubtful)

    def release(self) -> list[Piece]:
        """Everything that is held back."""
        shown, self._held = self._held, []
        return shown

    def _take(self, num_visible: int) -> list[Piece]:
        """Take out the pieces up to so many characters of visible text."""
        shown: list[Piece] = []
        while self._held:
            piece = self._held[0]
            if piece.kind == "text" and len(piece.text) > num_visible:
                if num_visible:
                    shown.append(Piece("text", piece.text[:num_visible]))
                    self._held[0] = Piece("text", piece.text[num_visible:])
                break
            num_visible -= len(piece.text) if piece.kind == "text" else 0
            shown.append(self._held.pop(0))
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` starts with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece."""
    whole: list[Piece] = []
    for piece in pieces:
        if whole and whole[-1].kind == piece.kind:
            whole[-1] = Piece(piece.kind, whole[-1].text + piece.text)
        else:
            whole.append(piece)
    return whole
