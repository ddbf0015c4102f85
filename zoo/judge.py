"""Is the judge right? Every real network that there is here, compressed in several ways to the same ratio and bits: its
true accuracy beside the unexplained share with its norms anchored and without anchors (notebook 51).

    python zoo/judge.py                    all networks, into zoo/judge.csv (rows that are there already are kept)
    python zoo/judge.py aka20 lenet        only these
    python zoo/judge.py --show             what share of the pairs is in order, and what the judge's choice loses

Accuracy as in zoo/hold.py, but of CIFAR and MNIST on images 2,001 to 3,500 where there are so many.
"""
import itertools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rows import grow, kept
from udfc_nb import RECIPES
from udfc_nb.app.known import KNOWN, default_images, open_known
from udfc_nb.data.blocks import accuracy
from udfc_nb.data.networks import load_network, test_images
from udfc_nb.graph.copies import copied
from udfc_nb.graph.proof import find_sites
from udfc_nb.recipes.recipe import METRICS
from udfc_nb.run.compress import bits_per_layer
from udfc_nb.run.judge import Judge
from udfc_nb.run.sensitivity import spent
from udfc_nb.run.source import CHOSEN, Source

TABLE = Path(__file__).with_name('judge.csv')
COLUMNS = 'network ratio bits way accuracy anchored free'.split()
CIFAR = [(.3, None), (.5, None), (.3, 4), (0., 4), (0., 3)]
SETTINGS = dict(aka20=CIFAR, kar14c100=CIFAR, nm56=CIFAR, lenet=CIFAR, crepe=[(.1, None), (.3, None), (0., 3), (0., 2)],
    lite0=[(.1, None), (.2, None), (0., 4), (0., 3)], mobilenetv2=[(.1, None), (.3, None), (0., 4)])
COUNTED = RECIPES['best'].but(metric='counted')
WAYS = {'counted': COUNTED, 'counted, streams': COUNTED.but(repair='streams'),
    'counted, by norm': COUNTED.but(criterion='l2'),
    'counted, streams, by norm': COUNTED.but(criterion='l2', repair='streams'),
    'mean': COUNTED.but(metric='mean'), 'mean, streams': COUNTED.but(metric='mean', repair='streams'),
    'fast': RECIPES['fast'], 'plain': RECIPES['prune'], 'plain, streams': RECIPES['prune'].but(repair='streams'),
    'field': RECIPES['field'], 'paper': RECIPES['paper']}


def load(name):
    "As in zoo/hold.py, on other images."
    if KNOWN[name].packages:
        return open_known(name, default_images())
    net, (x, y) = load_network(name)[0].eval(), test_images(name, n=3500)
    if len(x) > 2500:
        x, y = x[2000:], y[2000:]
    return net, torch.zeros(1, *x.shape[1:]), lambda n: accuracy(n, x, y)


def rows_of(name, done):
    "A row for every setting and way that is not there yet."
    todo = [(s, w) for s in SETTINGS[name] for w in WAYS if (name, *map(str, s), w) not in done]
    if not todo:
        return
    net, example, right = load(name)
    graph = find_sites(net, example)
    source = Source(copied(net).eval(), graph, example)
    judge = Judge(source, CHOSEN)
    for (ratio, bits), way in todo:
        recipe = WAYS[way]
        if not ratio and 'by norm' in way or recipe.metric == 'mean' and not source.modelled():
            continue
        job = METRICS[recipe.metric](copied(net), graph, recipe)
        job.source = source
        job.select(ratio, {})
        if job.kept and recipe.budget != 'uniform':
            job.kept = spent(job)
        with torch.no_grad():
            job.run(bits_per_layer(net, bits))
            views = [judge.compare(said, judge.answers(job.net, a, job.left)) for a, said in judge.views]
        values = [name, ratio, bits, way, right(job.net), views[0], views[-1]]
        yield {c: f'{v:.5g}' if isinstance(v, float) and c != 'ratio' else v for c, v in zip(COLUMNS, values)}


def order(rows, damage):
    "(pairs in order, pairs that differ by a point or more, what is lost by taking the least damage), by setting."
    groups = {}
    for r in rows:
        groups.setdefault((r['network'], r['ratio'], r['bits']), []).append((float(r['accuracy']), damage(r)))
    for group in groups.values():
        pairs = [(a, b) for a, b in itertools.combinations(group, 2) if abs(a[0]-b[0]) >= 1]
        yield (sum((a[0] > b[0]) == (a[1] < b[1]) for a, b in pairs), len(pairs),
            max(a for a, _ in group)-min(group, key=lambda g: g[1])[0])


def show(rows):
    views = dict(anchored=lambda r: float(r['anchored']), free=lambda r: float(r['free']),
        both=lambda r: float(r['anchored'])+float(r['free']))
    for name in [*dict.fromkeys(r['network'] for r in rows), 'all']:
        mine = [r for r in rows if name in ('all', r['network'])]
        for view, damage in views.items():
            right, pairs, lost = map(sum, zip(*order(mine, damage)))
            settings = len({(r['network'], r['ratio'], r['bits']) for r in mine})
            print(f'{name:12} {view:9} {right:4} of {pairs:4} pairs in order, {lost/settings:5.2f} points lost')


def main(names):
    rows = kept(TABLE)
    if names == ['--show']:
        return show(rows)
    done = {(r['network'], r['ratio'], r['bits'] or 'None', r['way']) for r in rows}
    for name in names or SETTINGS:
        grow(TABLE, COLUMNS, rows, rows_of(name, done))


if __name__ == '__main__':
    main(sys.argv[1:])
