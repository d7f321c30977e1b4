"""The set of labels: their order, their other spellings, what they mean."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fenlei.config import DataConfig
from fenlei.data.example import Example
from fenlei.errors import DataError

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))


def twin_key(label: str) -> str:
    """What is left of a label without white space, full or half width (NFKC) and case."""
    plain = unicodedata.normalize("NFKC", label).translate(_INVISIBLE).casefold()
    return "".join(plain.split())


class LabelSet:
    """Labels in a fixed order; index and name stand for each other.

    Args:
        names: the labels in order, at least one, each once.
        descriptions: label -> what it means.
        aliases: other spelling -> label.

    Raises:
        DataError: no names, a name twice or blank, names that differ only in white space, width or case, or a
            description or alias for a label that is not there.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        descriptions: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.names: tuple[str, ...] = tuple(names)
        if not self.names:
            raise DataError("expected at least one label, found none")
        for name in self.names:
            if not isinstance(name, str) or not name.strip():
                raise DataError(f"a label must be a text that is not blank, found {name!r}")
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise DataError(f"label {twice[0]!r} stands twice in the label set")
        _check_twins({name: "" for name in self.names})
        self._index = {name: i for i, name in enumerate(self.names)}
        self.descriptions: dict[str, str] = dict(descriptions or {})
        self.aliases: dict[str, str] = {}
        for name in self.descriptions:
            self._require(name, "data.descriptions describes")
        same = {alias: name for alias, name in (aliases or {}).items() if alias != name}
        for alias, name in same.items():
            self._require(name, f"data.aliases maps {alias!r} to")
            if alias in self._index:
                raise DataError(f"data.aliases: {alias!r} is itself a label and cannot stand for {name!r}")
        self.aliases = same

    @classmethod
    def from_examples(cls, examples: Iterable[Example], config: DataConfig) -> LabelSet:
        """Takes ``config.labels`` in their order, else the rows' labels and candidates as they first appear.

        Raises:
            DataError: labels that are twins of each other (all pairs are listed, with how often and where
                first seen), or a label outside ``config.labels`` (file and line are named).
        """
        counts: dict[str, int] = {}
        where: dict[str, str] = {}
        for example in examples:
            for name in (*(example.candidates or ()), *(() if example.label is None else (example.label,))):
                name = config.aliases.get(name, name)
                if name not in counts:
                    counts[name] = 0
                    where[name] = example.source
                counts[name] += 1
        seen = {name: f" ({n} times, first in {where[name] or 'a row'})" for name, n in counts.items()}
        if config.labels is None:
            _check_twins(seen)
            return cls(tuple(counts), descriptions=config.descriptions, aliases=config.aliases)
        labels = cls(config.labels, descriptions=config.descriptions, aliases=config.aliases)
        for name in counts:
            if name not in labels:
                raise DataError(f"{where[name] or 'a row'}: {labels.unknown(name)} (data.labels lists the labels)")
        return labels

    def encode(self, label: str) -> int:
        """The index of a label or of one of its aliases.

        Raises:
            DataError: the label is unknown; the nearest one is named.
        """
        return self._index[self.canonical(label)]

    def decode(self, index: int) -> str:
        """The label at an index from 0 to ``len(self) - 1``.

        Raises:
            DataError: the index is outside that range.
        """
        if not 0 <= index < len(self.names):
            raise DataError(f"label index {index} is outside 0 to {len(self.names) - 1}")
        return self.names[index]

    def canonical(self, label: str) -> str:
        """The label that a label or an alias stands for.

        Raises:
            DataError: the label is unknown; the nearest one is named.
        """
        name = self.aliases.get(label, label)
        if name not in self._index:
            raise DataError(self.unknown(label))
        return name

    def unknown(self, label: str) -> str:
        """Says that a label is unknown, and which one may be meant."""
        known = [*self.names, *self.aliases]
        twin = next((name for name in known if twin_key(name) == twin_key(str(label))), None)
        if twin is not None:
            return f"label {label!r} differs from {twin!r} only in white space, width or case"
        near = difflib.get_close_matches(str(label), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(self.names[:20]) + (f" and {len(self) - 20} more" if len(self) > 20 else "")
        return f"unknown label {label!r}{hint} (labels: {shown})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` takes them back."""
        return {
            "names": list(self.names),
            "descriptions": dict(self.descriptions),
            "aliases": dict(self.aliases),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelSet:
        """Makes the set that :meth:`to_dict` wrote.

        Raises:
            DataError: a part is missing or of another type.
        """
        names, maps = values.get("names"), [values.get(part, {}) for part in ("descriptions", "aliases")]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"labels: expected 'names' as a list of texts, found {names!r:.80}")
        for part in maps:
            if not isinstance(part, Mapping) or not all(isinstance(x, str) for pair in part.items() for x in pair):
                raise DataError(f"labels: expected 'descriptions' and 'aliases' as text -> text, found {part!r:.80}")
        return cls(names, descriptions=maps[0], aliases=maps[1])

    def _require(self, name: str, what: str) -> None:
        if name not in self._index:
            raise DataError(f"{what} a label that is not there: {self.unknown(name)}")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, label: object) -> bool:
        return label in self._index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelSet) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"LabelSet({list(self.names)!r})"


def _check_twins(seen: Mapping[str, str]) -> None:
    """Stops on names that only look different; ``seen`` maps a name to a note on where it stands."""
    groups: dict[str, list[str]] = {}
    for name in seen:
        groups.setdefault(twin_key(name), []).append(name)
    twins = [group for group in groups.values() if len(group) > 1]
    if not twins:
        return
    lines = ["  " + " and ".join(f"{name!r}{seen[name]}" for name in group) for group in twins]
    raise DataError(
        "labels that differ only in white space, width or case:\n"
        + "\n".join(lines)
        + "\nMake them one in the data, or map one to the other with data.aliases"
    )
