"""The report of a machine: `report.html`, which needs nothing beside it, and `summary.md`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench.report.files import Results
from bench.report.pictures import Picture, pictures
from bench.report.tables import Table, tables

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }
th { border-bottom: 2px solid #888; white-space: nowrap; }
.note { color: #555; margin: .2rem 0 .5rem; }
.warning { background: #fff3cd; border-left: 4px solid #d39e00; padding: .5rem 1rem; }
svg { max-width: 100%; height: auto; }
"""


def write_report(folder: Path) -> list[Path]:
    """Write both files beside the results of `folder`; ConfigError if there are none."""
    results = Results.read(folder)
    drawn = pictures(results) if importlib.util.find_spec("matplotlib") else []
    made = tables(results)
    written = []
    for name, text in (
        ("report.html", html(results, made, drawn)),
        ("summary.md", markdown(results, made)),
    ):
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written


def heading(results: Results) -> str:
    """What machine it is."""
    machine = results.machine
    num_cores = len(machine["cpus"])
    return f"Sandwich on {machine['cpu_model']}, {num_cores} cores, {machine['isa']}"


def facts(results: Results) -> str:
    """Of the newest results."""
    machine = results.machine
    known = [part for part in results.parts.values() if "commit" in part and "time" in part]
    newest = max(known, key=lambda part: part["time"])
    return (
        f"machine {machine['fingerprint']}, huge pages: {machine['huge_pages']}; "
        f"last measured {newest['time']} at commit {newest['commit']}"
    )


def warnings(results: Results) -> list[str]:
    """A line for each part that was measured on a busy machine."""
    found = results.complaints().items()
    return [f"{part}: {'; '.join(words)}" for part, words in found]


def html(results: Results, made: list[Table], drawn: list[Picture]) -> str:
    """One page; pictures are inside it."""
    title = escape(heading(results))
    lines = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>',
        f"<style>{STYLE}</style><body><h1>{title}</h1><p>{escape(facts(results))}</p>",
    ]
    if said := warnings(results):
        items = "".join(f"<li>{escape(line)}</li>" for line in said)
        lines.append(f'<div class="warning">Measured on a busy machine:<ul>{items}</ul></div>')
    lines += [f"<h2>{escape(name)}</h2><figure>{svg}</figure>" for name, svg in drawn]
    lines += map(_html_table, made)
    return "\n".join([*lines, "</body></html>", ""])


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.title)}</h2>{note}<div class="scroll"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def markdown(results: Results, made: list[Table], level: str = "#") -> str:
    """The tables alone."""
    lines = [f"{level} {heading(results)}", "", f"{facts(results)}.", ""]
    if said := warnings(results):
        lines += ["Measured on a busy machine:", "", *(f"- {line}" for line in said), ""]
    for table in made:
        lines += [f"{level}# {table.title}", ""]
        lines += [table.note, ""] if table.note else []
        lines.append(_line(table.columns))
        lines.append(_line(["---"] * len(table.columns)))
        lines += [_line(row) for row in table.rows]
        lines.append("")
    return "\n".join(lines)


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def write_results_page(folders: Sequence[Path], page: Path) -> None:
    """`docs/results.md`: the summaries of several machines, one below the other."""
    machines = [Results.read(folder) for folder in folders]
    lines = [
        "# Results",
        "",
        "Written by `sandwich bench report`: what was measured on each machine, what is won and",
        "what is lost. [benchmarks.md](benchmarks.md) says how.",
        "",
    ]
    parts = [markdown(results, tables(results), "##") for results in machines]
    page.write_text("\n".join([*lines, *parts]), encoding="utf-8")
