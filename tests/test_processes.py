"""Two processes on one machine end where one process ends: training, checkpoints, counting, and what is refused. This
file is also the script that torchrun starts, with a folder."""
import importlib, json, os, subprocess, sys
from pathlib import Path
import pytest, torch, torch.nn as nn
from PIL import Image
from udfc_nb import compress, refine
from udfc_nb.app.evaluate import image_folder, image_transform, top_k
from udfc_nb.data.digits import digits, digits_net
from udfc_nb.errors import ArgumentError, Cancelled, RecipeError, UnsupportedError
from udfc_nb.training.images import ImageSchedule
from udfc_nb.training.processes import norms_over, processes, share, together
from udfc_nb.training.schedules import METHODS
from nets import settle

HERE = Path(__file__)
SMALL = dict(batch=8, images=ImageSchedule(images=8, steps=4, class_weight=1., per_image=True, diverse=True))
HOW = {'gdfq': METHODS['gdfq'].but(warmup=.2, width=4, **SMALL), 'zeroq': METHODS['zeroq'].but(**SMALL),
    # norms of the student that learn, and images that do not split evenly
    'transfer': METHODS['transfer'].but(width=4, norms='batch', batch=8, images=ImageSchedule(images=7, steps=4,
        class_weight=1.)),
    'streams': METHODS['streams'].but(batch=8, pool=16)}
STEPS = 6


def tiny():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1),
        nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    return settle(net, 16, 3, 12, 12).double()


def told(result): return result.model.state_dict(), result.curve, result.report.settings['refine']['distance_after']


def stop(done, total, what):
    if isinstance(what, dict) and done == 3: raise Cancelled('enough')


def why(f, kind):
    try: f()
    except kind as e: return str(e)


def runs(folder):
    "Everything that is done by one process and by two. What is learned must not be given back as it was: no judge."
    module = importlib.import_module('udfc_nb.training.refine')
    module.judged_worse = lambda learner: (False, None, None)
    importlib.import_module('udfc_nb.training.learner').JUDGES = ImageSchedule(images=8, steps=4, class_weight=1.)
    loop, found = importlib.import_module('udfc_nb.training.loop'), {}
    net, x = tiny(), torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(5)).double()
    cut = compress(net, x, recipe='fast', pruning_ratio=.5)
    # a recipe that does not change when ours do: where training starts decides what lies at the edge of a code
    rounded = compress(net, x, recipe='squant', weight_bits=3, activation_bits=4)
    for name, how in HOW.items(): found[name] = told(refine(cut, net, how, steps=STEPS))
    grids = HOW['gdfq'].but(learned=('inputs', 'weights'))
    for name, how in (('steps', grids), ('rounded', HOW['streams'])):
        found[name] = told(refine(rounded, net, how, steps=STEPS))
    with together():
        k, n = processes()
        file = folder/f'{n}.safetensors'
        loop.KEEP_EVERY = 1
        found['stopped'] = why(lambda: refine(cut, net, HOW['gdfq'], steps=STEPS, checkpoint=file, progress=stop),
            Cancelled)
        found['there'] = file.exists()
        found['resumed'] = told(refine(cut, net, HOW['gdfq'], steps=STEPS, checkpoint=file))
        odd = HOW['gdfq'].but(batch=14)
        found['odd'] = why(lambda: refine(cut, net, odd, steps=1), RecipeError)
        found['other'] = why(lambda: refine(cut, net, HOW['gdfq'], steps=1, seed=k), ArgumentError)
        foreign = nn.InstanceNorm2d(3, track_running_stats=True)
        found['foreign'] = why(lambda: norms_over(foreign).__enter__(), UnsupportedError)
        found['part'] = share(torch.arange(6))
        data = image_folder(folder/'images', image_transform(8, (.5,), (.5,)))
        found['top'] = top_k(digits_net(), data)
    if k == 0: torch.save(found, folder/f'{n}.pt')
    return found


def torchrun(*argv, n=2):
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={n}',
        *map(str, argv)], capture_output=True, text=True, timeout=600,
        env=os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=f'{HERE.parents[1]}{os.pathsep}{HERE.parent}'))
    return done


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "With 61 images of digits, an odd number."
    folder, (x, y) = tmp_path_factory.mktemp('two'), digits('test')
    for i in range(61):
        (at := folder/'images'/'val'/f'n{y[i]}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(((x[i, 0]-x.min())/(x.max()-x.min())*255).byte().numpy()).save(at/f'{i}.png')
    assert len({*y[:61].tolist()}) == 10
    return folder


@pytest.fixture(scope='module')
def both(folder):
    "What one process finds, and what two find."
    for n in (1, 2):
        done = torchrun(HERE, folder, n=n)
        assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder/f'{n}.pt', weights_only=False) for n in (1, 2)]


def close(a, b, eps=1e-8):
    (s, curve, after), (t, curve2, after2) = a, b
    assert list(s) == list(t) and all(torch.allclose(p.double(), t[n].double(), rtol=0, atol=eps) for n, p in s.items())
    assert [c.keys() for c in curve] == [c.keys() for c in curve2]
    assert all(c[k] == pytest.approx(d[k], abs=eps) for c, d in zip(curve, curve2) for k in c)
    assert after == pytest.approx(after2, abs=eps)


@pytest.mark.parametrize('name', [*HOW, 'rounded'])
def test_two_processes_end_where_one_does(name, both):
    "In double precision; `rounded` learns steps of activations."
    close(both[0][name], both[1][name])


def test_learned_steps_of_weights(both):
    """They are learned in single precision, by Adam, which magnifies rounding: here and there a weight falls on the
    next code."""
    (s, curve, _), (t, curve2, _) = both[0]['steps'], both[1]['steps']
    assert all(c[k] == pytest.approx(d[k], abs=1e-3) for c, d in zip(curve[:3], curve2) for k in c)
    off = torch.cat([(p-t[n]).abs().flatten() for n, p in s.items() if n.endswith('weight')])
    assert off.quantile(.9) < 2e-3


def test_all_methods_have_learned(both):
    "So that the test above can fail."
    states = [both[0][name][0] for name in HOW]
    assert all(not torch.equal(a['0.bias'], b['0.bias']) for i, a in enumerate(states) for b in states[:i])


def test_goes_on_as_if_nothing_had_happened(both):
    "In two processes as in one: stopped at step 3 by the first process, then bit for bit."
    for found in both:
        assert 'enough' in found['stopped'] and found['there']
        assert all(torch.equal(p, found['gdfq'][0][n]) for n, p in found['resumed'][0].items())
        assert found['resumed'][1:] == found['gdfq'][1:]


def test_what_is_refused(both):
    one, two = both
    assert one['odd'] is None and '7 images cannot be shared equally by 2 processes' in two['odd']
    assert one['other'] is None and 'hold different ones' in two['other']
    assert one['foreign'] is None and 'InstanceNorm2d cannot take its statistics' in two['foreign']
    assert (one['part'].tolist(), two['part'].tolist()) == ([0, 1, 2, 3, 4, 5], [0, 1, 2])


def test_images_are_shared_and_counted_once(both):
    (hits, n), (hits2, n2) = both[0]['top'], both[1]['top']
    assert n == n2 == 61 and hits == pytest.approx(hits2) and 0 < hits[0] < 100


DIGITS = 'udfc_nb.data.digits:digits_net', '--input-shape', '1,1,8,8', '--recipe', 'fast', '--bits', '4'


def test_commands_under_torchrun(folder):
    "Only the first process writes and prints."
    out = folder/'small.safetensors'
    done = torchrun('-m', 'udfc_nb', 'refine', *DIGITS, '--method', 'streams', '--steps', 2, '--output', out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('written:') == 1 and '2 steps' in done.stdout and out.exists()
    done = torchrun('-m', 'udfc_nb', 'eval', *DIGITS, '--compressed', out, '--imagenet', folder/'images', '--json')
    assert done.returncode == 0, done.stderr[-3000:]
    result, = (json.loads(o) for o in done.stdout.splitlines() if o.startswith('{'))
    assert result['images'] == 61 and [r['network'] for r in result['rows']] == ['uncompressed', 'compressed']


if __name__ == '__main__': runs(Path(sys.argv[1]))
