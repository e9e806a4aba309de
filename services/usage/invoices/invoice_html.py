"""An invoice as one HTML file: no script, no address to load from, everything escaped. Pure."""

from collections.abc import Iterable
from html import escape
from typing import Final

from services.usage.invoices.invoice_page import Block, Page, Sum

_POLICY: Final = (
    '<meta http-equiv="Content-Security-Policy"'
    " content=\"default-src 'none'; style-src 'unsafe-inline'\">"
)
"""Nothing is loaded and nothing runs, whatever the text says."""

_STYLE: Final = """
:root{--ink:#16202e;--soft:#667085;--hair:#e4e7ec;--accent:#0f6b5c}
*{box-sizing:border-box}
body{margin:0;background:#f4f5f7;color:var(--ink);
font:14px/1.5 ui-sans-serif,system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:860px;margin:32px auto;background:#fff;padding:56px 64px;border-top:4px solid
var(--accent);box-shadow:0 1px 3px #1018281a}
header{display:flex;justify-content:space-between;gap:32px;align-items:flex-start}
h1{font-size:30px;line-height:1.1;margin:0;font-weight:650;letter-spacing:-.02em}
.number{color:var(--soft);margin-top:6px;font-size:15px}
.name{font-weight:650;font-size:16px;text-align:right}
.draft{display:inline-block;background:#fef3c7;color:#92400e;border-radius:4px;padding:2px 8px}
.parties{display:grid;grid-template-columns:1fr 1fr 1fr;gap:32px;margin:40px 0}
h2{font-size:11px;letter-spacing:.08em;text-transform:uppercase;color:var(--soft);margin:0 0 6px;
font-weight:600}
p{margin:0;overflow-wrap:anywhere}
p.first{font-weight:600}
dl{margin:0;display:grid;grid-template-columns:auto 1fr;gap:2px 14px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
table{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums}
th{font-size:11px;letter-spacing:.06em;text-transform:uppercase;color:var(--soft);text-align:right;
padding:8px 0 8px 14px;border-bottom:1.5px solid var(--ink);font-weight:600}
td{padding:8px 0 8px 14px;border-bottom:1px solid var(--hair);text-align:right;
white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0;white-space:normal;
overflow-wrap:anywhere}
tr{break-inside:avoid}
.sums{margin:24px 0 0 auto;width:min(430px,100%);break-inside:avoid}
.sums td{border:0;padding:4px 0}
.sums small{display:block;color:var(--soft)}
.sums .strong td{border-top:1.5px solid var(--ink);font-size:18px;font-weight:650;
padding-top:10px}
.block{margin-top:32px;break-inside:avoid}
footer{margin-top:48px;padding-top:12px;border-top:1px solid var(--hair);color:var(--soft);
font-size:11px;overflow-wrap:anywhere}
@media print{body{background:#fff}main{margin:0;padding:0;max-width:none;box-shadow:none;
border:0}thead{display:table-header-group}@page{margin:18mm}}
"""


def html(page: Page) -> str:
    """The page as a whole file."""
    facts = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in page.facts
    )
    number = f'<span class="draft">{escape(page.number)}</span>' if page.draft else ""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        _POLICY,
        f"<title>{escape(f'{page.title} {page.number}')}</title><style>{_STYLE}</style></head>",
        f"<body><main><header><div><h1>{escape(page.title)}</h1>",
        f'<div class="number">{number or escape(page.number)}</div></div>',
        f'<div class="name">{escape(page.seller.lines[0])}</div></header>',
        f'<section class="parties">{_block(page.buyer)}{_block(page.seller)}',
        f"<div><h2>Details</h2><dl>{facts}</dl></div></section>",
        _table(page),
        '<table class="sums"><tbody>',
        *map(_sum, page.sums),
        "</tbody></table>",
        *(f'<section class="block">{_block(block)}</section>' for block in page.blocks),
        _footer(page),
        "</main></body></html>\n",
    ]
    return "".join(parts)


def _block(block: Block) -> str:
    # The first line is the name of who it is about.
    kinds = [' class="first"', *("",) * len(block.lines)]
    lines = "".join(
        f"<p{kind}>{escape(line)}</p>" for kind, line in zip(kinds, block.lines, strict=False)
    )
    return f"<div><h2>{escape(block.heading)}</h2>{lines}</div>"


def _table(page: Page) -> str:
    if not page.headings:
        return ""
    rows = "".join(f"<tr>{_cells('td', row)}</tr>" for row in page.rows)
    head = _cells("th", page.headings)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def _sum(line: Sum) -> str:
    detail = f"<small>{escape(line.detail)}</small>" if line.detail else ""
    kind = ' class="strong"' if line.strong else ""
    return f"<tr{kind}><td>{escape(line.label)}{detail}</td><td>{escape(line.amount)}</td></tr>"


def _footer(page: Page) -> str:
    if not page.fingerprint:
        return "<footer>This is a draft and asks for nothing.</footer>"
    return f"<footer>SHA-256 of the document: {escape(page.fingerprint)}</footer>"
