"""What the sets of questions about images share: one table of questions, and images that are split as images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.data.cards import Dataset

QUESTIONS = pa.schema(
    [(name, pa.string()) for name in ("path", "qid", "part", "question", "answer", "answer_type", "language")]
)
"""``part`` train, val or test as published; ``answer_type`` OPEN or CLOSED, which are scored apart."""
_KINDS = ("OPEN", "CLOSED")


class QuestionSet(Dataset):
    """A set whose labels are questions and answers; ``table`` holds its images, without findings."""

    @abstractmethod
    def questions(self, root: Path) -> pa.Table:
        """QUESTIONS, a row a question."""


def question(path: str, record: Mapping[str, Any], *, part: str, language: str = "en", dataset: str) -> dict[str, str]:
    """One row of QUESTIONS. Answers may be numbers; OPEN and CLOSED come with stray blanks and in any case."""
    answer = " ".join(str(record["answer"]).split())
    told = str(record.get("answer_type") or ("CLOSED" if answer.casefold() in ("yes", "no") else "OPEN"))
    kind = told.strip().upper()
    if kind not in _KINDS:
        raise HilumError(
            f"{dataset}: answer_type is neither OPEN nor CLOSED", where=f"question {record.get('qid', '')}"
        )
    text = " ".join(str(record["question"]).split())
    row = {"path": path, "qid": str(record.get("qid", "")), "part": part, "question": text, "answer": answer}
    return {**row, "answer_type": kind, "language": language}


def in_both(questions: pa.Table, parts: Iterable[str] = ("train", "test")) -> tuple[int, int]:
    """(images of the last part that the first one has too, images of the last part)."""
    first, *_, last = parts
    pairs = set(zip(*(questions.column(c).to_pylist() for c in ("part", "path")), strict=True))
    held = {path for part, path in pairs if part == last}
    return len(held & {path for part, path in pairs if part == first}), len(held)


def refuse_pickles(root: Path, *, dataset: str, fix: str) -> None:
    """HilumError where the questions are pickles: a pickle is a program, and reading it runs it."""
    for path in sorted([*root.rglob("*.pkl"), *root.rglob("*.pickle")]):
        raise HilumError(
            f"{dataset}: {path.name} is a pickle, which runs code when it is read, and is refused",
            where=str(path.parent),
            fix=fix,
        )
