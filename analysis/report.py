"""One report out of finished studies: Markdown that links to the figures, and HTML that carries them inside."""

import base64
import html
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from air_model.records import write_text

STUDIES = {  # study: its figures in reading order (as glob patterns), and what each shows
    "rollout": {
        "rollout_curves": "Both states after every update, mean ± SEM over puzzles.",
        "rollout_*_strip": "Both states at several ACT steps.",
        "rollout_[0-9]*.gif": "Both states through the roll-out; cells that just changed are marked.",
        "rollout_[0-9]*": "Both states after the last update.",
    },
    "freeze": {
        "freeze": "What moves when the other state is frozen.",
        "freeze_series": "Mask flips and content changes after every update, mean ± SEM over puzzles.",
        "interventions": "Exact accuracy of the last z_H under each intervention, ± SEM.",
    },
    "attention": {
        "attention_pooled": "Contrasts per layer and class: heads averaged, rows pooled.",
        "attention_per_puzzle": "The same, best head of each row, averaged per puzzle (as the paper's for Sudokus).",
        "attention_per_puzzle_mean_heads": "The same, heads averaged, averaged per puzzle.",
        "attention_example": "The most telling query: neighbourhood and violation shift plus half the entropy shift.",
        "attention_evolution": "The same query over the ACT steps.",
        "attention_by_step": "Contrasts against the ACT step, with 95 % intervals.",
        "attention_heads_*": "Contrasts of every head, {} queries.",
    },
    "geometry": {
        "geometry": "Size, movement and angle of the states, mean ± SEM over puzzles.",
        "convergence": "How far the states move over an ACT step, and when decodes are final.",
        "trajectories": "Mean state of each puzzle after every ACT step on its two principal axes.",
        "halting": "Calibration of the wish to halt, and its timing.",
        "failures": "Where failures are decided.",
        "probes": "What a linear probe reads off single cells.",
    },
}


@dataclass
class Entry:
    """One model's part of a report: its folder (analysis.json, figures/), what was studied, the studies' sections."""

    name: str
    folder: Path
    description: str
    sections: dict[str, list[str]]


def figures_of(folder: Path, study: str) -> dict[Path, str]:
    """The figures of one study in reading order, each with its caption."""
    found: dict[Path, str] = {}
    for pattern, caption in STUDIES[study].items():
        for path in sorted((folder / "figures").glob(pattern if "." in pattern else f"{pattern}.png")):
            found.setdefault(path, caption.format(path.stem.removeprefix("attention_heads_")))
    return found


def write(output_dir: Path, entries: list[Entry], overall: str = "") -> tuple[Path, Path]:
    """Write report.md and report.html (one file, figures inside); returns their paths."""
    title, to_html = "What the two states do", MarkdownIt("commonmark", {"html": False}).enable("table").render
    parts = [(text, to_html(text)) for text in (f"# {title}\n", overall)]  # each as Markdown and as HTML
    for entry in entries:
        head = f"# {entry.name}\n\n{entry.description}" if len(entries) > 1 else entry.description
        parts.append((head, to_html(head)))
        for study, sections in entry.sections.items():
            text = "\n".join(sections)
            parts.append((text, to_html(text)))
            for path, caption in figures_of(entry.folder, study).items():
                data, alt = base64.b64encode(path.read_bytes()).decode(), html.escape(caption)
                image = f'<img alt="{alt}" src="data:image/{path.suffix[1:]};base64,{data}">'
                link = f"![{caption}]({path.relative_to(output_dir).as_posix()})\n"
                parts.append((link, f"<figure>{image}<figcaption>{alt}</figcaption></figure>"))
    markdown, body = ("\n".join(texts) for texts in zip(*parts))
    page = _PAGE.format(title=html.escape(title), body=body)
    return write_text(output_dir / "report.md", markdown), write_text(output_dir / "report.html", page)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }}
h1, h2, h3 {{ line-height: 1.2; margin-top: 2em; }} h1:first-child {{ margin-top: 0; }}
table {{ border-collapse: collapse; font-size: 0.86rem; display: block; overflow-x: auto; }}
th, td {{ padding: 0.3em 0.8em; border-bottom: 1px solid #d6dae0; text-align: right; white-space: nowrap; }}
th {{ color: #4b5563; }} th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }}
figure {{ margin: 1.5rem 0; }} img {{ max-width: 100%; height: auto; }}
figcaption {{ color: #4b5563; font-size: 0.9rem; }} code {{ background: #f3f4f6; padding: 0 0.2em; }}
</style></head><body>
{body}
</body></html>
"""
