"""The page's style sheet: light and dark, wide and narrow, colours for every kind of colour vision."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f5f7f9; --ink: #1b2129; --quiet: #59636e; --rule: #dde2e8;
  --dense: #c3cad3; --slim: #0072b2; --accent: #b34700; --green: #00795a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12161b; --card: #1b2128; --ink: #e8ecf1; --quiet: #a3adb8; --rule: #2d353f;
    --dense: #47515d; --slim: #56b4e9; --accent: #f0894a; --green: #3fc79e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 66rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 3rem 0 .3rem; }
p { margin: .2rem 0 .8rem; max-width: 46rem; }
.lead { font-size: 1.15rem; overflow-wrap: anywhere; }
.quiet, footer { color: var(--quiet); font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: .8rem; margin: 1.5rem 0; }
.tile { background: var(--card); border-radius: .6rem; padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile .quiet { display: block; }
table { width: 100%; border-collapse: collapse; table-layout: fixed; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--quiet); font-weight: 600; font-size: .85rem; }
tbody th { font-weight: 500; overflow-wrap: anywhere; }
tfoot th, tfoot td { font-weight: 700; border-bottom: 0; }
th.name { width: 24%; }
th.figure { width: 19%; }
.number { display: block; margin-top: .1rem; font-size: .85rem; color: var(--quiet); }
.whole { white-space: nowrap; }
svg { display: block; overflow: visible; }
.bar { width: 100%; height: .85rem; margin-top: .35rem; }
.pair { width: 100%; height: 2.1rem; }
.skyline { width: 100%; height: 3.2rem; }
.layers .bar { margin-top: .3rem; }
.layers th, .layers td { padding-top: .12rem; padding-bottom: .12rem; border: 0; }
.dense { fill: var(--dense); } .slim { fill: var(--slim); }
.failed { fill: var(--accent); } .empty { fill: var(--card); }
.spread { stroke: var(--ink); stroke-width: 1.5; } .tolerance { stroke: var(--accent); stroke-width: 2.5; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; padding: 0; margin: .3rem 0 1rem; }
.legend li { display: flex; align-items: center; gap: .45rem; font-size: .9rem; white-space: pre-wrap; }
.legend i { width: 1.1rem; height: .8rem; border-radius: 2px; }
i.dense { background: var(--dense); } i.slim { background: var(--slim); }
.chart { display: grid; grid-template-columns: 3.2rem 1fr; margin: 1rem 0 1.5rem; font-size: .85rem; }
.percents, .steps { color: var(--quiet); }
.percents { position: relative; }
.percents span { position: absolute; right: .6rem; transform: translateY(-50%); }
.plot svg { width: 100%; height: 15rem; }
.steps { grid-column: 2; display: flex; justify-content: space-between; padding-top: .35rem; }
.guide { stroke: var(--rule); vector-effect: non-scaling-stroke; }
.curve { fill: none; stroke-width: 2.2; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.curve.macs { stroke: var(--slim); }
.curve.params { stroke: var(--accent); stroke-dasharray: 7 4; }
.curve.units { stroke: var(--green); stroke-dasharray: 2 3; }
.curve.accuracy { stroke: var(--accent); }
details { margin: 1rem 0; }
summary { cursor: pointer; padding: .3rem 0; font-weight: 600; }
footer { margin-top: 3.5rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
@media (max-width: 36rem) {
  body { padding: 1.5rem 1rem 3rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile b { font-size: 1.35rem; }
  th.name { width: 27%; } th.figure { width: 29%; }
  th, td { padding-right: .6rem; font-size: .88rem; }
  .layers th.name { width: 38%; } .layers th.figure { width: 24%; }
  .number, tfoot td { font-size: .76rem; }
  .plot svg { height: 11rem; }
}
@media print { details > * { display: block; } }
"""
