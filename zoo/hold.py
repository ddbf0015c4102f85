"""Does it hold? Every real network that there is here, at every setting, by several recipes: true accuracy and
judged damage.

    python zoo/hold.py                    all networks, into zoo/hold.csv (rows that are there already are kept)
    python zoo/hold.py nm56 lite0         only these

The networks and what is counted on them are those of `udfc reality` (notebook 87b), with all images of
../shared/data/imagenet-a (or UDFC_DATA), 600 tones, and the first 2,000 test images of CIFAR and MNIST; nothing was
fitted on them.
"""
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rows import grow, kept
from udfc_nb import compress
from udfc_nb.app.known import default_images, open_known

TABLE = Path(__file__).with_name('hold.csv')
COLUMNS = ('network ratio bits activation_bits recipe accuracy base judged plain_judged params params_before seconds '
    'chosen view'.split()) # view: of a judge that saw the norms 'anchored' only, or 'both' ways
RECIPES = 'best', 'fast', 'field', 'prune', 'paper'
CIFAR = [(.3, None, None), (.5, None, None), (.3, 4, None), (0., 4, None), (0., 4, 4)]
SETTINGS = {
    **dict.fromkeys(('nm56', 'aka20', 'aka56', 'kar14c100'), CIFAR),
    'lenet': [(.3, None, None), (.5, 4, None)],
    'lite0': [(0., 8, None), (0., 6, None), (0., 4, None), (0., 3, None), (0., 8, 8), (0., 4, 8), (.1, None, None),
    (.2, None, None)],
    'mobilenetv2': [(0., 8, None), (0., 6, None), (0., 4, None), (.1, None, None), (.3, None, None)],
    'crepe': [(0., 8, None), (0., 6, None), (0., 4, None), (0., 8, 8), (.1, None, None), (.3, None, None)],
}


def rows_of(name, recipes, done):
    """A row for every setting and recipe that is not there yet."""
    todo = [(s, r) for s in SETTINGS[name] for r in recipes if (name, *map(str, s), r) not in done]
    if not todo:
        return
    net, example, right = open_known(name, default_images())
    base = right(net)
    for (ratio, bits, reads), recipe in todo:
        start = time.perf_counter()
        out = compress(net, example, pruning_ratio=ratio, weight_bits=bits, activation_bits=reads, recipe=recipe)
        seconds, r = time.perf_counter()-start, out.report
        asked = [c for c in r.candidates if c[1] is not None and not c[0].endswith(('not fitted', 'not rounded'))]
        chosen = min(asked, key=lambda c: c[1], default=('',))[0]
        values = [name, ratio, bits, reads, recipe, right(out.model), base, r.judged['this'], r.judged['plain'],
            r.totals['params'], r.totals['params_before'], seconds, chosen, 'both']
        yield {c: f'{v:.5g}' if isinstance(v, float) and c not in ('ratio',) else v for c, v in zip(COLUMNS, values)}


def main(names):
    rows = kept(TABLE)
    done = {(r['network'], r['ratio'], r['bits'] or 'None', r['activation_bits'] or 'None', r['recipe']) for r in rows}
    for name in names or SETTINGS:
        grow(TABLE, COLUMNS, rows, rows_of(name, RECIPES, done))


if __name__ == '__main__':
    main(sys.argv[1:])
