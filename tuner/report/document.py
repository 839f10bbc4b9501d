"""What a report is made of: plain text, tables and pictures, in sections."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text; ``note`` says what must be known to read it."""

    name: str
    """Name of its file, without ending."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, and in words what it shows."""

    name: str
    """Name of its files, without ending."""
    title: str
    """What is drawn, for the caption and for those who cannot see it."""
    figure: Figure


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report: its sentences, then its pictures, then its tables."""

    title: str
    sentences: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A whole report."""

    title: str
    sections: tuple[Section, ...]
