"""From when on something is reported."""

from __future__ import annotations

from pydantic import Field

from fenlei.config_parts import Part


class CheckSettings(Part):
    """Thresholds of the checks; on the command line `check.KEY=VALUE`."""

    min_class_rows: int = Field(default=10, ge=1)
    """A class with fewer training rows is reported."""
    imbalance: float = Field(default=10.0, gt=1.0)
    """The largest class over the smallest, from which on it is reported."""
    near_similarity: float = Field(default=0.8, ge=0.5, le=1.0)
    """Jaccard similarity of the sets of three-character pieces, from which on two texts are near duplicates."""
    near_characters: int = Field(default=10, ge=3)
    """Texts with fewer letters and digits are compared exactly only."""
    shortened: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of shortened texts, from which on truncation is a warning instead of a note."""
    long_factor: float = Field(default=20.0, gt=1.0)
    """A text this many times as long as the median one (and of 2,000 characters at least) is very long."""
    beginning_share: float = Field(default=0.02, gt=0.0, le=1.0)
    """Share of rows (and 20 of them at least) with the same beginning, from which on it is reported."""
    main_script: float = Field(default=0.9, gt=0.5, le=1.0)
    """Where this share of the rows is of one script, rows without a letter of it are reported."""
    token_sample: int = Field(default=5000, ge=100)
    """Of a split with more rows, so many are tokenized, drawn with `train.seed`."""
    examples: int = Field(default=5, ge=1, le=100)
    """Most examples a finding."""
