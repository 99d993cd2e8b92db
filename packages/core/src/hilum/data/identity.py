"""Who is who: keyed digests of identifiers, and which spellings are one patient (FORMATS 4).

Nothing here is ever written in plain text except ``private/merges.csv``, which lists the spellings that were joined.
"""

from __future__ import annotations

import csv
import hmac
import io
import logging
import os
import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hilum.core.errors import HilumError

log = logging.getLogger(__name__)

SIZE = 32  # bytes of a key
Spelling = tuple[str, str]  # issuer, patient id
_NOBODY = "anonymous anonymized anonymised anonym anon unknown unk none null nil nan na noid noname patient test"
UNUSABLE = frozenset(_NOBODY.split())


def normalise(text: str) -> str:
    """NFKC, trimmed, inner blanks collapsed, casefolded: what two spellings of one identifier have in common."""
    return " ".join(unicodedata.normalize("NFKC", text.replace("\0", " ")).split()).casefold()


def usable(text: str | None) -> bool:
    """Whether an identifier names somebody: not blank, not ANONYMOUS, UNKNOWN, NONE or the like, not only zeros."""
    plain = re.sub(r"[\W_]+", "", normalise(text or ""))
    return bool(plain.strip("0")) and plain not in UNUSABLE


@dataclass(frozen=True, repr=False)
class IdentityKey:
    """The project's secret. Digests are HMAC-SHA256 truncated to 16 bytes, in hex."""

    secret: bytes

    @staticmethod
    def load(path: Path | str | None = None) -> IdentityKey:
        """From ``path``, else ``$HILUM_ID_KEY`` (64 hex digits or a file), else ``~/.config/hilum/id.key``.

        Only the last is made where it is absent (32 random bytes, mode 0600). A file holds 32 bytes or 64 hex digits.
        """
        named = path or os.environ.get("HILUM_ID_KEY")
        if path is None and named is not None and re.fullmatch(r"[0-9a-fA-F]{64}", str(named)):
            return IdentityKey(bytes.fromhex(str(named)))
        file = Path(named) if named else Path.home() / ".config" / "hilum" / "id.key"
        if not named and not file.exists():
            _make_key(file)
        try:
            content = file.read_bytes()
            if file.stat().st_mode & 0o077:
                log.warning("others may read the identity key, and undo its digests with it: chmod 600 %s", file)
        except OSError as error:
            raise HilumError(
                f"the identity key cannot be read: {error.strerror}",
                where="--id-key" if path else "$HILUM_ID_KEY",
                fix="head -c 32 /dev/urandom > FILE; chmod 600 FILE",
            ) from None
        if len(content) != SIZE:
            try:
                content = bytes.fromhex(content.decode("ascii").strip())
            except ValueError:
                content = b""
        if len(content) != SIZE:
            raise HilumError(
                f"an identity key is {SIZE} bytes, or {2 * SIZE} hex digits",
                where="--id-key" if path else "$HILUM_ID_KEY",
                fix="head -c 32 /dev/urandom > FILE; chmod 600 FILE",
            )
        return IdentityKey(content)

    @property
    def fingerprint(self) -> str:
        """Tells two keys apart without giving either away."""
        return self.digest("fingerprint")[:16]

    def digest(self, kind: str, *parts: str | bytes) -> str:
        """32 hex digits. Parts are length-prefixed, so ("ab", "c") and ("a", "bc") differ."""
        message = [kind.encode(), b"\0"]
        for part in parts:
            data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
            message += len(data).to_bytes(8, "little"), data
        return hmac.digest(self.secret, b"".join(message), "sha256").hex()[:32]

    def group(self, issuer: str | None, patient_id: str) -> str:
        """The group of a patient: one issuer's spellings of one identifier share it, two issuers never do."""
        return self.digest("group", normalise(issuer or ""), normalise(patient_id))

    def spelling(self, issuer: str | None, patient_id: str) -> str:
        """One exact spelling of one identifier."""
        return self.digest("spelling", (issuer or "").strip("\0 "), patient_id.strip("\0 "))


def _make_key(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return  # another process made it first
    with os.fdopen(handle, "wb") as out:
        out.write(os.urandom(SIZE))


@dataclass
class Merges:
    """``private/merges.csv``: which spellings are one patient. Users edit ``merge_into`` to undo or add a merge.

    Rows of one ``into_issuer`` with the same ``merge_into`` are one group; what is not listed stands for itself.
    """

    rows: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)  # (issuer, id) -> (issuer, id)
    COLUMNS = ("issuer", "patient_id", "into_issuer", "merge_into")

    @classmethod
    def read(cls, path: Path) -> Merges:
        """As hilum or a spreadsheet has written it: comma, semicolon or tab, with or without a byte order mark."""
        if not path.exists():
            return cls()
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise HilumError("private/merges.csv is not UTF-8", fix="save it as CSV in UTF-8") from None
        first = re.split(r"[\r\n]", text, maxsplit=1)[0]
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
        most = csv.field_size_limit(len(text) + 1)  # an identifier of any length that hilum has listed is read back
        try:
            lines = list(reader)
        except csv.Error:
            raise HilumError("private/merges.csv is no table", where=f"line {reader.line_num}") from None
        finally:
            csv.field_size_limit(most)
        missing = [c for c in cls.COLUMNS if c not in (reader.fieldnames or ())]
        if missing:
            raise HilumError(
                f"private/merges.csv lacks the column {missing[0]!r}",
                fix=f"its header is {','.join(cls.COLUMNS)}; delete the file to start afresh",
            )
        for number, line in enumerate(lines, 2):
            if None in line or any(line[c] is None for c in cls.COLUMNS):
                raise HilumError(
                    "a row of private/merges.csv has more or fewer cells than its header",
                    where=f"row {number}",
                    fix="quote cells that hold the separator",
                )
        return cls({(r["issuer"], r["patient_id"]): (r["into_issuer"], r["merge_into"]) for r in lines})

    def proposals(self, key: IdentityKey, decided: Merges) -> list[str]:
        """Digests of the lines that are not ``decided``: hilum's own."""
        return sorted(key.digest("merge", *raw, *into) for raw, into in self.rows.items() if raw not in decided.rows)

    def decided(self, key: IdentityKey, proposed: Collection[str]) -> tuple[Merges, Merges]:
        """(what the user added or edited, what stands as hilum ``proposed`` it). The latter is proposed anew, or no more:
        it must not matter which files were known first."""
        kept: tuple[dict[tuple[str, str], tuple[str, str]], ...] = {}, {}
        for raw, into in self.rows.items():
            kept[key.digest("merge", *raw, *into) in proposed][raw] = into
        return Merges(kept[False]), Merges(kept[True])

    def add(self, spellings: Iterable[tuple[str, str]]) -> None:
        """List spellings that normalisation joined; rows the user has edited stay as they are."""
        for issuer, patient_id in spellings:
            self.rows.setdefault((issuer, patient_id), (normalise(issuer), normalise(patient_id)))

    def groups(self, key: IdentityKey) -> dict[str, str]:
        """Digest of a spelling -> group."""
        return {key.spelling(*raw): key.group(*into) for raw, into in self.rows.items()}

    def lines(self) -> list[list[str]]:
        return [list(self.COLUMNS), *([*raw, *into] for raw, into in sorted(self.rows.items()))]
