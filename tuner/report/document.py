"""The parts of a report: sections of plain text, tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text cells; ``note`` explains how to read it."""

    name: str
    """Name of the table's file, without its ending."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing with its caption."""

    name: str
    """Name of the picture's files, without their ending."""
    title: str
    """What is drawn: the caption, and the text for readers who cannot see the picture."""
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
