"""The page's style sheet: light and dark by what the reader's system asks for, printable, no outside fonts."""

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1d2126; --soft: #5d6671;
  --edge: #dfe2e6; --wash: #f1f3f5; --base: #1f6fd0; --novel: #d9480f; --plain: #6b7480; --good: #1a7f4b;
  --middling: #9a6700; --bad: #c0262d; --line0: #1f6fd0; --line1: #d9480f; --line2: #1a7f4b; --line3: #8250df; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #9aa4af;
  --edge: #343a41; --wash: #242a30; --base: #5ea6ff; --novel: #ff8f52; --plain: #a7b0ba; --good: #4cc38a;
  --middling: #e0b04a; --bad: #ff7b80; --line0: #5ea6ff; --line1: #ff8f52; --line2: #4cc38a; --line3: #b99aff; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.5rem; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header > div { max-width: 1240px; margin: 0 auto; padding: 0 24px; }
header { padding: 36px 0 8px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.4rem; margin: 3rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--edge); }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .5rem; }
p { margin: .5rem 0; max-width: 50rem; }
.note, figcaption, .legend { color: var(--soft); font-size: .875rem; }
nav { position: sticky; top: 0; z-index: 2; background: var(--page); border-bottom: 1px solid var(--edge); }
nav div { max-width: 1240px; margin: 0 auto; padding: 8px 24px; display: flex; flex-wrap: wrap; gap: 4px 18px;
  font-size: .9rem; }
a { color: var(--base); text-decoration: none; }
a:hover { text-decoration: underline; }
.hidden { position: absolute; }
.grid { display: grid; gap: 16px; margin: 1rem 0; }
.three { grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); }
.four { grid-template-columns: repeat(auto-fill, minmax(265px, 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); }
.crops { grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 12px; }
.cards { grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--edge); border-top: 4px solid var(--soft); border-radius: 8px;
  padding: 14px 18px; }
.card h3 { margin: .5rem 0 .3rem; } .card p { margin: 0; font-size: .92rem; }
.verdict { font-size: .78rem; font-weight: 700; letter-spacing: .05em; text-transform: uppercase; color: var(--soft); }
.card.good { border-top-color: var(--good); } .good .verdict { color: var(--good); }
.card.middling { border-top-color: var(--middling); } .middling .verdict { color: var(--middling); }
.card.bad { border-top-color: var(--bad); } .bad .verdict { color: var(--bad); }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; background: var(--card); }
th, td { padding: 5px 12px; border-bottom: 1px solid var(--edge); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; }
.text { text-align: left; } .number { text-align: right; } .group { text-align: center; }
.edge, .group { border-left: 1px solid var(--edge); }
tr.first td { border-top: 2px solid var(--edge); }
tr.difference td { font-weight: 650; background: var(--wash); }
td.up { color: var(--good); } td.down { color: var(--bad); }
.bars { width: 100%; max-width: 900px; }
td.bar { position: relative; width: 23%; } td.bar b { position: relative; font-weight: 600; }
td.bar span { position: absolute; left: 0; top: 4px; bottom: 4px; background: var(--base); opacity: .28;
  border-radius: 0 3px 3px 0; }
figure { margin: 0; } figcaption { margin-top: 4px; line-height: 1.4; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
svg.picture { display: block; width: 100%; border-radius: 6px; background: var(--wash); }
svg .halo { fill: none; stroke: #ffffff; stroke-opacity: .55; stroke-width: 4; vector-effect: non-scaling-stroke; }
svg .box { fill: transparent; stroke-width: 2; vector-effect: non-scaling-stroke; stroke: #6b7480; }
svg .box.base { stroke: #1f6fd0; } svg .box.novel { stroke: #d9480f; }
svg .box.plain { stroke: #2b3036; stroke-width: 1.2; }
svg .box.dashed { stroke-dasharray: 5 4; }
svg .tag rect { fill: #3f4650; } svg .tag.base rect { fill: #1f6fd0; } svg .tag.novel rect { fill: #d9480f; }
svg .tag text { fill: #ffffff; font: 600 11px system-ui, "Segoe UI", Roboto, Arial, sans-serif; text-anchor: middle; }
svg.chart { display: block; width: 100%; background: var(--card); border: 1px solid var(--edge); border-radius: 6px; }
svg.chart text { font: 10.5px system-ui, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--soft); }
svg.chart .end { text-anchor: end; } svg.chart .middle { text-anchor: middle; }
svg.chart .rule { stroke: var(--edge); stroke-width: 1; }
svg.chart .line { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
.line-0 { stroke: var(--line0); } .line-1 { stroke: var(--line1); }
.line-2 { stroke: var(--line2); } .line-3 { stroke: var(--line3); }
.legend span { margin-right: 1.3em; white-space: nowrap; }
i.key { display: inline-block; width: 1.4em; height: .75em; margin-right: .4em; border-radius: 2px; }
i.line-0 { background: var(--line0); } i.line-1 { background: var(--line1); }
i.line-2 { background: var(--line2); } i.line-3 { background: var(--line3); }
i.box { border: 2.5px solid var(--plain); } i.base { border-color: #1f6fd0; } i.novel { border-color: #d9480f; }
i.dashed { border-style: dashed; }
i.thin { border-width: 1.2px; }
dl.facts { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: .8rem 0; }
.facts dt { color: var(--soft); font-size: .8rem; } .facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.chips { display: flex; flex-wrap: wrap; gap: 7px; margin: .8rem 0; padding: 0; list-style: none; }
.chips li { background: var(--wash); border: 1px solid var(--edge); border-radius: 99px; padding: 2px 11px;
  font-size: .88rem; }
.chips li small { color: var(--soft); margin-left: .4em; font-variant-numeric: tabular-nums; }
.chips li.base { border-color: var(--base); } .chips li.novel { border-color: var(--novel); }
.right { color: var(--good); font-weight: 600; } .wrong { color: var(--bad); font-weight: 600; }
.unused svg { opacity: .5; filter: grayscale(.8); }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--base); font-size: .95rem; }
code { font-size: .88em; background: var(--wash); padding: 1px 5px; border-radius: 4px; }
footer { color: var(--soft); font-size: .85rem; padding: 32px 0 48px; }
@media print { nav { display: none; } .card, figure, tr { break-inside: avoid; } }
"""
