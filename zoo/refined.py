"""Which training on generated images is worth its seconds? Every method from the same start, for equally many CPU
seconds.

    python zoo/refined.py                       all rows, into zoo/refined.csv (rows that are there already are kept)
    python zoo/refined.py aka20 W4A4            only these
    python zoo/refined.py lite0                 images of 112², 16 at a time, for 120 seconds

What a method makes once per network is made before and not counted in `seconds`: GDFQ's generator in 160 steps of 64
images, 128 images
by gradient to learn from and 64 to be judged on; column `once` has the seconds. The adversarial game has a generator
of its own,
which plays from the first step. `streams` makes nothing once; what it makes is counted.
Accuracy: top-1 of the first 3,000 test images (`aka20`), of the first 1,000 (`kar14c100`), of 500 images of ImageNet
(`lite0`, at its own size); the rates of `streams` were chosen on the last 2,000 and 1,000 of the files of the first
two.
Seconds are those of one core (`time.process_time`).
"""
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rows import grow, kept
from udfc_nb import compress
from udfc_nb.app.known import default_images, open_known
from udfc_nb.data.blocks import accuracy
from udfc_nb.data.networks import load_network, test_images
from udfc_nb.training.refine import refine
from udfc_nb.training.schedules import METHODS
from udfc_nb.training.learner import Learner
from udfc_nb.training.step import STEPS, prepare, set_mode

TABLE = Path(__file__).with_name('refined.csv')
COLUMNS = 'network setting method seconds took once steps start accuracy base judged_start judged kept seed'.split()
REPORTED = {'aka20': 3000, 'kar14c100': 1000, 'lite0': 500}
SETTINGS = {'W4A4': dict(weight_bits=4, activation_bits=4), 'W4, r=.5': dict(weight_bits=4, pruning_ratio=.5),
    'W3': dict(weight_bits=3)}
TRIED = {'aka20': ('W4A4', 'W4, r=.5'), 'kar14c100': ('W4A4', 'W4, r=.5'), 'lite0': ('W3',)}
SECONDS = {'aka20': (30, 120), 'kar14c100': (30, 120), 'lite0': (120,)}
BATCH = {'lite0': 16}
PROBED = 4  # steps that say how long one takes


def opened(name):
    """A network, an example, and the function that measures it."""
    if name == 'lite0':
        net, _, right = open_known(name, default_images())
        return net, torch.zeros(2, 3, 112, 112), right
    net, _ = load_network(name)
    x, y = (t[:REPORTED[name]] for t in test_images(name))
    return net, x[:2], lambda net: accuracy(net, x, y)


def on_clock(out, net, method, seconds, source, seed, batch=32):
    """Refined for so many seconds: the number of steps comes from the first few. Returns the result, seconds, steps."""
    how = METHODS[method].but(batch=batch)
    start = time.process_time()
    probe = Learner(out, net, how, seed=seed, source=source)
    prepare(probe)
    made = time.process_time()-start if method == 'streams' else 0.  # of others it is made once
    set_mode(probe)
    times = [time.process_time()]
    for probe.step in range(PROBED):
        STEPS[type(how)](probe)
        times.append(time.process_time())
    steps = max(int((seconds-made)*(PROBED-1)/(times[-1]-times[1])), 1)
    marks = []
    tick = lambda done, total, what: marks.append(time.process_time()) if isinstance(what, dict) else None
    result = refine(out, net, how, steps=steps, progress=tick, source=source, seed=seed)
    return result, made+(marks[-1]-marks[0])*len(marks)/max(len(marks)-1, 1), steps


def made_once(name, net, x):
    """Method → what its runs start from, and the seconds that it took."""
    file, t = TABLE.with_name(f'.made_{name}.pt'), time.process_time()
    if file.exists():
        return torch.load(file, weights_only=False)
    out = compress(net, x, weight_bits=8, recipe='prune')
    gdfq = refine(out, net, METHODS['gdfq'].but(warmup=1.), steps=160)
    pictures = {n: gdfq.made[n] for n in ('images', 'judges', 'teacher')}
    once = time.process_time()-t
    game = {f'generator.{n}': t for n, t in Learner(out, net, METHODS['transfer']).generator.state_dict().items()}
    found = {'gdfq': (gdfq, once), 'zeroq': (replace(gdfq, made=pictures), once),
        'transfer': (replace(gdfq, made=pictures | game), once), 'streams': (None, 0.)}
    torch.save(found, file)
    return found


def rows_of(name, settings, methods, done, seed=0):
    todo = [(s, n, m) for n in SECONDS[name] for s in TRIED[name] if s in settings for m in methods
        if (name, s, m, str(n), str(seed)) not in done]
    if not todo:
        return
    net, x, right = opened(name)
    sources, starts, base = made_once(name, net, x), {}, right(net)
    for setting, seconds, method in todo:
        if setting not in starts:
            starts[setting] = compress(net, x, **SETTINGS[setting])
        out, (source, once) = starts[setting], sources[method]
        result, took, steps = on_clock(out, net, method, seconds, source, seed, BATCH.get(name, 32))
        told = result.report.settings['refine']
        kept = bool(result.curve) and not any('as it was' in n for n in result.report.notes)
        values = [name, setting, method, seconds, took, once, steps, right(out.model),
            right(result.model), base, told.get('judged_before'), told.get('judged_after'), kept, seed]
        yield {c: f'{v:.5g}' if isinstance(v, float) else v for c, v in zip(COLUMNS, values)}


def main(names):
    settings = [n for n in names if n in SETTINGS] or SETTINGS
    methods = [n for n in names if n in METHODS] or METHODS
    rows = kept(TABLE)
    done = {(r['network'], r['setting'], r['method'], r['seconds'], r['seed']) for r in rows}
    for name in [n for n in names if n in REPORTED] or REPORTED:
        grow(TABLE, COLUMNS, rows, rows_of(name, settings, methods, done))


if __name__ == '__main__':
    main(sys.argv[1:])
