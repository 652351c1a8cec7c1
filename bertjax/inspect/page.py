"""The report as one HTML page, plots included."""

from __future__ import annotations

import base64
import html
import io

from bertjax.inspect.report import Report

_STYLE = (
    "body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "mark{background:#ee6677;color:#fff;padding:0 .2em}.fault{border-left:4px solid #ee6677;"
    "padding-left:1em}code{overflow-wrap:anywhere}"
)


def page(report: Report) -> str:
    """A self-contained page: findings, works, plots and rows, in this order."""
    parts = [f"<h1>{html.escape(report.name)}</h1>", f"<p>{len(report.findings)} findings</p>"]
    for finding in report.findings:
        quoted = "<br>".join(f"<code>{html.escape(line)}</code>" for line in finding.lines())
        parts.append(f'<p class="fault">{quoted}</p>')
    lines = [*(e.text() for e in report.lengths), *report.notes, *(w.text() for w in report.works)]
    parts += [f"<p>{html.escape(line)}</p>" for line in lines]
    if report.scripts or report.lengths:
        image = base64.b64encode(plots(report)).decode()
        parts.append(
            f'<img alt="plots" style="max-width:100%" src="data:image/png;base64,{image}">'
        )
    for row in report.rows:
        pieces = (
            f'<mark title="{html.escape(p.original)}">{html.escape(p.original)}'
            f"&rarr;{html.escape(p.text)}</mark>"
            if p.original
            else html.escape(p.text)
            for p in row
        )
        parts.append(f"<p>{' '.join(pieces)}</p>")
    head = f"<meta charset=utf-8><title>{html.escape(report.name)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def plots(report: Report) -> bytes:
    """PNG: letters by script for each source, or rows by tokens for each length."""
    from matplotlib.figure import Figure  # slow to import

    count = max(len(report.lengths), 1)
    figure = Figure(figsize=(11, 4), layout="constrained")
    places = figure.subplots(1, count, squeeze=False)[0]
    for axes, lengths in zip(places, report.lengths, strict=False):
        width = lengths.length / len(lengths.histogram)
        edges = [i * width for i in range(len(lengths.histogram))]
        axes.bar(edges, lengths.histogram, width, align="edge", color="#4477aa", edgecolor="white")
        axes.set(
            title=f"Rows of {lengths.length}: {lengths.padding:.1%} padding, "
            f"packed {lengths.packed_padding:.1%}",
            xlabel="tokens",
            ylabel="rows",
        )
    if not report.lengths:
        axes = places[0]
        names = sorted({name for mix in report.scripts.values() for name in list(mix)[:4]})
        sources = list(report.scripts)
        left = [0.0] * len(sources)
        for name in names:
            shares = [
                report.scripts[s].get(name, 0) / max(1, sum(report.scripts[s].values()))
                for s in sources
            ]
            axes.barh([s.rpartition("/")[2] for s in sources], shares, left=left, label=name)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.set(title="Letters by script", xlabel="share of the letters sampled")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
